"""Ends a worker that cannot go on, so that its supervisor starts another: an event loop that stands still, memory that
grows, and, where that is wanted, a number of jobs done.

What an ended worker held is found by its lease and counts as a claim without a result: a job that does this to its
workers is given up after a few.
"""

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""
HARD_FACTOR = 1.5
"""At so many times the memory limit the process ends at once: what it runs is growing faster than it can be drained."""
_LOOK_SECONDS = 0.25
_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int | None:
    """Memory that this process has in use; None where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE
    except OSError:
        return None


async def watch_loop(seconds: float) -> None:
    """End the process when the event loop has not turned for so long, after writing all stacks to standard error.

    By a thread without Python in it: one that has to wait for the interpreter's lock would wait with the handler.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)
            await asyncio.sleep(seconds / 10)
    finally:
        faulthandler.cancel_dump_traceback_later()


class MemoryWatch:
    """A thread that looks at the process's memory; the loop may be held up by the very handler that eats it."""

    def __init__(self, limit: int, full: Callable[[], None]) -> None:
        """`full` is called once, in the event loop, when the process has more than `limit` bytes."""
        self._limit = limit
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if resident_bytes() is None:
            log.warning("memory_not_watched", hint="this system does not say how much memory a process uses")
        else:
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def _look(self) -> None:
        told = False
        while not self._stopping.wait(_LOOK_SECONDS):
            size = resident_bytes() or 0
            if size > self._limit * HARD_FACTOR:
                log.error("memory_exhausted", bytes=size, limit=self._limit, hint="see HEADRACE_WORKER_MEMORY_BYTES")
                os._exit(EXIT_CODE)
            if size > self._limit and not told:
                told = True
                log.warning("memory_limit_reached", bytes=size, limit=self._limit)
                self._loop.call_soon_threadsafe(self._full)
