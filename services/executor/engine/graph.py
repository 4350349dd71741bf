"""The indexed form of a workflow version. Validation happened when the version was made; this only indexes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from typing import Any

import orjson

from services.kit.expressions import References, compile_expression
from services.kit.templates import Template, compile_template

MAX_CHAIN = 32
"""Node executions that a worker may go on with by itself behind one job."""
OUT = "out"
ERROR = "error"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a failed node is tried again. Intervals in seconds; `max_attempts` includes the first."""

    max_attempts: int = 1
    initial_interval: float = 0.5
    backoff: float = 2.0
    max_interval: float = 30.0
    jitter: bool = True
    when: str = ""
    """CEL over `error` and `attempt`; empty = whatever the handler calls retryable."""


@dataclass(frozen=True, slots=True)
class NodeKind:
    """What the engine needs to know of a node type."""

    inline: bool
    queue: str
    default_timeout: float
    """Seconds."""
    expression_fields: tuple[str, ...] = ()
    """Paths of CEL fields, as the catalogue has them: `cases[].when`, `until: state, index`."""
    body_fields: tuple[str, ...] = ()
    """Config fields that hold a definition of their own, whose templates are not the node's."""
    effect_of: Callable[[Mapping[str, Any]], str] = lambda _: "effect"
    """The effect class of a node with this config."""


class Node:
    """A node of a version, with its templates compiled when first needed."""

    def __init__(
        self,
        *,
        key: str,
        type: str,
        config: bytes,
        retry: RetryPolicy,
        timeout: float | None,
        continue_on_error: bool,
        join_any: bool,
        at_most_once: bool = False,
    ) -> None:
        self.key = key
        self.type = type
        self.config = config
        """JSON object as in the definition, templates unresolved."""
        self.retry = retry
        self.timeout = timeout
        """Seconds for one attempt; None = the type's default."""
        self.continue_on_error = continue_on_error
        self.join_any = join_any
        self.at_most_once = at_most_once
        """When nobody knows whether an attempt has acted, a person decides."""
        self.kind: NodeKind | None = None
        """None when the type is not served any more."""
        self.body: Graph | None = None
        """What a container runs for each item or iteration."""

    @cached_property
    def config_value(self) -> Any:
        """The parsed config."""
        return orjson.loads(self.config) if self.config else {}

    @cached_property
    def template(self) -> Template:
        """The config's templates, those of expression fields and bodies left out."""
        return compile_template(self.without_expressions(self.config_value))

    @cached_property
    def references(self) -> References:
        """What the config's templates and expressions read."""
        expressions = [compile_expression(source).references for source in self.expressions]
        return References.union([self.template.references, *expressions])

    @cached_property
    def expressions(self) -> tuple[str, ...]:
        """Sources of the CEL fields (`when`, `cases[].when`), in order."""
        sources: list[str] = []
        for field in self.kind.expression_fields if self.kind else ():
            name, inner = _steps(field)
            value = self.config_value.get(name)
            if not inner:
                sources.append(str(value))
            elif isinstance(value, list):
                sources.extend(str(item[inner]) for item in value)
        return tuple(sources)

    def without_expressions(self, config: Any) -> Any:
        """The config less its CEL fields and bodies, which the node's templates must not touch."""
        if self.kind is None or not (self.kind.expression_fields or self.kind.body_fields):
            return config
        left_out = {_steps(field)[0] for field in self.kind.expression_fields} | {*self.kind.body_fields}
        return {name: value for name, value in config.items() if name not in left_out}

    @property
    def link(self) -> str:
        """What a `sub_workflow` node calls, as one word."""
        return f"{self.config_value.get('workflow')}@{self.config_value.get('version', 'latest')}"

    @property
    def effect(self) -> str:
        """What another run of the node may do to the outside: `pure`, `read`, `idempotent` or `effect`."""
        return self.kind.effect_of(self.config_value) if self.kind else "effect"

    @cached_property
    def may_begin_early(self) -> bool:
        """A worker may run it before its claim is committed: another run of it does nothing to the outside."""
        return not self.at_most_once and self.effect in ("pure", "read")

    @property
    def timeout_seconds(self) -> float:
        """Longest time of one attempt."""
        if self.timeout is not None:
            return self.timeout
        return self.kind.default_timeout if self.kind else 60.0


def _steps(field: str) -> tuple[str, str]:
    """The config field that an expression field names, and the field inside each of its items, if it is a list."""
    name, _, inner = field.partition(":")[0].strip().partition("[].")
    return name, inner


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge by node index."""

    source: int
    target: int
    port: str


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How many runs of a version's workflow go on at a time; None = any number."""

    max_running_runs: int | None
    key: str
    """CEL over `input`; empty = runs have no key."""
    max_per_key: int


class Graph:
    """Nodes by index, with their edges both ways. `timeout` is the run's limit in seconds, None = the operator's."""

    def __init__(
        self,
        nodes: list[Node],
        edges: list[tuple[str, str, str]],
        kinds: Mapping[str, NodeKind],
        timeout: float | None = None,
        limits: RunLimits | None = None,
    ) -> None:
        """Index nodes and `(source key, target key, source port)` edges."""
        self.nodes = tuple(nodes)
        self.timeout = timeout
        self.limits = limits
        self.index = {node.key: position for position, node in enumerate(nodes)}
        for node in nodes:
            node.kind = kinds.get(node.type)
            for name in node.kind.body_fields if node.kind else ():
                node.body = graph_from_body(node.config_value[name], kinds)
        outgoing: list[list[Edge]] = [[] for _ in nodes]
        incoming = [0] * len(nodes)
        for source, target, port in edges:
            edge = Edge(self.index[source], self.index[target], port)
            outgoing[edge.source].append(edge)
            incoming[edge.target] += 1
        self.outgoing = tuple(tuple(edges) for edges in outgoing)
        self.incoming = tuple(incoming)
        self.entries = tuple(position for position, count in enumerate(incoming) if count == 0)
        self._reads_behind: dict[int, tuple[int, ...]] = {}

    def reads_behind(self, position: int) -> tuple[int, ...]:
        """The nodes, MAX_CHAIN at most, that run one after another when this one succeeds: each with the one before it
        as its only condition, and each such that it may begin early.
        """
        found = self._reads_behind.get(position)
        if found is None:
            found = self._reads_behind[position] = tuple(islice(self._walk_reads(position), MAX_CHAIN))
        return found

    def _walk_reads(self, position: int) -> Iterator[int]:
        while True:
            targets = [edge.target for edge in self.outgoing[position] if edge.port == OUT]
            if len(targets) != 1 or self.incoming[targets[0]] != 1 or not self.nodes[targets[0]].may_begin_early:
                return
            (position,) = targets
            yield position

    def has_port(self, position: int, port: str) -> bool:
        """Some edge leaves the node by that port."""
        return any(edge.port == port for edge in self.outgoing[position])

    @cached_property
    def links(self) -> Mapping[str, tuple[str, int | None]]:
        """Workflow and version that `sub_workflow` nodes call, also in bodies, by link name."""
        found = {}
        for node in self.walk():
            if node.type == "sub_workflow":
                found[node.link] = (str(node.config_value["workflow"]), node.config_value.get("version"))
        return found

    def walk(self) -> Iterator[Node]:
        """All nodes, those of bodies included."""
        for node in self.nodes:
            yield node
            if node.body is not None:
                yield from node.body.walk()


def graph_from_body(body: Mapping[str, Any], kinds: Mapping[str, NodeKind]) -> Graph:
    """The indexed form of a definition in a config, which is JSON as authors write it (docs/guides/containers.md)."""
    return Graph(
        [_node_from_json(node) for node in body["nodes"]],
        [(edge["source"], edge["target"], edge.get("source_port") or OUT) for edge in body.get("edges", ())],
        kinds,
    )


# A `retry` that leaves `max_attempts` out means three attempts (services.workflows.domain.definition.Retry).
_RETRY_FIELDS = frozenset(field.name for field in fields(RetryPolicy))


def _node_from_json(node: Mapping[str, Any]) -> Node:
    retry = node.get("retry")
    given = {name: value for name, value in (retry or {}).items() if name in _RETRY_FIELDS and value is not None}
    return Node(
        key=node["key"],
        type=node["type"],
        config=orjson.dumps(node.get("config") or {}),
        retry=RetryPolicy(**{"max_attempts": 3, **given}) if retry is not None else RetryPolicy(),
        timeout=node.get("timeout_seconds"),
        continue_on_error=node.get("on_error") == "continue",
        join_any=node.get("join") == "any",
        at_most_once=node.get("delivery") == "at_most_once",
    )
