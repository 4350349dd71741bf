"""One supervised process: started, checked, restarted with back-off, stopped. Knows nothing of what it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from deploy.local.errors import ProcessFailedError, StackError

FIRST_BACKOFF = 0.2
LONGEST_BACKOFF = 10.0
HEALTHY_AFTER = 30.0
"""Seconds of health after which an exit counts as the first again."""
STARTS_BEFORE_GIVING_UP = 4
"""While the stack starts, a process that ends this often without having been healthy fails the start."""
PROBE_EVERY = 2.0
"""Seconds between two checks of a healthy process; what has died is noticed at once, without them."""
PROBE_TIMEOUT = 5.0
_LARGEST_KEPT_LOG = 10 * 1024 * 1024

Probe = Callable[[], Awaitable[None]]
"""Returns when the process answers as it should; raises or waits while it does not."""


async def _nothing() -> None:
    """The probe and preparation of a program that needs none."""


@dataclass(frozen=True)
class Owner:
    """The operating system user a process runs as, where it is not the launcher's."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """How one process is started, checked and stopped."""

    service: str
    replica: int = 0
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    probe: Probe = _nothing
    prepare: Callable[[], Awaitable[None]] = _nothing
    """Awaited before every start; raises StackError where starting makes no sense at present."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace: float = 15.0
    """Seconds between the stop signal and SIGKILL."""
    orphan_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends when the launcher dies."""
    owner: Owner | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What stack.json says of it beside service, replica, pid and log."""

    @property
    def name(self) -> str:
        return f"{self.service}-{self.replica}"


class State(StrEnum):
    """Where a kept process is in its life."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    STOPPED = "stopped"


def rotate(log: Path) -> None:
    """Move a log that has grown large aside; one earlier file is kept."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LARGEST_KEPT_LOG:
            log.replace(log.with_suffix(log.suffix + ".1"))


async def launch(program: Program) -> asyncio.subprocess.Process:
    """Start a program in a session of its own, so that Ctrl-C in the terminal reaches the launcher alone.

    Must be called from the main thread: the kernel ties the death signal to the thread that started the process.
    """
    owner = f"{program.owner.uid}:{program.owner.gid}" if program.owner else "-"
    wrapper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))]
    with program.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *wrapper,
            *(str(os.getpid()), str(int(program.orphan_signal)), owner),
            *program.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(program.env),
            start_new_session=True,
        )


async def run_to_end(program: Program, limit_seconds: float) -> None:
    """Run a program that ends by itself.

    Raises:
        ProcessFailedError: it ended with another code than 0, or not within `limit_seconds`.
    """
    process = await launch(program)
    try:
        async with asyncio.timeout(limit_seconds):
            code = await process.wait()
    except TimeoutError:
        raise ProcessFailedError(
            program.name, what=f"was not done after {limit_seconds:.0f} s", log=program.log
        ) from None
    finally:
        _kill_group(process.pid)
        await process.wait()
    if code != 0:
        raise ProcessFailedError(program.name, what=f"failed ({_exit_words(code)})", log=program.log)


class KeptProcess:
    """A program that is kept running, from its construction (in a running loop, on the main thread) until `stop`.

    Invariant: `pid` is the process that runs now, or None while there is none.
    """

    def __init__(self, program: Program, on_change: Callable[[KeptProcess], None]) -> None:
        self.program = program
        self.state = State.STARTING
        self.pid: int | None = None
        self.exits = 0
        self.last_exit = ""
        """Why it ended last, in words."""
        self.started_at = time.monotonic()
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Condition()
        self._failed_starts = 0
        self._healthy_since: float | None = None
        rotate(program.log)
        self._task = asyncio.create_task(self._keep(), name=f"keep {program.name}")

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY

    async def wait_ready(self) -> None:
        """Return once the process is healthy.

        Raises:
            ProcessFailedError: it ended `STARTS_BEFORE_GIVING_UP` times without having been healthy.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_ready or self._failed_starts >= STARTS_BEFORE_GIVING_UP)
        if not self.is_ready:
            what = f"stopped {self._failed_starts} times while starting ({self.last_exit})"
            raise ProcessFailedError(self.program.name, what=what, log=self.program.log)

    async def stop(self) -> None:
        """Stop the process: its signal, then SIGKILL after its grace. Safe to call again."""
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._process is not None:
            await _end(self._process, self.program)
            self._process = None
        self._set(State.STOPPED, pid=None)

    def kill(self) -> None:
        """Kill the process at once and for good; `stop` then has nothing to wait for."""
        self._task.cancel()
        if self.pid is not None:
            _kill_group(self.pid)

    async def _keep(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            self._healthy_since = None
            try:
                self.last_exit = await self._run_once()
            except (StackError, OSError) as error:  # no start at all, for lack of memory perhaps
                self.last_exit = str(error)
            self.exits += 1
            if self._healthy_since is None:
                self._failed_starts += 1
            elif time.monotonic() - self._healthy_since > HEALTHY_AFTER:
                backoff = FIRST_BACKOFF
            self._set(State.RESTARTING, pid=None)
            await self._tell()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF)

    async def _run_once(self) -> str:
        """Run the process until it ends; return why it did."""
        await self.program.prepare()
        self._process = await launch(self.program)
        self._set(State.STARTING, pid=self._process.pid)
        health = asyncio.create_task(self._follow_health(), name=f"health of {self.program.name}")
        try:
            code = await self._process.wait()
        finally:
            health.cancel()
        _kill_group(self._process.pid)
        self._process = None
        return _exit_words(code)

    async def _follow_health(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT):
                    await self.program.probe()
            except Exception:  # noqa: BLE001 - whatever a probe raises means "not healthy"; the next one follows
                if self.state is State.READY:
                    self._set(State.UNHEALTHY, pid=self.pid)
                await asyncio.sleep(0.1)
                continue
            if self.state is not State.READY:
                self._failed_starts = 0
                self._healthy_since = self._healthy_since or time.monotonic()
                self._set(State.READY, pid=self.pid)
                await self._tell()
            await asyncio.sleep(PROBE_EVERY)

    def _set(self, state: State, *, pid: int | None) -> None:
        if state is State.STARTING:
            self.started_at = time.monotonic()
        if (state, pid) != (self.state, self.pid):
            self.state, self.pid = state, pid
            self._on_change(self)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _end(process: asyncio.subprocess.Process, program: Program) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(program.stop_signal)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(program.stop_grace):
            await process.wait()
    _kill_group(process.pid)
    await process.wait()


def _kill_group(pid: int) -> None:
    """Kill a process and what it started; each has a session, hence a group, of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
