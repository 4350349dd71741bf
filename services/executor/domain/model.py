"""What the executor's use cases speak of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.executor.engine.graph import Graph
from services.executor.engine.state import Failure, NodeStatus, RunStatus, Usage
from services.kit.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, PermissionDeniedError


class RunNotFoundError(NotFoundError):
    """No such run in the project."""

    reason = "RUN_NOT_FOUND"

    def __init__(self, run_id: object) -> None:
        super().__init__(f"There is no run {run_id} in this project.", metadata={"resource": "run", "id": str(run_id)})


class InputTooLargeError(InvalidArgumentError):
    """A run's input is over the limit."""

    reason = "INPUT_TOO_LARGE"


class RunNotEndedError(FailedPreconditionError):
    """What is asked for needs a run that has ended."""

    reason = "RUN_NOT_ENDED"

    def __init__(self, run_id: object) -> None:
        super().__init__(f"The run {run_id} has not ended. Wait for it, or cancel it first.")


class EffectsWouldRepeatError(FailedPreconditionError):
    """Going again over a run would repeat effects that have happened or may have."""

    reason = "EFFECTS_WOULD_REPEAT"

    def __init__(self, places: Sequence[tuple[str, str]]) -> None:
        names = [f"{path}/{key}" if path else key for path, key in places]
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        super().__init__(
            f"These node executions have acted on the outside and would again: {shown}. Repeat with `confirm`, or give "
            "their outputs in `overrides`.",
            # An error travels in the trailer of a call, which has little room.
            metadata={"node_executions": ",".join(names)[:2000], "count": str(len(names))},
        )


class InvalidPriorityError(InvalidArgumentError):
    """A run's priority is out of range."""

    reason = "INVALID_PRIORITY"

    def __init__(self, priority: int) -> None:
        super().__init__(f"The priority {priority} is out of range; give one from -100 to 100.")


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node execution by name."""

    run_id: UUID
    node_key: str
    item_path: str = ""

    @property
    def place(self) -> str:
        """The name within the run, as people write it."""
        return f"{self.item_path}/{self.node_key}" if self.item_path else self.node_key


class NodeNotFoundError(NotFoundError):
    """The run has no such node execution, or not yet."""

    reason = "NODE_NOT_FOUND"

    def __init__(self, ref: NodeRef) -> None:
        super().__init__(f"The run has no node execution {ref.place[:200]!r}, or not yet.")


class NodeNotWaitingError(FailedPreconditionError):
    """A node execution does not wait for an answer: not yet, or not any more."""

    reason = "NODE_NOT_WAITING"

    def __init__(self, ref: NodeRef) -> None:
        super().__init__(f"The node execution {ref.place[:200]!r} waits for no answer, or has one already.")


class NotAnApproverError(PermissionDeniedError):
    """The node's `approvers` do not include who answers."""

    reason = "NOT_AN_APPROVER"

    def __init__(self, node_key: str) -> None:
        super().__init__(f"Only those whom the node {node_key!r} names as `approvers` may answer it.")


class EventNotFoundError(NotFoundError):
    """A token that nobody made, or of what is not there any more."""

    reason = "EVENT_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("Nothing waits for this event. Check the address.")


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """What a worker tells of itself with each heartbeat."""

    worker_id: str
    host: str
    draining: bool
    slots: int
    """Node executions it runs at a time."""
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version in the form the engine runs."""

    id: UUID
    project_id: UUID
    workflow_id: UUID
    workflow_name: str
    number: int
    """0 = frozen draft."""
    definition: bytes
    """As it came from the workflows service; opaque here."""
    graph: Graph


@dataclass(frozen=True, slots=True)
class VersionSelector:
    """Which version to run: a number, the newest, or the draft. Default: the newest, or the draft if there is none."""

    number: int | None = None
    latest: bool = False
    draft: bool = False


@dataclass(frozen=True, slots=True)
class RerunAsk:
    """How to go again over a run. Places are (item path, node key)."""

    start: tuple[str, str] | None
    """None = from what did not succeed."""
    overrides: dict[tuple[str, str], bytes]
    """JSON outputs in place of running these nodes."""
    input_json: bytes | None
    """None = the input of the earlier run."""
    vars_json: bytes | None
    """None = the variables of the earlier run."""
    selector: VersionSelector | None
    """None = the version of the earlier run."""
    confirm: bool
    """Effects may be repeated."""

    def content(self) -> str:
        """What tells one request from another."""
        content = (self.start, sorted(self.overrides.items()), self.input_json, self.selector, self.confirm)
        # What came later takes part only where it is given, so that older hashes stay true.
        return repr(content if self.vars_json is None else (*content, self.vars_json))


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as people see it. Times are UTC; `input`, `output`, `vars` are JSON text, None when absent or left out."""

    id: UUID
    project_id: UUID
    workflow_id: UUID
    version_id: UUID
    version_number: int
    workflow_name: str
    status: RunStatus
    input: bytes | None
    output: bytes | None
    error: Failure | None
    usage: Usage
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    sequence: int = 0
    request_hash: bytes | None = None
    rerun_of: UUID | None = None
    vars: bytes | None = None


@dataclass(frozen=True, slots=True)
class NodeExecutionView:
    """A node execution as people see it."""

    node_key: str
    item_path: str
    type: str
    status: NodeStatus
    attempt: int
    input: bytes | None
    output: bytes | None
    error: Failure | None
    usage: Usage
    port: str
    worker: str
    handler_seconds: float | None
    """Time that the handler took, by the worker's clock."""
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    wait_epoch: int | None = None
    """Set while it waits for an answer that may come by token."""


@dataclass(frozen=True, slots=True)
class OpenWait:
    """A wait of a node execution that may be answered by token."""

    ref: NodeRef
    epoch: int


@dataclass(frozen=True, slots=True)
class EventView:
    """A numbered event."""

    sequence: int
    type: str
    at: datetime
    node_key: str
    item_path: str
    data: bytes
    """JSON object."""


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events of a run in order, and how far it had come when they were read."""

    events: list[EventView]
    last: int
    """Number of the run's last event."""
    is_terminal: bool
    """It has ended: no event comes after `last`."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; empty fields select all."""

    statuses: tuple[RunStatus, ...] = ()
    workflow_id: UUID | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a run's row holds beyond its state."""

    workflow_name: str
    request_hash: bytes | None
    started_by: UUID | None
    timeout_seconds: int
    rerun_of: UUID | None = None
    rerun: bytes | None = None
    """JSON of how it goes again over `rerun_of`."""
    concurrency_key: str | None = None
    """Of a run that waits for its turn; None = it starts at once."""
