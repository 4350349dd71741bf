"""New runs whose callers wait for their end, and that are therefore committed with their first results."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from services.executor.domain.batches import Batch, Giver
from services.executor.engine.state import NodeStatus, RunState, RunStatus

_FOR_WORKERS = 0.005
"""Seconds that a new run may wait for a worker that is about to come: less than to wake one takes."""


@dataclass(slots=True)
class _Patient:
    """A run that waits for its first results, or for a worker to begin with."""

    batch: Batch
    """Of this run alone."""
    state: RunState
    until: float
    """By the loop's clock; for a worker it waits less."""
    timer: asyncio.TimerHandle


class Patience:
    """The runs that wait."""

    def __init__(self, giver: Giver, begun: Callable[[], None], lose: Callable[[UUID], None]) -> None:
        """`begun` is called when all that a run begins with is with workers, `lose` when it has waited long enough."""
        self._giver = giver
        self._begun = begun
        self._lose = lose
        self._patients: dict[UUID, _Patient] = {}

    def __len__(self) -> int:
        return len(self._patients)

    def begin(self, batch: Batch, state: RunState, seconds: float) -> bool:
        """Let a new run wait, if it pays; whether it does."""
        # Somebody else but its caller waits for the commit: a worker with what must not begin before.
        is_urgent = not seconds or batch.gifts or state.inline or state.status is not RunStatus.RUNNING
        if is_urgent or not (_has_begun(state) or self._giver.expects(state)):
            return False
        self._wait(batch, state, asyncio.get_running_loop().time() + seconds)
        return True

    def _wait(self, batch: Batch, state: RunState, until: float) -> None:
        loop, has_begun = asyncio.get_running_loop(), _has_begun(state)
        timer = loop.call_at(until if has_begun else min(until, loop.time() + _FOR_WORKERS), self._lose, state.run_id)
        self._patients[state.run_id] = _Patient(batch, state, until, timer)
        if has_begun:
            self._begun()

    def end(self, run_id: UUID) -> Batch | None:
        """A run waits no longer, if it did: what is to be committed of it."""
        patient = self._patients.pop(run_id, None)
        if patient is None:
            return None
        patient.timer.cancel()
        return patient.batch

    def end_all(self) -> None:
        """This executor is stopping."""
        for run_id in list(self._patients):
            self._lose(run_id)

    def give_again(self, give: Callable[[Batch, RunState], None]) -> None:
        """A worker has come, to whom what such runs begin with may be given."""
        for patient in [each for each in self._patients.values() if not _has_begun(each.state)]:
            give(patient.batch, patient.state)
            if patient.batch.gifts:
                self._lose(patient.state.run_id)
            elif _has_begun(patient.state):
                patient.timer.cancel()
                self._wait(patient.batch, patient.state, patient.until)


def _has_begun(state: RunState) -> bool:
    """All that it begins with is with workers."""
    return all(node.status is not NodeStatus.READY for node in state.ready)
