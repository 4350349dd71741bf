"""The child process of `llamacpp_server` as its parent sees it: start, stop, and what it said last.

Started with `subprocess`, not with asyncio's: with uvloop 0.23 and grpcio 1.85, 8 of 14 children that were started
while another thread imported `huggingface_hub` died of a segmentation fault before their first line, none of 6 since.
What differs is that uvloop forks, which runs at-fork handlers (gRPC has some), and `subprocess` on Linux does not.
Waiting happens in threads.
"""

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from typing import IO

_START_SECONDS = 300.0
"""A model of tens of gigabytes from a cold disk."""
_STOP_SECONDS = 5.0
_TAIL_LINES = 20


class LoadFailed(Exception):
    """The process ended before it was ready; the message is its last line."""


class LlamaCppProcess:
    """A running server. It ends with `stop`, or when this process does."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, api_key: str, tail: deque[str]) -> None:
        self._process = process
        self.url = url
        self.api_key = api_key
        self._tail = tail

    @property
    def is_running(self) -> bool:
        """The process has not ended."""
        return self._process.poll() is None

    @property
    def last_lines(self) -> list[str]:
        """The end of its log: warnings and errors, no prompts."""
        return list(self._tail)

    @classmethod
    async def start(cls, parameters: Mapping[str, str | int | bool]) -> "LlamaCppProcess":
        """Start and wait until the model is loaded. Raises LoadFailed, or TimeoutError after five minutes."""
        api_key = secrets.token_urlsafe(24)
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        process, reader = _spawn(tail)
        url = ""
        try:
            async with asyncio.timeout(_START_SECONDS):
                url = await asyncio.to_thread(_introduce, process, {**parameters, "api_key": api_key})
        finally:
            if not url:  # Also when cancelled: a child that nobody knows must not stay.
                process.kill()
                await asyncio.to_thread(_end, process)
        if not url:
            await asyncio.to_thread(reader.join, _STOP_SECONDS)
            silent = f"it ended without a word (status {process.returncode})"
            raise LoadFailed(next((line for line in reversed(tail) if line), silent))
        return cls(process, url, api_key, tail)

    async def stop(self) -> None:
        """End it; answers under way break off. Idempotent."""
        await asyncio.to_thread(_end, self._process)


def _spawn(tail: deque[str]) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.llm.backends.llamacpp_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Signals to the service's group are for the service, which then lets answers finish.
        start_new_session=True,
    )
    reader = threading.Thread(target=_keep_tail, args=(process.stderr, tail), daemon=True, name="llamacpp-log")
    reader.start()
    return process, reader


def _keep_tail(stream: IO[bytes], tail: deque[str]) -> None:
    """Read until the process ends; a pipe that nobody reads would stop it."""
    with stream:
        for line in stream:
            tail.append(line[:300].decode(errors="replace").rstrip())


def _introduce(process: subprocess.Popen[bytes], parameters: Mapping[str, str | int | bool]) -> str:
    """Send the parameters, wait for the URL. Empty when the process ends instead."""
    assert process.stdin is not None  # noqa: S101 - made with pipes; for type checkers
    assert process.stdout is not None  # noqa: S101 - the same
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(parameters).encode() + b"\n")
        process.stdin.flush()
    return process.stdout.readline().decode().strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101 - made with pipes; for type checkers
    assert process.stdout is not None  # noqa: S101 - the same
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
