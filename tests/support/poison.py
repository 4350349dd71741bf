"""Node types that do their workers harm, for the processes of a stack: see `installed`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result


class Config(ConfigModel):
    """How much."""

    amount: int = Field(0, description="Bytes, where it is about bytes.")
    seconds: float = Field(0, description="How long first.")


class NobodyForeseesError(BaseException):
    """No Exception."""


async def kill(context: Context, config: Config) -> Result:
    """End the worker at once."""
    await asyncio.sleep(config.seconds)
    os.kill(os.getpid(), signal.SIGKILL)
    return Result(None)


async def spin(context: Context, config: Config) -> Result:
    """Never give the event loop back."""
    while True:
        pass


async def block(context: Context, config: Config) -> Result:
    """Give the event loop back late."""
    time.sleep(config.seconds)  # noqa: ASYNC251 - that is the harm
    return Result("late")


async def boast(context: Context, config: Config) -> Result:
    """Return a large output."""
    return Result("x" * config.amount)


async def throw(context: Context, config: Config) -> Result:
    """Raise what no one catches."""
    raise NobodyForeseesError


async def eat(context: Context, config: Config) -> Result:
    """Take memory bit by bit and keep it."""
    eaten: list[bytearray] = []
    while len(eaten) * 2**20 < config.amount:
        eaten.append(bytearray(os.urandom(2**20)))
        await asyncio.sleep(0.001)
    await asyncio.sleep(3600)
    return Result(len(eaten))


def _type(name: str, handler: Any) -> NodeType:
    return NodeType(
        name=f"poison_{name}",
        title=name,
        help="Does harm.",
        icon="skull",
        category="debug",
        config=Config,
        output={},
        handler=handler,
        default_timeout_seconds=600,
    )


KILL, SPIN, BLOCK = _type("kill", kill), _type("spin", spin), _type("block", block)
BOAST, THROW, EAT = _type("boast", boast), _type("throw", throw), _type("eat", eat)


def installed(folder: Path) -> dict[str, str]:
    """Make a distribution with these as entry points; the environment of processes that shall find it."""
    info = folder / "headrace_poison-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: headrace-poison\nVersion: 1.0\n")
    names = ("KILL", "SPIN", "BLOCK", "BOAST", "THROW", "EAT")
    lines = [f"{name.lower()} = tests.support.poison:{name}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[headrace.node_types]", *lines]) + "\n")
    return {"PYTHONPATH": str(folder)}
