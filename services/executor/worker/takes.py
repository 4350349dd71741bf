"""What becomes ready, without a wake-up: one request under way that waits at an executor for it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from headrace.executor.v1 import worker_pb2 as pb

from services.executor.worker.executor_client import ExecutorClient

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
        slots: Callable[[], Awaitable[int]],
    ) -> None:
        """`slots` waits until there is at least one for this or the worker drains, and says how many there are."""
        self._executor = executor
        self._worker_id = worker_id
        self._queues = queues
        self._start = start
        self._slots = slots
        self._ending = False
        self._number = 0
        self.executor_id = ""
        """Where to wait."""

    async def run(self) -> None:
        """Take until told to end; then, what comes with the last answer is still handed on."""
        while (slots := await self._slots()) and not self._ending:
            await self._take(slots)

    def end(self) -> None:
        """Take no more."""
        self._ending = True

    async def _take(self, slots: int) -> None:
        """One request, under its number and at one executor until it is answered.

        What was claimed by it is given to nobody else, and an executor that is slow may still be claiming by it. One
        that is gone is not: any other finds what it has left.
        """
        self._number += 1
        request = pb.TakeRequest(worker_id=self._worker_id, number=self._number, slots=slots, queues=self._queues)
        tries, executor_id = 0, self.executor_id
        while (response := await self._executor.take(request, executor_id, tries=tries)) is None:
            if self._ending:
                return
            tries, request.again = tries + 1, True
            executor_id = executor_id if tries < _TRIES else ""
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        for job in response.jobs:
            self._start(job)
