"""Transitions on their way to one commit."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from services.executor.domain.model import NewRun
from services.executor.engine.state import RunState, RunTimes

T = TypeVar("T")
S = TypeVar("S")

Settle = Callable[[bool | None], None]
"""Told once whether a commit has happened; None: nobody knows."""


class Giver(Protocol):
    """Gives what becomes ready to workers that wait for it. Must not block or raise."""

    def give(self, state: RunState) -> Settle | None:
        """Claim of `state.ready`, before the commit, whose end is then told."""
        ...

    def expects(self, state: RunState) -> bool:
        """A worker is about to come for what is ready, to whom it may then be given."""
        ...

    def hand_out(self) -> None:
        """What was given and need not wait for the end of its commit, goes."""
        ...

    def tell(self, somebody_waits: Callable[[], None]) -> None:
        """Call this whenever a worker has come to wait."""
        ...


@dataclass(slots=True)
class Work(Generic[S, T]):
    """A transition of a run."""

    run_id: UUID
    apply: Callable[[RunState], S]
    """Makes the transition; may be called again on a fresh state."""
    answer: Callable[[RunState, S], T]
    """Makes the reply once the transition is committed."""
    done: "asyncio.Future[T]"
    new: tuple[Callable[[], RunState], NewRun] | None = None
    patience: float = 0.0
    """Seconds."""
    result: Any = None
    tries: int = 0

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless nobody waits for the answer any more."""
        if not self.done.done():
            self.done.set_exception(error)


class Batch:
    """Transitions that are committed together, by run."""

    def __init__(self) -> None:
        self.works: dict[UUID, list[Work[Any, Any]]] = {}
        """Applied ones, in order."""
        self.states: dict[UUID, RunState] = {}
        self.new: dict[UUID, NewRun] = {}
        self.later: list[Work[Any, Any]] = []
        """Repeated starts, to be looked at when the first is committed."""
        self.gifts: dict[UUID, list[Settle]] = {}
        self.size = 0
        self.runs: list[UUID] = []
        """All that were in it when it was sent."""
        self.written: Mapping[UUID, RunTimes] = {}
        self.outdated: frozenset[UUID] = frozenset()
        self.error: Exception | None = None

    def join(self, other: "Batch") -> None:
        """Take in what another one holds, of other runs."""
        self.works |= other.works
        self.states |= other.states
        self.new |= other.new
        self.gifts |= other.gifts
        self.size += other.size

    def take_out(self, run_id: UUID) -> list[Work[Any, Any]]:
        """Leave a run out, which is not committed with this; its transitions, and the starts that waited for them."""
        works = self.works.pop(run_id, [])
        self.states.pop(run_id, None)
        self.new.pop(run_id, None)
        self.size -= len(works)
        for settle_gift in self.gifts.pop(run_id, ()):
            settle_gift(False)
        works += [work for work in self.later if work.run_id == run_id]
        self.later = [work for work in self.later if work.run_id != run_id]
        return works
