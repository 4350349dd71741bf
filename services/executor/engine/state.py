"""A run in memory: its nodes' states, the joins counted down, and what has changed since the last commit.

The rows in PostgreSQL are the truth; this is their working copy, valid as long as the run row's `version` has not
moved. Transitions change it in place; when the commit of a change fails, the copy is thrown away and read again
(`services.executor.engine.restore`).

A run is a tree of scopes. The root is the workflow itself; a container node (`map`, `loop`, `sub_workflow`) holds the
scopes of its items, iterations or call. Scopes that have ended are dropped, their rows stay.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from services.executor import queues
from services.executor.engine.graph import Graph, Node
from services.executor.engine.run_variables import NO_VARIABLES, RunVariables

if TYPE_CHECKING:
    from services.executor.engine.containers import Container


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


SUSPECT_CLAIMS = 2
"""Claims without a result after which a node execution is a suspect, and is run alone."""
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
    item_path: str = ""

    def as_json(self) -> dict[str, Any]:
        """The stored and published form."""
        found: dict[str, Any] = {"reason": self.reason, "message": self.message, "retryable": self.retryable}
        if self.node_key:
            found["node_key"] = self.node_key
        if self.item_path:
            found["item_path"] = self.item_path
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
class NodeRow:
    """What is stored of one node execution."""

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
    """JSON: the config after templates; of a worker node, as the worker showed it."""
    usage: Usage = NO_USAGE
    handler_seconds: float | None = None
    """Time that the handler took in the last attempt, by the worker's clock; shown only."""
    answer: str = ""
    """What the request is known by that answered its last wait."""


class NodeState(NodeRow):
    """One node execution: a node in a scope."""

    __slots__ = ("container", "due_at", "due_in", "open_scopes", "parsed", "position", "scope", "spec", "value")

    def __init__(self, spec: Node, scope: "Scope", position: int) -> None:
        NodeRow.__init__(self)
        self.spec = spec
        self.scope = scope
        self.position = position
        """Index in the scope's graph."""
        self.container: Container | None = None
        """What has come of a container that runs."""
        self.open_scopes: dict[str, Scope] | None = None
        """A container's, by path; None before the first."""
        self.due_in: float | None = None
        """Seconds from the commit until the sweeper looks at it: timer or time-out."""
        self.due_at: str | None = None
        """RFC 3339 time in place of `due_in`."""
        self.value: Any = None
        """The parsed output, when it was needed."""
        self.parsed = False

    # A node execution is itself and no other with the same values: sets of them go by identity.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def path(self) -> str:
        """Where it is inside maps, loops and sub-workflows; empty at the top."""
        return self.scope.path

    @property
    def is_inline(self) -> bool:
        """Evaluated by the engine, not by workers."""
        return self.spec.kind is not None and self.spec.kind.inline

    @property
    def queue(self) -> str:
        """Where it waits for a worker when it is ready; empty for what workers do not run."""
        kind = self.spec.kind
        if kind is None or kind.inline:
            return ""
        return queues.alone(kind.queue) if self.claims >= SUSPECT_CLAIMS else kind.queue

    def output_value(self) -> Any:
        """The parsed output."""
        if not self.parsed:
            self.value = orjson.loads(self.output) if self.output is not None else None
            self.parsed = True
        return self.value

    def adopt(self, row: NodeRow) -> None:
        """Take over what is stored."""
        for name in NodeRow.__slots__:
            setattr(self, name, getattr(row, name))


class Scope:
    """One execution of one graph: of the workflow, of a map's item, of a loop's iteration, of a sub-workflow."""

    __slots__ = (
        "calls",
        "container",
        "graph",
        "input",
        "live_edges",
        "names",
        "nodes",
        "number",
        "open_nodes",
        "parsed_input",
        "path",
        "waiting_edges",
    )

    def __init__(
        self,
        graph: Graph,
        *,
        path: str = "",
        container: NodeState | None = None,
        number: int = 0,
        names: Mapping[str, Any] | None = None,
        input: bytes | None = None,
        calls: int = 0,
    ) -> None:
        self.graph = graph
        self.path = path
        self.container = container
        """The node that it belongs to; None for the root."""
        self.number = number
        """Of the item or iteration, from 0."""
        self.names: Mapping[str, Any] = names or {}
        """What `item`, `index` and `state` are inside."""
        self.input = input
        """JSON. None where the scope sees what the one around it sees; a workflow has an input of its own."""
        self.calls = calls
        """Sub-workflows that it lies in."""
        self.parsed_input: Any = None
        self.nodes = [NodeState(spec, self, position) for position, spec in enumerate(graph.nodes)]
        self.waiting_edges = list(graph.incoming)
        """Per node: incoming edges not decided yet."""
        self.live_edges = [0] * len(graph.nodes)
        """Per node: incoming edges decided live."""
        self.open_nodes = len(graph.nodes)
        """Nodes not in a terminal state."""

    def outwards(self) -> "Iterator[Scope]":
        """The scopes whose nodes and names are seen here: this one, then those around it up to its workflow's."""
        scope = self
        yield scope
        while scope.input is None and scope.container is not None:
            scope = scope.container.scope
            yield scope

    def node(self, key: str) -> NodeState | None:
        """The node execution that `nodes.<key>` means here."""
        for scope in self.outwards():
            position = scope.graph.index.get(key)
            if position is not None:
                return scope.nodes[position]
        return None

    def input_json(self) -> bytes:
        """The input of the workflow that it belongs to."""
        return self._workflow().input or b"null"

    def input_value(self) -> Any:
        """The parsed input."""
        scope = self._workflow()
        if scope.parsed_input is None:
            scope.parsed_input = orjson.loads(scope.input or b"null")
        return scope.parsed_input

    def output_bytes(self) -> int:
        """Size of all outputs."""
        return sum(len(node.output or b"") for node in self.nodes)

    def result(self) -> bytes:
        """The output when all went well: of the `output` node, or `{key: output}` of several, or of the last nodes.

        Only nodes that have an output count; the last nodes are those without outgoing edges.
        """
        outputs = _outputs(node for node in self.nodes if node.spec.type == "output")
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        if not outputs:
            outputs = _outputs(node for node in self.nodes if not self.graph.outgoing[node.position])
        return orjson.dumps({key: orjson.Fragment(output) for key, output in outputs.items()})

    def _workflow(self) -> "Scope":
        *_, scope = self.outwards()
        return scope


def _outputs(nodes: Iterable[NodeState]) -> dict[str, bytes]:
    return {node.spec.key: node.output for node in nodes if node.output is not None}


@dataclass(frozen=True, slots=True)
class Linked:
    """A version that a `sub_workflow` node calls, fixed when the run began."""

    version_id: UUID
    graph: Graph


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one run may write, by the operator's settings."""

    output_bytes: int = 256 * 1024 * 1024
    """Outputs of all its node executions together."""
    events: int = 1_000_000


@dataclass(frozen=True, slots=True)
class RunTimes:
    """When a run was accepted, began and ended, by the database's clock, in UTC."""

    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


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
    links: Mapping[str, Linked] = field(default_factory=dict)
    """Versions of sub-workflows by what their nodes call them (`Node.link`)."""
    recorded: Mapping[tuple[str, str], NodeRow] = field(default_factory=dict)
    """Results of an earlier run to take in place of running the node, by path without attempts and key."""
    vars: RunVariables = NO_VARIABLES
    limits: Limits = field(default_factory=Limits)
    version: int = 0
    times: RunTimes | None = None
    """As the last commit made here has left them."""
    status: RunStatus = RunStatus.PENDING
    sequence: int = 0
    """Number of the last event."""
    output: bytes | None = None
    error: Failure | None = None
    usage: Usage = NO_USAGE
    traceparent: str = ""
    priority: int = 0
    """Inside its project: higher goes first."""
    active_nodes: int = 0
    """Nodes ready or running, containers not counted."""
    executions: int = 0
    """Nodes of all scopes that were ever opened."""
    calls: int = 0
    """Sub-workflows that were ever called."""
    output_bytes: int = 0
    """Outputs of all node executions that there ever were, as they are stored."""
    touched: dict[NodeState, None] = field(default_factory=dict)
    """Nodes changed since the last commit, in order."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Events since the last commit."""
    ready: list[NodeState] = field(default_factory=list)
    """Worker nodes that became ready since the last commit."""
    inline: deque[NodeState] = field(default_factory=deque)
    """Inline nodes to be evaluated, and containers to be taken further."""
    held_bytes: int = 0
    """Outputs in memory, about: what containers hold after they have ended is not taken off."""
    run_text: str = field(init=False)
    """The id as text, which every row and message carries."""
    root: Scope = field(init=False)
    scopes: dict[str, Scope] = field(default_factory=dict)
    """Open scopes by path, without the root."""
    scope_nodes: int = 0
    """Node executions in them."""
    dropped: list[Scope] = field(default_factory=list)
    """Scopes that were open and are not any more, since the last call of `let_go`."""

    def __post_init__(self) -> None:
        self.run_text = str(self.run_id)
        self.root = Scope(self.graph, input=self.input)
        self.executions = len(self.graph.nodes)

    @property
    def is_terminal(self) -> bool:
        """The run has ended."""
        return self.status in RUN_TERMINAL

    def open_scope(self, scope: Scope) -> None:
        """Count a scope among the open ones."""
        self.scopes[scope.path] = scope
        self.scope_nodes += len(scope.nodes)
        node = scope.container
        if node is not None:
            node.open_scopes = node.open_scopes or {}
            node.open_scopes[scope.path] = scope

    def drop_scope(self, scope: Scope) -> None:
        """Count it among them no more; nothing if it is not there."""
        if self.scopes.pop(scope.path, None) is not None:
            self.scope_nodes -= len(scope.nodes)
            self.dropped.append(scope)
            if scope.container is not None and scope.container.open_scopes:
                del scope.container.open_scopes[scope.path]

    def find(self, path: str, key: str) -> NodeState | None:
        """The node execution of that name; None when there is none, or its scope has not begun or has ended."""
        scope = self.scopes.get(path) if path else self.root
        position = None if scope is None else scope.graph.index.get(key)
        return None if scope is None or position is None else scope.nodes[position]

    def open_nodes(self) -> Iterator[NodeState]:
        """Node executions of all open scopes, in whatever state."""
        yield from self.root.nodes
        for scope in self.scopes.values():
            yield from scope.nodes

    def emit(self, event: str, node: NodeState | None = None, **data: Any) -> None:
        """Record an event; it gets the next number."""
        self.sequence += 1
        entry: dict[str, Any] = {"sequence": self.sequence, "type": event}
        if node is not None:
            entry["node_key"] = node.spec.key
            if node.scope.path:
                entry["item_path"] = node.scope.path
        if data:
            entry["data"] = data
        self.events.append(entry)

    def clear_changes(self) -> None:
        """Forget what has changed: it is committed."""
        self.touched.clear()
        self.events.clear()
        self.ready.clear()

    def let_go(self) -> None:
        """Take apart what has ended, so that its memory is free at once; nobody may need it any more.

        Scopes and their nodes refer to each other. Left to the collector of cycles, they would live until it comes, and
        each that lives makes the collector's work longer.
        """
        for scope in self.dropped:
            scope.nodes.clear()
        self.dropped.clear()
        if self.is_terminal:
            self.root.nodes.clear()

    def size_bytes(self) -> int:
        """Rough memory of the run, for the cache's budget."""
        nodes = len(self.root.nodes) + self.scope_nodes
        return 6000 + 500 * nodes + len(self.input) + self.vars.size_bytes() + self.held_bytes


def edge_is_live(node: NodeRow, port: str) -> bool:
    """Whether a decided node makes an edge from `port` live."""
    return node.port == port and node.status in (NodeStatus.SUCCEEDED, NodeStatus.FAILED)
