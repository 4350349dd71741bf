"""What a run should come to, written as plainly as possible: one pass over the nodes in topological order.

A node runs if some incoming edge is live, is skipped if none is. What each node does is given by its behaviour.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """What happens when a node runs."""

    failures: int
    """Attempts that fail before one succeeds; -1 = all fail."""
    port: str
    """Port on success."""


@dataclass(frozen=True)
class Spec:
    """A node of the model."""

    key: str
    max_attempts: int
    continue_on_error: bool
    behaviour: Behaviour


@dataclass(frozen=True)
class Expected:
    """Status by node, and the nodes whose failure fails the run (none = the run succeeds)."""

    statuses: dict[str, str]
    fatal: set[str]


def interpret(nodes: list[Spec], edges: list[tuple[str, str, str]]) -> Expected:
    """Interpret nodes that are listed in topological order, and `(source, target, port)` edges."""
    statuses: dict[str, str] = {}
    ports: dict[str, str] = {}
    fatal: set[str] = set()
    for node in nodes:
        incoming = [(source, port) for source, target, port in edges if target == node.key]
        if incoming and not any(ports.get(source) == port for source, port in incoming):
            statuses[node.key] = "skipped"
            continue
        failures = node.behaviour.failures
        if 0 <= failures < node.max_attempts:
            statuses[node.key], ports[node.key] = "succeeded", node.behaviour.port
            continue
        statuses[node.key] = "failed"
        if any(source == node.key and port == "error" for source, _, port in edges):
            ports[node.key] = "error"
        elif node.continue_on_error:
            ports[node.key] = "out"
        else:
            fatal.add(node.key)
    return Expected(statuses, fatal)
