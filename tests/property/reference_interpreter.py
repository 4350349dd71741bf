"""What a run should come to, written as plainly as possible: one pass over the nodes in topological order.

A node runs if some incoming edge is live, is skipped if none is. What each node does is given by its behaviour.
Containers run their body once for each item or iteration, one after another.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Behaviour:
    """What happens when a node runs."""

    failures: int = 0
    """Attempts that fail before one succeeds; -1 = all fail."""
    port: str = "out"
    """Port on success."""
    only_in: frozenset[int] | None = None
    """The failures happen only in items or iterations with these numbers; None = everywhere."""


@dataclass(frozen=True)
class Body:
    """What a container runs."""

    nodes: "list[Spec]"
    edges: list[tuple[str, str, str]]
    times: int
    """Items of a map, iterations of a loop, 1 for a sub-workflow."""
    on_item_error: str = "fail"
    concurrency: int = 1


@dataclass(frozen=True)
class Spec:
    """A node of the model."""

    key: str
    kind: str
    """work, condition, transform, wait_for_event, map, loop or sub_workflow."""
    max_attempts: int = 1
    continue_on_error: bool = False
    behaviour: Behaviour = field(default_factory=Behaviour)
    body: Body | None = None


@dataclass
class Expected:
    """What a scope comes to: status and output by node, with the nodes whose failure fails it (none = it succeeds)."""

    statuses: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    fatal: set[str] = field(default_factory=set)
    inside: "dict[str, Expected]" = field(default_factory=dict)
    """Scopes of containers that succeeded, by path."""
    result: Any = None


def interpret(nodes: list[Spec], edges: list[tuple[str, str, str]], path: str = "", number: int = 0) -> Expected:
    """Interpret nodes that are listed in topological order, and `(source, target, port)` edges."""
    found = Expected()
    ports: dict[str, str] = {}
    for node in nodes:
        incoming = [(source, port) for source, target, port in edges if target == node.key]
        if incoming and not any(ports.get(source) == port for source, port in incoming):
            found.statuses[node.key] = "skipped"
            continue
        succeeded, output = _run(node, path, number, found)
        if node.behaviour.port == "timeout":
            succeeded = any(source == node.key and port == "timeout" for source, _, port in edges)
        if succeeded:
            found.statuses[node.key], ports[node.key] = "succeeded", node.behaviour.port
            found.outputs[node.key] = output
            continue
        found.statuses[node.key] = "failed"
        if any(source == node.key and port == "error" for source, _, port in edges):
            ports[node.key] = "error"
        elif node.continue_on_error:
            ports[node.key] = "out"
            found.outputs[node.key] = None
        else:
            found.fatal.add(node.key)
    last = [node.key for node in nodes if not any(source == node.key for source, _, _ in edges)]
    found.result = {key: found.outputs[key] for key in last if key in found.outputs}
    return found


def _run(node: Spec, path: str, number: int, found: Expected) -> tuple[bool, Any]:
    if node.body is None:
        return _attempts_succeed(node, number), _plain_output(node, path)
    results, errors = [], 0
    for turn in range(node.body.times):
        inner_path = _inner_path(node, path, turn)
        inner = interpret(node.body.nodes, node.body.edges, inner_path, turn)
        found.inside[inner_path] = inner
        if inner.fatal:
            errors += 1
            if node.kind != "map" or node.body.on_item_error == "fail":
                return False, None
        results.append(None if inner.fatal else inner.result)
    if node.kind == "map":
        return True, {"results": results, **({"errors": errors} if node.body.on_item_error == "collect" else {})}
    if node.kind == "loop":
        return True, {"state": results[-1], "iterations": node.body.times}
    return True, results[0]


def _inner_path(node: Spec, path: str, turn: int) -> str:
    place = node.key if node.kind == "sub_workflow" else f"{node.key}[{turn}]"
    return f"{path}/{place}" if path else place


def _attempts_succeed(node: Spec, number: int) -> bool:
    happens = node.behaviour.only_in is None or number in node.behaviour.only_in
    return not happens or 0 <= node.behaviour.failures < node.max_attempts


def _plain_output(node: Spec, path: str) -> Any:
    if node.behaviour.port == "timeout":
        return None
    if node.kind in ("work", "wait_for_event"):
        return [path, node.key]
    return {"result": node.behaviour.port == "true"} if node.kind == "condition" else {}
