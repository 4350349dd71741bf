"""A run in memory: its nodes' states, the joins counted down, and what has changed since the last commit.

The rows in PostgreSQL are the truth; this is their working copy, valid as long as the run row's `version` has not
moved. Transitions change it in place; when the commit of a change fails, the copy is thrown away and read again.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from uuid import UUID

import orjson

from services.executor.engine.graph import Graph


class RunStatus(IntEnum):
    """State of a run. Numbers as in the contract and the tables."""

    PENDING = 1
    RUNNING = 2
    WAITING = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6


class NodeStatus(IntEnum):
    """State of a node execution. Numbers as in the contract and the tables."""

    PENDING = 1
    READY = 2
    RUNNING = 3
    WAITING = 4
    SUCCEEDED = 5
    FAILED = 6
    SKIPPED = 7
    CANCELLED = 8


RUN_TERMINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})
NODE_TERMINAL = frozenset({NodeStatus.SUCCEEDED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a node or a run failed: a stable reason and a sentence for people."""

    reason: str
    message: str
    node_key: str = ""
    retryable: bool = False
    details: Any = None

    def as_json(self) -> dict[str, Any]:
        """The stored and published form."""
        found: dict[str, Any] = {"reason": self.reason, "message": self.message, "retryable": self.retryable}
        if self.node_key:
            found["node_key"] = self.node_key
        if self.details:
            found["details"] = self.details
        return found


@dataclass(frozen=True, slots=True)
class Usage:
    """Model consumption."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.calls + other.calls,
        )


NO_USAGE = Usage()


@dataclass(slots=True)
class NodeState:
    """One node execution."""

    status: NodeStatus = NodeStatus.PENDING
    epoch: int = 0
    """Fencing number: raised at every claim and every take-away."""
    failures: int = 0
    """Attempts that ended in a failure; the present attempt is one more."""
    claims: int = 0
    """Claims since the last failure."""
    worker: str = ""
    claim_id: str = ""
    """Of the request that claimed it; a repetition of that request gets the same job again."""
    output: bytes | None = None
    """JSON; None unless it has one."""
    port: str = ""
    """Output port that became live, once decided."""
    error: Failure | None = None
    """The last failure, also of an attempt that was retried."""
    input: bytes | None = None
    """JSON: the config after templates, as the worker showed it."""
    usage: Usage = NO_USAGE
    handler_seconds: float | None = None
    """Time that the handler took in the last attempt, by the worker's clock; shown only."""
    due_in: float | None = None
    """Seconds from the commit until the sweeper looks at it: timer, lease end, or next wake-up."""
    due_at: str | None = None
    """RFC 3339 time in place of `due_in`."""
    value: Any = None
    """The parsed output, when it was needed."""
    parsed: bool = False

    def output_value(self) -> Any:
        """The parsed output."""
        if not self.parsed:
            self.value = orjson.loads(self.output) if self.output is not None else None
            self.parsed = True
        return self.value


@dataclass(slots=True)
class RunState:
    """One run. `version` counts commits; 0 = not committed yet."""

    run_id: UUID
    project_id: str
    workflow_id: str
    version_id: str
    version_number: int
    graph: Graph
    input: bytes
    version: int = 0
    status: RunStatus = RunStatus.PENDING
    sequence: int = 0
    """Number of the last event."""
    output: bytes | None = None
    error: Failure | None = None
    usage: Usage = NO_USAGE
    traceparent: str = ""
    nodes: list[NodeState] = field(default_factory=list)
    waiting_edges: list[int] = field(default_factory=list)
    """Per node: incoming edges not decided yet."""
    live_edges: list[int] = field(default_factory=list)
    """Per node: incoming edges decided live."""
    open_nodes: int = 0
    """Nodes not in a terminal state."""
    active_nodes: int = 0
    """Nodes ready or running."""
    touched: dict[int, None] = field(default_factory=dict)
    """Nodes changed since the last commit, in order."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Events since the last commit."""
    ready: list[int] = field(default_factory=list)
    """Worker nodes that became ready since the last commit."""
    inline: list[int] = field(default_factory=list)
    """Inline nodes to be evaluated."""
    held_bytes: int = 0
    """Outputs in memory."""
    parsed_input: Any = None
    input_is_parsed: bool = False

    def __post_init__(self) -> None:
        count = len(self.graph.nodes)
        if not self.nodes:
            self.nodes = [NodeState() for _ in range(count)]
        self.waiting_edges = list(self.graph.incoming)
        self.live_edges = [0] * count
        self.open_nodes = count

    @property
    def is_terminal(self) -> bool:
        """The run has ended."""
        return self.status in RUN_TERMINAL

    def input_value(self) -> Any:
        """The parsed input."""
        if not self.input_is_parsed:
            self.parsed_input = orjson.loads(self.input)
            self.input_is_parsed = True
        return self.parsed_input

    def emit(self, event: str, position: int | None = None, **data: Any) -> None:
        """Record an event; it gets the next number."""
        self.sequence += 1
        entry: dict[str, Any] = {"sequence": self.sequence, "type": event}
        if position is not None:
            entry["node_key"] = self.graph.nodes[position].key
        if data:
            entry["data"] = data
        self.events.append(entry)

    def clear_changes(self) -> None:
        """Forget what has changed: it is committed."""
        self.touched.clear()
        self.events.clear()
        self.ready.clear()

    def size_bytes(self) -> int:
        """Rough memory of the run, for the cache's budget."""
        return 1000 + 400 * len(self.nodes) + len(self.input) + self.held_bytes

    def restore(self) -> None:
        """Recompute joins and counters from `nodes` as read from their rows."""
        self.open_nodes = self.active_nodes = 0
        for position, node in enumerate(self.nodes):
            self.held_bytes += len(node.output or b"")
            if node.status in NODE_TERMINAL:
                for edge in self.graph.outgoing[position]:
                    self.waiting_edges[edge.target] -= 1
                    self.live_edges[edge.target] += edge_is_live(node, edge.port)
                continue
            self.open_nodes += 1
            if node.status in (NodeStatus.READY, NodeStatus.RUNNING):
                self.active_nodes += 1
            kind = self.graph.nodes[position].kind
            if node.status is NodeStatus.READY and kind is not None and kind.inline:
                self.inline.append(position)


def edge_is_live(node: NodeState, port: str) -> bool:
    """Whether a decided node makes an edge from `port` live."""
    return node.port == port and node.status in (NodeStatus.SUCCEEDED, NodeStatus.FAILED)
