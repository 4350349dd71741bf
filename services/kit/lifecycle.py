"""How a process lives: the event loop, signals, metrics port, what it does again and again, and stopping in order."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import prometheus_client
import structlog
import uvloop
from pydantic import ValidationError

from services.kit.errors import DomainError
from services.kit.logging import configure_logging
from services.kit.tracing import start_tracing

log = structlog.get_logger(__name__)

_CANCEL_AGAIN_SECONDS = 1.0

Serve = Callable[[AsyncExitStack], Awaitable[None]]
"""Builds and starts a service. What it puts on the stack is undone in reverse when the process is told to stop."""


def run(service: str, serve: Serve, *, at_edge: bool = False) -> None:
    """Run a service until SIGTERM or SIGINT, then undo its exit stack and return. `at_edge`: strangers call it.

    Ends the process with status 1 and a sentence per setting when the environment is incomplete or wrong.
    """
    configure_logging(service)
    try:
        stop_tracing = start_tracing(service, at_edge=at_edge)
        try:
            uvloop.run(_run(service, serve))
        finally:
            stop_tracing()
    except ValidationError as error:
        sys.exit("\n".join(_explain(error)))


_GC_THRESHOLDS = 20_000, 20, 20
"""Objects more than before until the collector of cycles looks at the young, and looks until one at the older ones.

By default it looks after 700: at every few messages. Hardly anything that is made for one is in a cycle, so it finds
nothing, for 4% of the processor time of ten nodes (`make bench`).
"""


def collect_seldom() -> None:
    """What exists now lives as long as the process: leave it out of every later collection, and collect seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def _run(service: str, serve: Serve) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        await serve(stack)
        collect_seldom()
        log.info("service_started", service=service)
        await stopping.wait()
        log.info("service_stopping", service=service)
    log.info("service_stopped", service=service)


def stop() -> None:
    """Stop this process as if it were told to from outside."""
    os.kill(os.getpid(), signal.SIGTERM)


def vital(task: "asyncio.Task[Any]") -> None:
    """Stop this process if the task ends by an error: without it, the rest of the process would only look alive."""

    def ended(_: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("vital_task_failed", exc_info=error)
            stop()

    task.add_done_callback(ended)


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, and wait until they have ended; how is not told.

    More than once where it has to be: before Python 3.12 `asyncio.wait_for`, with which nats-py waits for answers,
    loses a cancellation that comes together with what it waits for (https://github.com/python/cpython/issues/86296).
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


class Repeated:
    """A step that is done again and again inside an `async with`, the first time at once.

    It returns the seconds until the next time. One that fails is logged as `<what>_failed` and done again after `pause`
    seconds. On the way out the step under way is cancelled, and has ended afterwards.
    """

    def __init__(self, what: str, step: Callable[[], Awaitable[float]], *, pause: float) -> None:
        self._what = what
        self._step = step
        self._pause = pause

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._repeat())

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _repeat(self) -> None:
        while True:
            seconds = self._pause
            try:
                seconds = await self._step()
            except DomainError as error:
                log.warning(f"{self._what}_failed", reason=error.reason)
            except Exception:
                # Nobody else goes on with it: one step that nobody foresaw must not be the last.
                log.exception(f"{self._what}_failed")
            await asyncio.sleep(seconds)


def _explain(error: ValidationError) -> list[str]:
    lines = [f"{error.title} cannot be read from the environment:"]
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        # A setting whose variable has a name of its own is called by it.
        name = name if name.isupper() else f"HEADRACE_… {name}"
        lines.append(f"  {name}: {item['msg']}")
    return lines


def serve_metrics(listen: str) -> None:
    """Serve Prometheus metrics at `http://<listen>/metrics` from a thread of its own; nothing when it is empty."""
    if listen:
        host, _, port = listen.rpartition(":")
        # When each counter was made: a series more for each, and nobody asks.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        prometheus_client.start_http_server(int(port), addr=host)
