"""Definitions: nodes and edges as authors write them, right or wrong. Validation judges; this only holds."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

KEY_LENGTH = 64
KEY = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""What a node key looks like; use `fullmatch`."""
KEY_RULE = "Keys are a lower-case letter and up to 63 more of a-z, 0-9, _ and -."
MAX_NAME_LENGTH = 256
"""Characters of a node's name."""

MAX_NODES = 20_000
"""Nodes of one definition, those in bodies included."""
MAX_EDGES = 100_000
"""Edges of one definition, those in bodies included."""
MAX_BYTES = 8 * 1024 * 1024
"""Size of a definition as JSON."""
MAX_BODY_NESTING = 5
"""Bodies within bodies (`map`, `loop`)."""

DEFAULT_PORT = "out"
INPUT_PORT = "in"
ERROR_PORT = "error"
"""Exists on every type beside its own ports."""


class OnError(StrEnum):
    """What a node's final failure does where no error port is connected."""

    FAIL = "fail"
    CONTINUE = "continue"


class Join(StrEnum):
    """When a node with several incoming edges runs: all decided and one live, or at the first live one."""

    ALL = "all"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Position:
    """A place on the canvas, in pixels to the right and downwards."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how fast a failed node is tried again. The defaults hold for fields left out of a `retry`."""

    max_attempts: int = 3
    """The first included."""
    initial_interval: float = 0.5
    """Seconds before the second attempt."""
    backoff: float = 2.0
    """Factor by which each further wait grows."""
    max_interval: float = 30.0
    """Seconds."""
    jitter: bool = True
    when: str = ""
    """CEL over `error` and `attempt`; empty = whatever the handler calls retryable."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step. `config` is shared, never changed in place."""

    key: str
    type: str
    id: str = ""
    """UUID made by this service; empty before it is stored, and inside bodies."""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    retry: Retry | None = None
    """None = one attempt."""
    timeout_seconds: float | None = None
    """Of one attempt; None = the type's default."""
    on_error: OnError = OnError.FAIL
    position: Position | None = None
    join: Join = Join.ALL


@dataclass(frozen=True, slots=True)
class Edge:
    """A connection from an output port to an input port, by node keys."""

    source: str
    target: str
    id: str = ""
    """UUID made by this service; empty before it is stored, and inside bodies."""
    source_port: str = DEFAULT_PORT
    target_port: str = INPUT_PORT

    @property
    def ends(self) -> tuple[str, str, str, str]:
        """What tells one edge from another."""
        return self.source, self.source_port, self.target, self.target_port


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many runs with the same key go on at a time."""

    key: str
    """CEL over `input`."""
    max: int


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How many runs of the workflow go on at a time; None = any number."""

    max_running_runs: int | None = None
    concurrency: Concurrency | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """Nodes and edges, each in the author's order."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    timeout_seconds: float | None = None
    """Of a whole run, from its start; None = the operator's limit."""
    limits: RunLimits | None = None
    """None = as many runs at a time as are started."""
