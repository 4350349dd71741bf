"""An event loop with virtual time, whose callbacks belong to simulated processes that can crash and stand still.

Within a process, callbacks run in the order asyncio gives them; which process goes on next is drawn from the seed. Time
passes only when nobody has anything to do.
"""

from __future__ import annotations

import asyncio
import heapq
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

_RESOLUTION = 1e-9
_OWNER: ContextVar[Process] = ContextVar("owner")


class Handle:
    """What call_soon and call_at return."""

    __slots__ = ("args", "callback", "cancelled_", "context", "owner", "when_")

    def __init__(
        self, owner: Process, callback: Callable[..., Any], args: tuple[Any, ...], context: Context, when: float
    ) -> None:
        self.owner = owner
        self.callback = callback
        self.args = args
        self.context = context
        self.when_ = when
        self.cancelled_ = False

    def cancel(self) -> None:
        """See asyncio.Handle."""
        self.cancelled_ = True

    def cancelled(self) -> bool:
        """See asyncio.Handle."""
        return self.cancelled_

    def when(self) -> float:
        """See asyncio.TimerHandle."""
        return self.when_


class Process:
    """A simulated operating system process: everything that was begun in its context dies and stands still with it."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.ready: deque[Handle] = deque()
        self._loop = loop
        self._context = copy_context()
        self._context.run(_OWNER.set, self)
        loop.processes.append(self)

    def call(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run a callback inside the process, if it is alive then."""
        self._loop.call_soon(callback, *args, context=self._context)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Run a callback inside the process after a while."""
        return self._loop.call_at(self._loop.now + delay, callback, *args, context=self._context)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine inside the process."""
        return self._loop.create_task(coroutine, context=self._context.copy())

    def kill(self) -> None:
        """`kill -9`: nothing of it ever runs again, no `finally` either."""
        self.alive = False
        self.ready.clear()
        self._loop.processes.remove(self)


class Loop(asyncio.AbstractEventLoop):
    """The event loop. `on_step` is told of the process before each callback and may kill or pause it."""

    def __init__(self, rng: Random) -> None:
        self.now = 0.0
        self.steps = 0
        self.processes: list[Process] = []
        self.on_step: Callable[[Process], None] | None = None
        self.on_error: Callable[[dict[str, Any]], None] | None = None
        self.stopped = False
        self._rng = rng
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_number = 0
        self._tasks: list[tuple[asyncio.Task[Any], Context]] = []
        self._closed = False
        self.world = Process(self, "world")

    def run(self, until: float) -> None:
        """Run until `until` or `stopped`, or until nothing is left that could happen."""
        asyncio._set_running_loop(self)
        try:
            while not self.stopped:
                runnable = [process for process in self.processes if process.ready and not process.paused]
                if runnable:
                    self._run_some(runnable[int(self._rng.random() * len(runnable))])
                elif not self._pass_time(until):
                    return
        finally:
            asyncio._set_running_loop(None)

    def _run_some(self, process: Process) -> None:
        ready = process.ready
        for _ in range(1 + int(self._rng.random() * 8)):
            if not ready or process.paused or self.stopped:
                return
            self.steps += 1
            if self.on_step is not None and process is not self.world:
                self.on_step(process)
                if process.paused or not process.alive:
                    return
            handle = ready.popleft()
            if not handle.cancelled_:
                handle.context.run(handle.callback, *handle.args)

    def _pass_time(self, until: float) -> bool:
        timers = self._timers
        while timers and timers[0][2].cancelled_:
            heapq.heappop(timers)
        if not timers or timers[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            handle = heapq.heappop(timers)[2]
            if handle.owner.alive and not handle.cancelled_:
                handle.owner.ready.append(handle)
        return True

    def close(self) -> None:
        """Close what crashed and unfinished processes have left; their `finally` blocks find a dead world."""
        self._closed = True
        with warnings.catch_warnings():
            # What a task was about to start when its process died was, indeed, never awaited.
            warnings.simplefilter("ignore", RuntimeWarning)
            for task, context in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    context.run(task.get_coro().close)  # type: ignore[union-attr]
        self._tasks.clear()
        self._timers.clear()
        for process in self.processes:
            process.ready.clear()

    # What asyncio asks of a loop.

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        """See asyncio."""
        if context is None:
            context = copy_context()
        owner = context.get(_OWNER, self.world)
        handle = Handle(owner, callback, args, context, self.now)
        if owner.alive and not self._closed:
            owner.ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        """See asyncio."""
        if context is None:
            context = copy_context()
        handle = Handle(context.get(_OWNER, self.world), callback, args, context, when)
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._timer_number, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:  # type: ignore[override]
        """See asyncio."""
        # A real clock moves on by itself, however short the delay.
        return self.call_at(
            self.now + (max(delay, _RESOLUTION) if delay > 0 else 0.0), callback, *args, context=context
        )

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:  # type: ignore[override]
        """See asyncio. Tasks are kept to the end, so that none is collected at a time that nothing decides."""
        if context is None:
            context = copy_context()
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self._tasks.append((task, context))
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """A thread that is done before anybody looks."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's, as with a thread
            future.set_exception(error)
        return future

    def get_debug(self) -> bool:
        """See asyncio."""
        return False

    def is_running(self) -> bool:
        """See asyncio."""
        return not self._closed

    def is_closed(self) -> bool:
        """See asyncio."""
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback or a forgotten task has failed."""
        if not self._closed and self.on_error is not None:
            self.on_error(context)
