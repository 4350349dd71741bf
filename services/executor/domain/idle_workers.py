"""Workers that wait for work: what becomes ready is theirs in the commit that makes it ready.

That saves them a wake-up, a claim and its commit. It is for when nobody else waits: what has to take its turn, or needs
a place, goes by way of the dispatcher, and so does all that finds no worker waiting here.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from services.executor.domain.batches import Settle
from services.executor.domain.chains import may_begin_early
from services.executor.domain.dispatch import Dispatcher
from services.executor.domain.jobs import MAX_JOB_BYTES, Job, is_held_by, job_size, make_job
from services.executor.engine import advance, decide
from services.executor.engine.state import NodeState, NodeStatus, RunState
from services.kit.errors import UnavailableError

WAIT_SECONDS = 0.75
"""How long a worker waits here before it is told that there is nothing: less than it waits for the answer."""
_BACK_WITHIN = 0.02
"""Seconds in which a worker that was given something, and has more slots, is expected to ask again."""
_REMEMBERED_SECONDS = 60.0
"""How long the last answer to a worker is kept that asks for nothing more."""


def claim_id(number: int) -> str:
    """What is claimed by a worker's request of this number is claimed under."""
    return f"take {number}"


@dataclass(slots=True, eq=False)
class _Waiting:
    worker_id: str
    number: int
    queues: frozenset[str]
    slots: int
    until: float
    """By the loop's clock. An executor that stood still does not give to who has turned to another meanwhile."""
    takes_early: bool
    answer: "asyncio.Future[list[Job]]"
    is_open: bool = True
    is_uncertain: bool = False
    """A commit may or may not have happened: only the stored rows tell what was claimed."""
    free_bytes: int = MAX_JOB_BYTES
    reserved: int = 0
    """Claims whose commits are waited for."""
    jobs: list[Job] = field(default_factory=list)
    answered_at: float = -math.inf
    """When it was answered with jobs, by the loop's clock."""

    def close(self) -> None:
        """Take nothing more; it is answered when what it was given is committed."""
        self.is_open = False
        self.answer_if_settled()

    def answer_if_settled(self) -> None:
        """Answer, unless there is more to come."""
        if self.is_open or self.reserved or self.answer.done():
            return
        if self.is_uncertain:
            self.answer.set_exception(UnavailableError("Nobody knows what was claimed. Try again.", retry_after=1.0))
            self.answer.exception()  # who waits for it may have gone
        else:
            self.answer.set_result(self.jobs)
            if self.jobs:
                self.answered_at = asyncio.get_running_loop().time()


class IdleWorkers:
    """The workers that wait at this executor. Implements Giver."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._latest: dict[str, _Waiting] = {}
        """The last request of each worker: until the next one nobody knows whether its answer has arrived."""
        self._somebody_waits: Callable[[], None] = lambda: None

    def knows(self, worker_id: str, number: int) -> bool:
        """What has come of a worker's request, or will: it was made here, it or a later one."""
        latest = self._latest.get(worker_id)
        return latest is not None and latest.number >= number and not latest.is_uncertain

    async def wait(
        self, worker_id: str, number: int, queues: Iterable[str], slots: int, *, takes_early: bool = False
    ) -> list[Job]:
        """Wait for what becomes ready, up to `slots` jobs, WAIT_SECONDS at most; claimed under `claim_id(number)`.

        With `takes_early`, what changes nothing outside comes before the commit that claims it. With no slots it only
        ends the wait of an earlier request.

        The same request again gets the same answer. Raises UnavailableError when it is not known what was claimed, and
        for a request older than the last.
        """
        latest = self._latest.get(worker_id)
        if latest is not None and latest.number > number:
            raise UnavailableError("The worker has made a newer request.", retry_after=1.0)
        if not self.knows(worker_id, number):
            loop = asyncio.get_running_loop()
            self._forget(worker_id, loop.time())
            until = loop.time() + WAIT_SECONDS
            waiting = _Waiting(worker_id, number, frozenset(queues), slots, until, takes_early, loop.create_future())
            self._latest[worker_id] = waiting
            if slots > 0:
                loop.call_at(until, waiting.close)
                self._somebody_waits()
            else:
                waiting.close()
        return await asyncio.shield(self._latest[worker_id].answer)

    def give(self, state: RunState) -> Settle | None:
        """See Giver."""
        if not self._latest or state.is_terminal:
            return None
        given: list[tuple[_Waiting, NodeState]] = []
        for node in state.ready:
            if node.status is not NodeStatus.READY or advance.exhausted(state, node) is not None:
                continue
            waiting = self._waiting_for(node.queue)
            if waiting is None or not self._dispatcher.may_give(state.project_id, node.queue, waiting.slots):
                continue
            size, refusal = job_size(state, node)
            if refusal is None and size <= waiting.free_bytes:
                decide.claim(state, node, node.epoch, worker=waiting.worker_id, claim_id=claim_id(waiting.number))
                waiting.slots -= 1
                waiting.free_bytes -= size
                if waiting.takes_early and may_begin_early(node):
                    job = make_job(state, node, is_early=True, may_chain=True)
                    waiting.free_bytes -= sum(len(each.config) + len(each.variables) for each in job.chain)
                    waiting.jobs.append(job)
                    self._dispatcher.gave(node.queue)
                else:
                    waiting.reserved += 1
                    given.append((waiting, node))
        return partial(self._settle, state, given) if given else None

    def expects(self, state: RunState) -> bool:
        """See Giver. Who was given something a moment ago asks for more before it has even begun with that."""
        since = asyncio.get_running_loop().time() - _BACK_WITHIN
        return all(
            any(
                each.answered_at > since
                and node.queue in each.queues
                and self._dispatcher.may_give(state.project_id, node.queue, each.slots)
                for each in self._latest.values()
            )
            for node in state.ready
            if node.status is NodeStatus.READY
        )

    def hand_out(self) -> None:
        """See Giver. No other commit's claims may have the same name: they could be of the same node execution."""
        for waiting in self._latest.values():
            if waiting.jobs:
                waiting.close()

    def tell(self, somebody_waits: Callable[[], None]) -> None:
        """See Giver."""
        self._somebody_waits = somebody_waits

    def close(self) -> None:
        """Let all go: this executor is stopping."""
        for waiting in self._latest.values():
            waiting.close()

    def _waiting_for(self, queue: str) -> _Waiting | None:
        """Who could take most, so that they share what becomes ready at a time."""
        now = asyncio.get_running_loop().time()
        fitting = (
            each
            for each in self._latest.values()
            if each.is_open and each.slots and queue in each.queues and now < each.until
        )
        return max(fitting, key=lambda each: each.slots, default=None)

    def _settle(self, state: RunState, given: list[tuple[_Waiting, NodeState]], is_committed: bool | None) -> None:
        for waiting, node in given:
            waiting.reserved -= 1
            waiting.is_uncertain |= is_committed is None
            if is_committed and is_held_by(node, waiting.worker_id, claim_id(waiting.number)):
                waiting.jobs.append(make_job(state, node))
                self._dispatcher.gave(node.queue)
            else:
                waiting.slots += 1
        for waiting in dict.fromkeys(waiting for waiting, _ in given):
            if (waiting.jobs or waiting.is_uncertain) and not waiting.reserved:
                waiting.close()
            else:
                waiting.answer_if_settled()

    def _forget(self, worker_id: str, now: float) -> None:
        """The worker has made another request; and those who make none any more are gone."""
        if (latest := self._latest.pop(worker_id, None)) is not None:
            latest.close()
        for gone in [each for each in self._latest.values() if each.until < now - _REMEMBERED_SECONDS]:
            del self._latest[gone.worker_id]
