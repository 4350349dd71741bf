"""All processes of a stack: started together, followed, stopped in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from deploy.local.errors import StackError
from deploy.local.processes import KeptProcess, Program

STOP_ORDER = ("gateway", "worker", "executor", "workflows", "vector", "llm", "auth", "nats", "postgres")
"""Who stops before whom: nobody loses what it depends on while it finishes."""


class Supervisor:
    """Keeps programs running until `stop`.

    Args:
        on_change: told of every change of a process, after it.
    """

    def __init__(self, on_change: Callable[[KeptProcess], None]) -> None:
        self._on_change = on_change
        self._processes: list[KeptProcess] = []

    @property
    def processes(self) -> tuple[KeptProcess, ...]:
        return tuple(self._processes)

    @property
    def all_services_ready(self) -> bool:
        """Whether each service has a healthy process; with replicas, one may be away."""
        ready = {process.program.service for process in self._processes if process.is_ready}
        return ready == {process.program.service for process in self._processes}

    def keep(self, programs: Iterable[Program]) -> None:
        """Start the programs and keep them running."""
        self._processes += [KeptProcess(program, self._on_change) for program in programs]

    async def wait_ready(self, *services: str) -> None:
        """Return once every process of these services, or of all, is healthy.

        Raises:
            ProcessFailedError: one keeps ending; the others go on.
        """
        awaited = [process for process in self._processes if not services or process.program.service in services]
        await together(process.wait_ready() for process in awaited)

    async def stop(self) -> None:
        """Stop everything: service by service, the replicas of one at the same time."""
        for service in STOP_ORDER:
            leaving = [process for process in self._processes if process.program.service == service]
            await together(process.stop() for process in leaving)

    def kill(self) -> None:
        """Kill everything at once, for someone who does not want to wait for `stop`."""
        for process in self._processes:
            process.kill()


async def together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them at the same time. The first to fail cancels the others, and its error comes out alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        known = [error for error in errors.exceptions if isinstance(error, StackError)]
        raise (known or errors.exceptions)[0] from None
