"""Who waits for a run to move: callers that wait for its end, and followers of its events."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID


class Watch:
    """One watcher of one run. `moved` is set whenever the run may have new events; tokens arrive in `tokens`."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self.ended = False
        self.tokens: list[bytes] = []
        """Serialised passing events, oldest first; the watcher empties it."""

    def notify(self, *, ended: bool) -> None:
        """The run has moved."""
        self.ended = self.ended or ended
        self.moved.set()

    def add_token(self, token: bytes) -> None:
        """A passing event has come; a watcher that does not keep up loses the oldest."""
        self.tokens.append(token)
        if len(self.tokens) > 10_000:
            del self.tokens[:1000]
        self.moved.set()


class Watchers:
    """Watches by run, in this process."""

    def __init__(self) -> None:
        self._watches: dict[UUID, set[Watch]] = {}

    @contextmanager
    def watch(self, run_id: UUID) -> Iterator[Watch]:
        """Watch a run for the length of a block."""
        watch = Watch()
        self._watches.setdefault(run_id, set()).add(watch)
        try:
            yield watch
        finally:
            found = self._watches[run_id]
            found.discard(watch)
            if not found:
                del self._watches[run_id]

    def is_watched(self, run_id: UUID) -> bool:
        """Somebody watches the run."""
        return run_id in self._watches

    def notify(self, run_id: UUID, *, ended: bool) -> None:
        """Tell the run's watchers that it has moved."""
        for watch in self._watches.get(run_id, ()):
            watch.notify(ended=ended)

    def add_token(self, run_id: UUID, token: bytes) -> None:
        """Pass a token on to the run's watchers."""
        for watch in self._watches.get(run_id, ()):
            watch.add_token(token)
