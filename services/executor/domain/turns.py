"""Runs that wait for their turn, because their workflow lets only so many go on at a time: first come, first served.

A turn is a place (as those of running nodes): given in a transaction that counts, and given back by the commit that
ends the run. A run that has its turn and has not begun, because its executor was killed in between, keeps it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

import orjson
import structlog

from services.executor.domain.committer import Committer
from services.executor.domain.versions import Versions
from services.executor.engine import decide
from services.executor.engine.graph import RunLimits
from services.executor.engine.state import RunState
from services.kit.errors import DomainError, InvalidArgumentError
from services.kit.expressions import ExpressionError, compile_expression

log = structlog.get_logger(__name__)

_MAX_KEY_LENGTH = 512
LimitsOf = Callable[[UUID], Awaitable[RunLimits | None]]
"""The limits of a version's runs."""


class ConcurrencyKeyError(InvalidArgumentError):
    """The key by which runs take turns cannot be had from the input."""

    reason = "CONCURRENCY_KEY_FAILED"


class TurnStore(Protocol):
    """What is asked about pending runs."""

    async def give_turns(self, workflow_id: UUID | None, limits_of: LimitsOf) -> list[UUID]:
        """Give turns to pending runs of a workflow, or of all, the longest pending first; returns who may begin.

        At no moment do more runs have turns than the limits of their versions say, whoever gives them.
        """
        ...


def concurrency_key(limits: RunLimits | None, run_input: bytes) -> str | None:
    """The key of a new run: None = it begins at once, empty = its workflow has no key. Raises ConcurrencyKeyError."""
    if limits is None or (limits.max_running_runs is None and not limits.key):
        return None
    if not limits.key:
        return ""
    try:
        names = {"input": orjson.loads(run_input)}
        value = compile_expression(limits.key, names=frozenset(names)).evaluate(names)
        key = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (ExpressionError, TypeError) as error:
        raise ConcurrencyKeyError(
            f"The workflow's `limits.concurrency.key` cannot be evaluated on this input: {error}"
        ) from error
    if len(key) > _MAX_KEY_LENGTH or "\x00" in key:
        raise ConcurrencyKeyError(
            f"The workflow's `limits.concurrency.key` gives a text of {len(key)} characters; it may have "
            f"{_MAX_KEY_LENGTH}, none of them NUL."
        )
    # Told from the empty key of workflows that have none.
    return f"={key}"


class Turns:
    """Gives turns when a run has come or ended, and after `interval` seconds without one."""

    def __init__(self, store: TurnStore, versions: Versions, committer: Committer, *, interval: float = 1.0) -> None:
        self._store = store
        self._versions = versions
        self._committer = committer
        self._interval = interval
        self._wanted: set[UUID] = set()
        self._wake = asyncio.Event()

    def moved(self, state: RunState) -> None:
        """A run has been committed; one that has come or ended may give another its turn."""
        if state.graph.limits is not None and (state.is_terminal or state.version == 1):
            self._wanted.add(UUID(state.workflow_id))
            self._wake.set()

    async def give(self, workflow_id: UUID | None = None) -> None:
        """Give the turns there are."""
        for run_id in await self._store.give_turns(workflow_id, self._limits_of):
            try:
                await self._committer.submit(run_id, decide.begin, lambda _, __: None)
            except DomainError as error:
                log.warning("turn_not_used", run_id=str(run_id), reason=error.reason)

    async def _limits_of(self, version_id: UUID) -> RunLimits | None:
        return (await self._versions.get(version_id)).graph.limits

    async def step(self) -> float:
        """Give those that runs have called for, or all if none has for an interval; to be done again at once."""
        try:
            async with asyncio.timeout(self._interval):
                await self._wake.wait()
        except TimeoutError:
            await self.give()
            return 0.0
        self._wake.clear()
        while self._wanted:
            await self.give(self._wanted.pop())
        return 0.0
