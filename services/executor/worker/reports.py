"""Reports: how jobs ended, handed in until an executor has answered, and those of a chain in their order.

A job's report makes the claim of the next one in its chain. So the next one's report never comes to an executor before:
it goes in the same request, behind the other, or after that one's answer. What an executor does not claim comes to
nothing, and so does what the worker has gone on with from there.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
from headrace.executor.v1 import worker_pb2 as pb

from services.executor.worker.chains import Chain, Held, held_by
from services.executor.worker.executor_client import ExecutorClient

log = structlog.get_logger(__name__)

_MAX_BATCH = 64
_MAX_BATCH_BYTES = 4 * 1024 * 1024
"""NATS carries messages of up to 8 MiB, and a report has at most a little over 1."""
_PAUSE_AFTER_FAILURE = 0.2


class Reporter(Protocol):
    """Whose jobs they are."""

    def free_slots(self, reports: int) -> int:
        """Jobs that it takes for each of so many reports, at most."""
        ...

    def take_job(self, job: pb.Job) -> None:
        """A successor is claimed for it."""
        ...

    def settle(self, chain: Chain, held: Held, *, goes_on: bool) -> None:
        """An executor has claimed what it has gone on with, or has not."""
        ...


@dataclass(slots=True)
class _Outgoing:
    held: Held
    report: pb.Report
    executor_id: str
    """Whom to tell; empty = any."""
    chain: Chain | None


class Reports:
    """The reports of one worker."""

    def __init__(
        self,
        executor: ExecutorClient,
        request: pb.ReportRequest,
        reporter: Reporter,
        in_background: Callable[[Callable[[], Coroutine[None, None, None]]], Awaitable[None]],
    ) -> None:
        """`request` says who reports; `in_background` runs requests, a few at a time."""
        self._executor = executor
        self._request = request
        self._reporter = reporter
        self._in_background = in_background
        self._queue: deque[_Outgoing] = deque()
        self._wanted = asyncio.Event()
        self._behind: dict[Chain, list[_Outgoing]] = {}
        """Chains with reports under way, and their reports that come after the answer to those."""
        self._unanswered: dict[Held, str] = {}
        """What has ended, and no executor has answered its report yet; by which claim."""

    def __len__(self) -> int:
        """Those that are not under way."""
        return len(self._queue)

    def claim_of(self, held: Held) -> str | None:
        """The claim whose report no executor has answered yet."""
        return self._unanswered.get(held)

    def add(self, report: pb.Report, executor_id: str, chain: Chain | None = None) -> None:
        """Hand a report in, to this executor first."""
        outgoing = _Outgoing(held_by(report), report, executor_id, chain)
        self._unanswered[outgoing.held] = report.claim_id
        self._queue.append(outgoing)
        self._wanted.set()

    async def run(self) -> None:
        """Hand in what is added, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._queue:
                for executor_id, batch in self._next_batch().items():
                    await self._in_background(partial(self._hand_in, batch, executor_id))

    def _next_batch(self) -> dict[str, list[_Outgoing]]:
        """Reports that are handed in together, by executor."""
        by_executor: dict[str, list[_Outgoing]] = {}
        executors: dict[Chain, str] = {}
        count = size = 0
        while self._queue and count < _MAX_BATCH and size < _MAX_BATCH_BYTES:
            outgoing = self._queue.popleft()
            chain, executor_id = outgoing.chain, outgoing.executor_id
            if chain is not None:
                if chain in self._behind and chain not in executors:
                    self._behind[chain].append(outgoing)
                    continue
                self._behind.setdefault(chain, [])
                executor_id = executors.setdefault(chain, executor_id)
            by_executor.setdefault(executor_id, []).append(outgoing)
            count += 1
            size += outgoing.report.ByteSize()
        return by_executor

    async def _hand_in(self, batch: list[_Outgoing], executor_id: str) -> None:
        request = pb.ReportRequest(
            reports=[outgoing.report for outgoing in batch], free_slots=self._reporter.free_slots(len(batch))
        )
        request.MergeFrom(self._request)
        tries = 0
        while (response := await self._executor.report(request, executor_id, tries=tries)) is None:
            # To any executor from now on: the one that held the runs may be gone.
            tries, executor_id = tries + 1, ""
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        again = []
        handed_in = {outgoing.held for outgoing in batch}
        for outgoing, result in zip(batch, response.results, strict=True):
            if result.status == pb.REPORT_STATUS_RETRY:
                outgoing.executor_id = ""
                again.append(outgoing)
            else:
                self._take_answer(outgoing, result, handed_in)
        if again:
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        for chain in dict.fromkeys(outgoing.chain for outgoing in batch if outgoing.chain is not None):
            again += self._behind.pop(chain)
        self._repeat(again)

    def _take_answer(self, outgoing: _Outgoing, result: pb.ReportResult, handed_in: set[Held]) -> None:
        report, chain = outgoing.report, outgoing.chain
        self._forget(outgoing)
        if result.status == pb.REPORT_STATUS_STALE:
            log.info("report_was_stale", run_id=report.ref.run_id, node_key=report.ref.node_key)
        for job in result.next:
            self._reporter.take_job(job)
        if chain is None or not report.began:
            return
        following = report.ref.run_id, report.began, report.ref.item_path, 1
        if following in handed_in:
            return
        if not result.goes_on:
            chain.is_void = True
            for late in self._behind[chain]:
                self._forget(late)
            self._behind[chain].clear()
        self._reporter.settle(chain, following, goes_on=result.goes_on)

    def _forget(self, answered: _Outgoing) -> None:
        if self._unanswered.get(answered.held) == answered.report.claim_id:
            del self._unanswered[answered.held]

    def _repeat(self, reports: list[_Outgoing]) -> None:
        """Put reports back, before all that have come since: those of a chain are handed in in their order."""
        for outgoing in reports:
            self._unanswered[outgoing.held] = outgoing.report.claim_id
        self._queue.extendleft(reversed(reports))
        self._wanted.set()
