"""Workers that wait for work: what becomes ready is theirs in the commit that makes it ready.

That saves them a wake-up, a claim and its commit. It is for when nobody else waits: what has to take its turn, or needs
a place, goes by way of the dispatcher, and so does all that finds no worker waiting here.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.jobs import MAX_JOB_BYTES, Job, job_size, make_job
from services.executor.engine import advance, decide
from services.executor.engine.state import NodeState, NodeStatus, RunState

WAIT_SECONDS = 0.75
"""How long a worker waits here before it is told that there is nothing: less than it waits for the answer."""


@dataclass(slots=True, eq=False)
class _Waiting:
    worker_id: str
    claim_id: str
    queues: frozenset[str]
    slots: int
    until: float
    """By the loop's clock. An executor that stood still does not give to who has turned to another meanwhile."""
    answer: "asyncio.Future[list[Job]]"
    free_bytes: int = MAX_JOB_BYTES
    reserved: int = 0
    """Claims whose commits are under way."""
    jobs: list[Job] = field(default_factory=list)


class IdleWorkers:
    """The workers that wait at this executor. Implements Giver."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiting: dict[str, _Waiting] = {}
        """By worker: who has left is not given anything more."""

    async def wait(self, worker_id: str, claim_id: str, queues: Iterable[str], slots: int) -> list[Job]:
        """Wait for what becomes ready, up to `slots` jobs, WAIT_SECONDS at most; claimed under `claim_id`."""
        loop = asyncio.get_running_loop()
        self._leave(worker_id)
        until = loop.time() + WAIT_SECONDS
        waiting = _Waiting(worker_id, claim_id, frozenset(queues), slots, until, loop.create_future())
        self._waiting[worker_id] = waiting
        timer = loop.call_at(until, self._leave, worker_id, waiting)
        try:
            return await waiting.answer
        finally:
            timer.cancel()

    def give(self, state: RunState) -> Callable[[bool], None] | None:
        """See Giver."""
        if not self._waiting or state.is_terminal:
            return None
        given: list[tuple[_Waiting, NodeState]] = []
        for node in state.ready:
            if node.status is not NodeStatus.READY or advance.exhausted(state, node) is not None:
                continue
            waiting = self._waiting_for(node.queue)
            if waiting is None or not self._dispatcher.may_give(state.project_id, node.queue):
                continue
            size, refusal = job_size(state, node)
            if refusal is None and size <= waiting.free_bytes:
                decide.claim(state, node, node.epoch, worker=waiting.worker_id, claim_id=waiting.claim_id)
                waiting.slots -= 1
                waiting.free_bytes -= size
                waiting.reserved += 1
                given.append((waiting, node))
        return partial(self._settle, state, given) if given else None

    def close(self) -> None:
        """Let all go: this executor is stopping."""
        for worker_id in list(self._waiting):
            self._leave(worker_id)

    def _waiting_for(self, queue: str) -> _Waiting | None:
        """Who could take most, so that they share what becomes ready at a time."""
        now = asyncio.get_running_loop().time()
        fitting = (each for each in self._waiting.values() if each.slots and queue in each.queues and now < each.until)
        return max(fitting, key=lambda each: each.slots, default=None)

    def _settle(self, state: RunState, given: list[tuple[_Waiting, NodeState]], is_committed: bool) -> None:
        for waiting, node in given:
            waiting.reserved -= 1
            # What came after it in the same commit may have cancelled it.
            if is_committed and node.status is NodeStatus.RUNNING:
                waiting.jobs.append(make_job(state, node))
            else:
                waiting.slots += 1
        for waiting in dict.fromkeys(waiting for waiting, _ in given):
            if waiting.jobs and not waiting.reserved:
                self._leave(waiting.worker_id, waiting)
            self._answer_if_gone(waiting)

    def _leave(self, worker_id: str, waiting: _Waiting | None = None) -> None:
        present = self._waiting.get(worker_id)
        if present is not None and waiting in (None, present):
            del self._waiting[worker_id]
            self._answer_if_gone(present)

    def _answer_if_gone(self, waiting: _Waiting) -> None:
        is_gone = self._waiting.get(waiting.worker_id) is not waiting
        if is_gone and not waiting.reserved and not waiting.answer.done():
            waiting.answer.set_result(waiting.jobs)
