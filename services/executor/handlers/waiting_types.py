"""Node types that wait for people and events (services.executor.engine.waits): what their configs hold."""

from typing import Any

from pydantic import Field

from services.executor.handlers.base import ConfigModel, NodeType

_MAX_SECONDS = 366 * 24 * 3600


def _timeout() -> Any:
    return Field(
        None,
        gt=0,
        le=_MAX_SECONDS,
        title="Time-out",
        description="Seconds after which the port `timeout` is taken, or the node fails if nothing is connected to it.",
    )


class ApprovalConfig(ConfigModel):
    """What to ask, and whom."""

    title: str = Field(min_length=1, max_length=500, title="Title", description="What people are asked.")
    form: dict[str, Any] | None = Field(
        None, title="Form", description="JSON Schema of the data that comes with the decision."
    )
    choices: list[str] = Field(
        ["approve", "reject"], min_length=1, max_length=20, title="Choices", description="What may be decided."
    )
    approvers: list[str] | None = Field(
        None,
        max_length=100,
        title="Approvers",
        description="Ids, e-mail addresses or roles of users: only they may answer, logged in. Left out: every editor.",
    )
    timeout_seconds: float | None = _timeout()


class ApprovalOutput(ConfigModel):
    """What was decided; all null at the port `timeout`."""

    decision: str | None = Field(title="Decision", description="One of the choices.")
    data: Any = Field(title="Data", description="By the form.")
    by: str | None = Field(title="By", description="Id of the user who answered; null when it was by token.")


class WaitForEventConfig(ConfigModel):
    """What to wait for."""

    payload_schema: dict[str, Any] | None = Field(
        None, alias="schema", title="Schema", description="JSON Schema that the payload has to fulfil."
    )
    timeout_seconds: float | None = _timeout()


APPROVAL = NodeType(
    name="approval",
    title="Approval",
    help="Waits until a person has decided.",
    icon="user-check",
    category="logic",
    config=ApprovalConfig,
    output=ApprovalOutput,
    ports=("out", "timeout"),
    effect="read",
)
WAIT_FOR_EVENT = NodeType(
    name="wait_for_event",
    title="Wait for event",
    help="Waits until a program outside says that something has happened.",
    icon="webhook",
    category="logic",
    config=WaitForEventConfig,
    output={"title": "Payload", "description": "What came; null at the port `timeout`."},
    ports=("out", "timeout"),
    effect="read",
)
