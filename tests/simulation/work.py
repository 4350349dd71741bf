"""The node type that simulated workflows are made of, and the outside world that its effects happen in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from headrace.executor.v1 import worker_pb2 as pb

from services.executor.handlers.base import (
    ConfigModel,
    Context,
    NodeType,
    Result,
    RetryableError,
    TerminalError,
    TokenSink,
    Usage,
)
from services.executor.handlers.container_types import LOOP, MAP
from services.executor.handlers.inline_types import CONDITION, DELAY, SWITCH, TRANSFORM
from services.executor.transport.convert import node_kind
from services.executor.worker.runner import Runner
from tests.simulation.trace import Trace, Violation

_CLAIM: ContextVar[tuple[str, int, str]] = ContextVar("claim")
"""Worker, epoch and claim under which a handler runs."""

Name = tuple[UUID, str, str]
"""Run, node key, item path."""


@dataclass(frozen=True)
class Execution:
    """One call of a handler."""

    name: Name
    worker: str
    epoch: int
    claim_id: str


class Ledger:
    """What has happened outside. It honours idempotency keys and outlives every crash."""

    def __init__(self, trace: Trace, fail: Callable[[Violation], None], kill: Callable[[str], None]) -> None:
        self.executions: list[Execution] = []
        self.keys: dict[Name, str] = {}
        """Key of each node execution's effect."""
        self.observe: Callable[[Execution], None] = lambda _: None
        """Told of each effect."""
        self._owners: dict[str, Name] = {}
        self._trace = trace
        self._fail = fail
        self._kill = kill

    def begin(self, context: Context) -> int:
        """A handler is called; returns its number."""
        self.executions.append(Execution((context.run_id, context.node_key, context.item_path), *_CLAIM.get()))
        return len(self.executions) - 1

    def kill(self, number: int) -> None:
        """A handler takes its worker down with it."""
        self._kill(self.executions[number].worker)

    def effect(self, number: int, key: str) -> None:
        """An effect reaches the target, which takes a key that it knows for a repetition."""
        name = self.executions[number].name
        self._trace.note(f"effect {_short(name)} execution={number}")
        self.observe(self.executions[number])
        if self.keys.setdefault(name, key) != key:
            self._fail(Violation("one effect", f"{_short(name)} had an effect under {self.keys[name]} and under {key}"))
        if self._owners.setdefault(key, name) != name:
            self._fail(Violation("one effect", f"{_short(name)} and {_short(self._owners[key])} share the key {key}"))


class WorkConfig(ConfigModel):
    """What an attempt does."""

    failures: int
    fails_by: Literal["error", "terminal", "hanging", "stuck", "unstorable", "killing"]
    before: float
    after: float
    value: Any = None
    reads: bool = False
    """It has no effect."""
    retry_after: float | None = None


async def work(context: Context, config: WorkConfig) -> Result:
    """Have an effect or none, then succeed or fail; the number of the execution comes back with either."""
    ledger: Ledger = context.services
    number = ledger.begin(context)
    context.emit_token(str(number))
    if config.before:
        await asyncio.sleep(config.before)
    if not config.reads:
        ledger.effect(number, context.idempotency_key)
    if config.after:
        await asyncio.sleep(config.after)
    if config.failures != -1 and context.attempt > config.failures:
        return Result({"execution": number, "value": config.value}, usage=Usage(calls=1))
    details = {"execution": number}
    if config.fails_by == "unstorable":
        return Result("unstorable")  # see database.UNSTORABLE
    if config.fails_by == "killing":
        ledger.kill(number)
    if config.fails_by in ("hanging", "killing"):
        await asyncio.sleep(3600)
    while config.fails_by == "stuck":
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
    if config.fails_by == "terminal":
        raise TerminalError("BROKEN", "It is broken.", details=details)
    raise RetryableError("BROKEN", "It broke.", details=details, retry_after=config.retry_after)


WORK = NodeType(
    name="work",
    title="Work",
    help="Has an effect, or reads.",
    icon="hammer",
    category="test",
    config=WorkConfig,
    output={},
    handler=work,
    effect_of=lambda config: "read" if config["reads"] else "effect",
)
NODE_TYPES = {node_type.name: node_type for node_type in (WORK, CONDITION, DELAY, LOOP, MAP, SWITCH, TRANSFORM)}
KINDS = {name: node_kind(node_type) for name, node_type in NODE_TYPES.items()}


class ObservedRunner(Runner):
    """The real runner, which lets the ledger know under which claim a handler is called."""

    worker_id = ""

    async def run(self, job: pb.Job, emit_token: TokenSink) -> pb.Report:
        """See Runner."""
        _CLAIM.set((self.worker_id, job.epoch, job.claim_id))
        return await super().run(job, emit_token)


def _short(name: Name) -> str:
    return f"{name[0].hex[:6]}/{name[1]}{'/' if name[2] else ''}{name[2]}"
