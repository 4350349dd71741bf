"""The child process of `llamacpp_server` as its parent sees it: start, stop, and what it said last."""

import asyncio
import contextlib
import json
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping

_START_SECONDS = 300.0
"""A model of tens of gigabytes from a cold disk."""
_STOP_SECONDS = 5.0
_TAIL_LINES = 20


class LoadFailed(Exception):
    """The process ended before it was ready; the message is its last line."""


class LlamaCppProcess:
    """A running server. It ends with `stop`, or when this process does."""

    def __init__(self, process: Process, url: str, api_key: str, tail: deque[str], reading: asyncio.Task[None]) -> None:
        self._process = process
        self.url = url
        self.api_key = api_key
        self._tail = tail
        self._reading = reading

    @property
    def is_running(self) -> bool:
        """The process has not ended."""
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def last_lines(self) -> list[str]:
        """The end of its log: warnings and errors, no prompts."""
        return list(self._tail)

    @classmethod
    async def start(cls, parameters: Mapping[str, str | int | bool]) -> "LlamaCppProcess":
        """Start and wait until the model is loaded. Raises LoadFailed, or TimeoutError after five minutes."""
        api_key = secrets.token_urlsafe(24)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.llm.backends.llamacpp_server",
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # Signals to the service's group are for the service, which then lets answers finish.
            start_new_session=True,
        )
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        reading = asyncio.create_task(_keep_tail(process, tail))
        url = ""
        try:
            async with asyncio.timeout(_START_SECONDS):
                url = await _introduce(process, {**parameters, "api_key": api_key})
        finally:
            if not url:  # Also when cancelled: a child that nobody knows must not stay.
                await _end(process, reading)
        if not url:
            raise LoadFailed(next((line for line in reversed(tail) if line), "it ended without a word"))
        return cls(process, url, api_key, tail, reading)

    async def stop(self) -> None:
        """End it; answers under way break off. Idempotent."""
        await _end(self._process, self._reading)


async def _introduce(process: Process, parameters: Mapping[str, str | int | bool]) -> str:
    """Send the parameters, wait for the URL. Empty when the process ends instead."""
    assert process.stdin is not None  # noqa: S101 - made with pipes; for type checkers
    assert process.stdout is not None  # noqa: S101 - the same
    # It may have ended already (RuntimeError is uvloop's word for that); then it says nothing below.
    with contextlib.suppress(ConnectionError, RuntimeError):
        process.stdin.write(json.dumps(parameters).encode() + b"\n")
        await process.stdin.drain()
    return (await process.stdout.readline()).decode().strip()


async def _keep_tail(process: Process, tail: deque[str]) -> None:
    assert process.stderr is not None  # noqa: S101 - made with a pipe, for type checkers
    while data := await process.stderr.read(65536):
        tail.extend(line[:300] for line in data.decode(errors="replace").splitlines())


async def _end(process: Process, reading: asyncio.Task[None]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    await reading
