"""Who waits for a run to move: callers that wait for its end, and followers of its events."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from services.executor.engine.state import RunState


@dataclass(frozen=True, slots=True)
class Token:
    """A passing event: a piece of a node's text."""

    place: tuple[str, str]
    """Item path and key of its node."""
    data: bytes
    """Serialised; opaque here."""


class Watch:
    """One watcher of one run. `moved` is set whenever the run may have new events; see also `take_tokens`.

    `ended` is set when it has ended, for who need not be woken by each step on the way; `last` is the run as it ended,
    if this process has committed that.
    """

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self.ended = asyncio.Event()
        self.last: RunState | None = None
        self._tokens: list[Token] = []

    def notify(self, *, ended: bool) -> None:
        """The run has moved."""
        self.moved.set()
        if ended:
            self.ended.set()

    def add_token(self, token: Token) -> None:
        """A passing event has come; a watcher that does not keep up loses the oldest."""
        self._tokens.append(token)
        if len(self._tokens) > 10_000:
            del self._tokens[:1000]
        self.moved.set()

    def take_tokens(self) -> list[Token]:
        """Those that have come since the last call, oldest first."""
        tokens, self._tokens = self._tokens, []
        return tokens


class Watchers:
    """Watches by run, in this process."""

    def __init__(self) -> None:
        self._watches: dict[UUID, dict[Watch, None]] = {}
        """Told in the order in which they came."""

    @contextmanager
    def watch(self, run_id: UUID) -> Iterator[Watch]:
        """Watch a run for the length of a block."""
        watch = Watch()
        self._watches.setdefault(run_id, {})[watch] = None
        try:
            yield watch
        finally:
            found = self._watches[run_id]
            del found[watch]
            if not found:
                del self._watches[run_id]

    def moved(self, state: RunState) -> None:
        """Tell the run's watchers that a commit has moved it."""
        for watch in self._watches.get(state.run_id, ()):
            if state.is_terminal:
                watch.last = state
            watch.notify(ended=state.is_terminal)
