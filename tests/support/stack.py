"""The whole local stack as a process, for tests that go through the front door or kill what is behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deploy.local.errors import last_lines
from tests.support.waiting import await_until

# For stacks in which no model is called: loading one would take the processor from what is looked at.
NO_MODELS = '[{"name": "none", "backend": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}]'
_ROOT = Path(__file__).resolve().parent.parent.parent


class LocalStack:
    """A stack started by `python -m deploy.local --no-sample` in a home of its own. Use `running_stack`."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process) -> None:
        self.home = home
        self.launcher = process

    @property
    def state(self) -> dict[str, Any]:
        """What stack.json says now; empty before the first start."""
        try:
            content: dict[str, Any] = json.loads((self.home / "stack.json").read_text())
        except FileNotFoundError:
            return {}
        return content

    @property
    def gateway_url(self) -> str:
        return str(self.state["gateway"])

    @property
    def admin(self) -> dict[str, str]:
        """`email` and `password` of the administrator."""
        admin: dict[str, str] = self.state["admin"]
        return admin

    def process(self, service: str, replica: int = 0) -> dict[str, Any]:
        """The entry of one process in stack.json; its `pid` is None while it is down."""
        for entry in self.state["processes"]:
            if (entry["service"], entry["replica"]) == (service, replica):
                return dict(entry)
        raise LookupError(f"no {service}-{replica} in {self.home / 'stack.json'}")

    def log(self, service: str, replica: int = 0) -> str:
        """What a process has logged."""
        return Path(self.process(service, replica)["log"]).read_text(errors="replace")

    def kill(self, service: str, replica: int = 0, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process and return its id. A process that is down at the moment is an AssertionError."""
        pid = self.process(service, replica)["pid"]
        assert pid is not None, f"{service}-{replica} is down already"
        os.kill(pid, number)
        return int(pid)

    async def until_ready(self, within: float = 120.0) -> None:
        """Wait until stack.json, as this launcher wrote it, says that everything is healthy."""

        def is_ready() -> bool:
            code = self.launcher.returncode
            if code is not None:
                raise RuntimeError(f"the launcher ended with {code}:\n{(self.home / 'launcher.log').read_text()}")
            return self.state.get("launcher") == self.launcher.pid and self.state["ready"]

        await await_until(is_ready, within=within)

    async def until_back(self, killed_pid: int, service: str, replica: int = 0, within: float = 30.0) -> None:
        """Wait until the process that took a killed one's place is healthy."""

        def is_back() -> bool:
            entry = self.process(service, replica)
            return entry["pid"] not in (None, killed_pid) and entry["state"] == "ready"

        try:
            await await_until(is_back, within=within)
        except AssertionError as error:
            said = last_lines(Path(self.process(service, replica)["log"]), 40)
            raise AssertionError(
                f"{service}-{replica} is not back: {self.process(service, replica)}\n{said}"
            ) from error

    async def stop(self, number: signal.Signals = signal.SIGTERM, within: float = 60.0) -> int:
        """Signal the launcher, wait for its end, return its exit code. Safe to call again."""
        if self.launcher.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.launcher.send_signal(number)
        async with asyncio.timeout(within):
            return await self.launcher.wait()


async def start_stack(home: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> LocalStack:
    """Start a stack and return at once; what the launcher says goes to `home/launcher.log`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    with _launcher_log(home) as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.local", "--home", str(home)),
            *(arguments or ("--no-sample",)),
            cwd=_ROOT,
            env=inherited | dict(environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return LocalStack(home, process)


def _launcher_log(home: Path) -> BinaryIO:
    home.mkdir(parents=True, exist_ok=True)
    return (home / "launcher.log").open("ab")


@asynccontextmanager
async def running_stack(
    home: Path, *, replicas: Mapping[str, int] | None = None, environ: Mapping[str, str] | None = None
) -> AsyncIterator[LocalStack]:
    """Run a stack for the time of the context; yields it when everything is healthy."""
    counts = ",".join(f"{service}={count}" for service, count in (replicas or {}).items())
    stack = await start_stack(home, "--no-sample", *(["--replicas", counts] if counts else []), environ=environ)
    try:
        await stack.until_ready()
        yield stack
    finally:
        await stack.stop()
