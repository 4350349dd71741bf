"""What a node type is, and what a handler receives, returns and raises.

A handler is one async function `(context, config) -> Result`. The worker has resolved the templates and validated the
config by then. A handler raises TerminalError when no further attempt can help and RetryableError when one may; any
other exception counts as retryable under the node's policy, with an outcome that nobody knows. A handler may be
cancelled at any await, and must not hold up the event loop.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class ConfigModel(BaseModel):
    """Base of config models: unknown fields are refused, so that a misspelt option is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Usage:
    """What model calls consumed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A handler's result. `output` is JSON; `port` is the output port that becomes live."""

    output: Any
    port: str = "out"
    usage: Usage = Usage()


class HandlerError(Exception):
    """A failure that the author of the workflow shall read.

    `reason` is UPPER_SNAKE and stable; `message` says what was wrong, where, and what to change, without secrets;
    `details` is a small JSON object such as `{"status": 404}`. `outcome_unknown`: the effect may have happened all the
    same, as when the answer to a request was lost; a node that is delivered at most once then waits for a person.
    """

    retryable = False

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.outcome_unknown = outcome_unknown


class TerminalError(HandlerError):
    """Trying again cannot help: the config or the data must change."""


class RetryableError(HandlerError):
    """Trying again may help. `retry_after` (seconds) is the least wait, such as a server asked for."""

    retryable = True

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(reason, message, details=details, outcome_unknown=outcome_unknown)
        self.retry_after = retry_after


class TokenSink(Protocol):
    """Takes pieces of text that people watch live. Never blocks, never fails; pieces may be lost."""

    def __call__(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """One attempt at one node execution."""

    project_id: str
    run_id: UUID
    node_key: str
    item_path: str
    attempt: int
    """From 1."""
    idempotency_key: str
    """The same for every attempt at this node execution; depends on run, node and item only."""
    grant: str
    """Caller token for this attempt: pass it as `token=` to every call of another service."""
    timeout_seconds: float
    """Longest time the attempt may take; the worker enforces it. Use it for the deadlines of calls."""
    services: Any
    """The clients: `services.executor.handlers.clients.Services`."""
    emit_token: TokenSink


Handler = Callable[[Context, Any], Awaitable[Result]]


Effect = Literal["pure", "read", "idempotent", "effect"]
"""What another run of a node does to the outside: nothing and always the same; nothing; nothing more where the target
honours the idempotency key; it happens again.

The first two may begin before it is known whether their claim, or even their run, is ever committed."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A node type as the catalogue publishes it. Third parties give one as an entry point `headrace.node_types`."""

    name: str
    """What definitions call it, such as `llm_call`."""
    title: str
    help: str
    """One line."""
    icon: str
    category: str
    config: type[BaseModel]
    output: type[BaseModel] | Mapping[str, Any]
    """A model, or a JSON Schema where the output has no fixed shape."""
    handler: Handler | None = None
    """None for inline types, which the engine itself evaluates (services.executor.engine.inline)."""
    ports: tuple[str, ...] = ("out",)
    dynamic_ports_field: str = ""
    """Config field whose items' `port` are further ports."""
    expression_fields: tuple[str, ...] = ()
    """Config fields that are CEL without braces, such as `when` or `cases[].when`. The worker does not resolve them."""
    queue: str = "default"
    """Workers are woken by `headrace.jobs.<queue>.<executor id>`; `…-alone` are queues of suspects, and no type's."""
    default_timeout_seconds: float = 60.0
    secret_fields: tuple[str, ...] = field(default=())
    """Top-level config fields that are not shown as the node's input."""
    effect: Effect = "effect"
    """What running it may do to the outside."""
    effect_of: Callable[[Mapping[str, Any]], Effect] | None = None
    """The same where it depends on the config (templates unresolved); then `effect` is not asked."""
    body_fields: tuple[str, ...] = ()
    """Config fields that hold a definition."""

    @property
    def inline(self) -> bool:
        """Evaluated by the executor; costs no job."""
        return self.handler is None
