"""What becomes ready, without a wake-up: one request under way that waits at an executor for it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from headrace.executor.v1 import worker_pb2 as pb

from services.executor.worker.executor_client import FIRST_TIMEOUT, ExecutorClient

_PAUSE_AFTER_FAILURE = 0.2
_TRIES = 3
"""Requests to one executor, which take seven seconds: what it claims by them after that is handed back as forgotten."""

Start = Callable[[pb.Job], None]


class Takes:
    """Takes jobs and hands each to `start`, until told to end."""

    def __init__(
        self,
        executor: ExecutorClient,
        worker_id: str,
        queues: Sequence[str],
        start: Start,
        slots: Callable[[int], Awaitable[int]],
    ) -> None:
        """`slots` says how many there are for this beside so many jobs that are about to begin.

        Without any it waits until there is one or the worker drains.
        """
        self._executor = executor
        self._worker_id = worker_id
        self._queues = queues
        self._start = start
        self._slots = slots
        self._ending = False
        self._ended = asyncio.Event()
        self._number = 0
        self._waits_at: str | None = None
        """At which executor a request is under way."""
        self.executor_id = ""
        """Where to wait."""

    async def run(self) -> None:
        """Take until told to end; what comes with the last answer is still handed on."""
        jobs: Sequence[pb.Job] = ()
        try:
            while True:
                slots = 0 if self._ending else await self._slots(len(jobs))
                if slots < 1 and jobs:
                    self._start_all(jobs)
                    jobs = ()
                    continue
                if slots < 1:
                    return
                taking = asyncio.create_task(self._take(slots))
                try:
                    # More is asked for before they begin: the first to run may keep the loop to themselves for long.
                    await asyncio.sleep(0)  # the request is made
                    await asyncio.sleep(0)  # and sent
                    self._start_all(jobs)
                    jobs = await taking
                finally:
                    taking.cancel()
        finally:
            self._ended.set()

    def _start_all(self, jobs: Sequence[pb.Job]) -> None:
        for job in jobs:
            self._start(job)

    async def end(self) -> None:
        """Take no more: unless its executor does not answer, nothing is given to this worker after this."""
        self._ending = True
        if self._waits_at is not None:
            self._number += 1
            await self._executor.take(self._request(0), self._waits_at)
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_TIMEOUT):
                    await self._ended.wait()

    def _request(self, slots: int) -> pb.TakeRequest:
        return pb.TakeRequest(
            worker_id=self._worker_id, number=self._number, slots=slots, queues=self._queues, takes_early=True
        )

    async def _take(self, slots: int) -> Sequence[pb.Job]:
        """One request, under its number and at one executor until it is answered.

        What was claimed by it is given to nobody else, and an executor that is slow may still be claiming by it. One
        that is gone is not: any other finds what it has left.
        """
        self._number += 1
        request = self._request(slots)
        tries, self._waits_at = 0, self.executor_id
        while (response := await self._executor.take(request, self._waits_at, tries=tries)) is None:
            if self._ending:
                return ()
            tries, request.again = tries + 1, True
            self._waits_at = self._waits_at if tries < _TRIES else ""
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        self._waits_at = None
        return response.jobs
