"""A lock that many hold to read or one to write."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SharedLock:
    """Held by many readers or by one writer, in turns: neither kind can starve the other.

    A reader that comes while a writer waits queues behind it; when a writer is done, all readers waiting go first.
    """

    def __init__(self) -> None:
        self._readers = 0
        self._is_writing = False
        self._waiting_readers: list[asyncio.Future[None]] = []
        self._waiting_writers: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold it together with other readers."""
        if self._is_writing or self._waiting_writers:
            await self._wait(is_writer=False)
        else:
            self._readers += 1
        try:
            yield
        finally:
            self._end_reading()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold it alone."""
        if self._is_writing or self._readers:
            await self._wait(is_writer=True)
        else:
            self._is_writing = True
        try:
            yield
        finally:
            self._end_writing()

    async def _wait(self, *, is_writer: bool) -> None:
        """Wait for the turn, which whoever ends his own hands over."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting_writers if is_writer else self._waiting_readers).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                # Readers may have queued behind this writer only.
                self._hand_over(writer_first=True)
            elif is_writer:
                self._end_writing()
            else:
                self._end_reading()
            raise

    def _end_reading(self) -> None:
        self._readers -= 1
        self._hand_over(writer_first=True)

    def _end_writing(self) -> None:
        self._is_writing = False
        self._hand_over(writer_first=False)

    def _hand_over(self, *, writer_first: bool) -> None:
        if self._is_writing:
            return
        # A waiter that was cancelled has not run yet to leave the queue by itself.
        self._waiting_readers = [turn for turn in self._waiting_readers if not turn.done()]
        self._waiting_writers = deque(turn for turn in self._waiting_writers if not turn.done())
        if self._waiting_readers and (not writer_first or not self._waiting_writers):
            for turn in self._waiting_readers:
                self._readers += 1
                turn.set_result(None)
            self._waiting_readers = []
        elif self._waiting_writers and not self._readers:
            self._is_writing = True
            self._waiting_writers.popleft().set_result(None)
