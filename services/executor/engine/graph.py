"""The indexed form of a workflow version. Validation happened when the version was made; this only indexes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from services.kit.expressions import References, compile_expression
from services.kit.templates import Template, compile_template

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
        self.kind: NodeKind | None = None
        """None when the type is not served any more."""

    @cached_property
    def config_value(self) -> Any:
        """The parsed config."""
        return orjson.loads(self.config) if self.config else {}

    @cached_property
    def template(self) -> Template:
        """The config's templates, those of expression fields left out."""
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
            name, _, inner = field.partition("[].")
            value = self.config_value.get(name)
            if not inner:
                sources.append(str(value))
            elif isinstance(value, list):
                sources.extend(str(item[inner]) for item in value)
        return tuple(sources)

    def without_expressions(self, config: Any) -> Any:
        """The config less its CEL fields, which templates must not touch."""
        fields = {field.partition("[].")[0] for field in (self.kind.expression_fields if self.kind else ())}
        return {name: value for name, value in config.items() if name not in fields} if fields else config

    @property
    def timeout_seconds(self) -> float:
        """Longest time of one attempt."""
        if self.timeout is not None:
            return self.timeout
        return self.kind.default_timeout if self.kind else 60.0


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge by node index."""

    source: int
    target: int
    port: str


class Graph:
    """Nodes by index, with their edges both ways. `timeout` is the run's limit in seconds, None = the operator's."""

    def __init__(
        self,
        nodes: list[Node],
        edges: list[tuple[str, str, str]],
        kinds: Mapping[str, NodeKind],
        timeout: float | None = None,
    ) -> None:
        """Index nodes and `(source key, target key, source port)` edges."""
        self.nodes = tuple(nodes)
        self.timeout = timeout
        self.index = {node.key: position for position, node in enumerate(nodes)}
        for node in nodes:
            node.kind = kinds.get(node.type)
        outgoing: list[list[Edge]] = [[] for _ in nodes]
        incoming = [0] * len(nodes)
        for source, target, port in edges:
            edge = Edge(self.index[source], self.index[target], port)
            outgoing[edge.source].append(edge)
            incoming[edge.target] += 1
        self.outgoing = tuple(tuple(edges) for edges in outgoing)
        self.incoming = tuple(incoming)
        self.entries = tuple(position for position, count in enumerate(incoming) if count == 0)

    def has_port(self, position: int, port: str) -> bool:
        """Some edge leaves the node by that port."""
        return any(edge.port == port for edge in self.outgoing[position])
