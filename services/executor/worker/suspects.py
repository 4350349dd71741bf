"""Jobs that have cost workers before: run by a process of their own, one at a time, so that they take nobody with them.

A worker only watches for them. When there is one it starts a process, the same program with one slot and that queue,
and watches again when the process has ended: by itself after some seconds without work, or of what it ran. Where there
are no suspects, there is no such process.
"""

import asyncio
import sys

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.executor.worker.wakeups import Wakeups
from services.kit.lifecycle import end

log = structlog.get_logger(__name__)

ALONE = "alone"
"""Argument of the program that is followed by the queue of suspects to run."""
IDLE_SECONDS = 5.0
"""Without work for so long, the process ends."""
_HANDED_BACK = b'-NAK {"delay": 1500000000}'
"""Nanoseconds, about as long as a process takes to start: else each worker in turn would start one."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 4.0
"""Seconds after a process that died; longer while the next ones die as well."""


class Suspects:
    """Those of one queue."""

    def __init__(self, client: Client, queue: str, *, stop_seconds: float) -> None:
        """`stop_seconds`: how long the process may take to end when it is told to."""
        self._client = client
        self._queue = queue
        self._stop_seconds = stop_seconds
        self._wakeups = Wakeups(client, queue, self._receive, self._process_has_ended)
        self._handing_back: set[asyncio.Task[None]] = set()
        self._seen = False
        self._process: asyncio.subprocess.Process | None = None
        self._pause = _FIRST_PAUSE
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._wakeups.run())

    def reconnected(self) -> None:
        """See Worker."""
        self._wakeups.ask_again()

    async def stop(self) -> None:
        """Watch no more, and have the process hand in or back what it has."""
        if self._watching is not None:
            await end(self._watching)
            await asyncio.gather(*self._handing_back, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self._stop_seconds):
                await process.wait()
        except TimeoutError:
            log.warning("alone_worker_killed", queue=self._queue, pid=process.pid)
            process.kill()
            await process.wait()

    def _receive(self, message: Msg) -> None:
        """Leave it to the process that is started for it."""
        self._seen = True
        task = asyncio.create_task(self._hand_back(message))
        self._handing_back.add(task)
        task.add_done_callback(self._handing_back.discard)

    async def _hand_back(self, message: Msg) -> None:
        try:
            await self._client.publish(message.reply, _HANDED_BACK)
        except NatsError as error:
            log.info("hand_back_failed", error=repr(error))  # it comes again by itself, later

    async def _process_has_ended(self) -> int:
        """Run the process if a suspect was seen; then there is room for another look."""
        if self._seen:
            self._seen = False
            await self._run_process()
        return 1

    async def _run_process(self) -> None:
        try:
            # A session of its own: who kills the group of a worker that has died shall spare what runs here.
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.executor.worker.main", ALONE, self._queue),
                stdin=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            log.error("alone_worker_not_started", queue=self._queue, error=repr(error))
            status = None
        else:
            log.info("alone_worker_started", queue=self._queue, pid=process.pid)
            status = await process.wait()
            log.info("alone_worker_ended", queue=self._queue, pid=process.pid, status=status)
        if status == 0:
            self._pause = _FIRST_PAUSE
            return
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


async def parent_has_ended() -> None:
    """Wait for the end of the process that has started this one: in whatever way, standard input is then closed."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
