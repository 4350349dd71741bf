"""Random small workflows, and what each should come to by the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from uuid import UUID

import orjson
from headrace.common.v1 import retry_pb2, value_pb2
from headrace.workflows.v1 import definition_pb2 as pb

from services.executor.engine.graph import RunLimits
from tests.property.reference_interpreter import Behaviour, Body, Expected, Spec, interpret
from tests.simulation.database import moment

_DEPTH = 3
SHORT_TIMEOUT = 1.5
"""Of nodes whose handlers may hang; every other node has its type's minute, which no attempt ever needs."""


@dataclass(frozen=True)
class Case:
    """A workflow."""

    workflow_id: UUID
    version_id: UUID
    specs: list[Spec]
    edges: list[tuple[str, str, str]]
    definition: bytes
    hanging: frozenset[str]
    """Keys of nodes whose attempts may run out of time."""
    timeout: int | None
    """Seconds that a run may take."""
    project_id: UUID
    limits: RunLimits | None
    """How many of its runs go on at a time."""

    def turn_scopes(self, concurrency_key: str) -> dict[str, int]:
        """What a run of it counts against while it goes on, with how many may."""
        found: dict[str, int] = {}
        if self.limits is not None and self.limits.max_running_runs is not None:
            found[f"workflow/{self.workflow_id}"] = self.limits.max_running_runs
        if self.limits is not None and self.limits.key:
            found[f"key/{self.workflow_id}/{concurrency_key}"] = self.limits.max_per_key
        return found

    @property
    def holds(self) -> bool:
        """There is a container in it."""
        return any(spec.body for spec in self.specs)

    def expected(self, lost: set[str], timed_out: dict[str, set[int]]) -> Expected:
        """What a run comes to.

        `lost` are nodes that were parked because their workers died; `timed_out` has the numbers of attempts that ran
        out of time, which is not for the workflow alone to decide.
        """
        specs = []
        for spec in self.specs:
            failures, bad = spec.behaviour.failures, timed_out.get(spec.key, set())
            if spec.key in lost:
                failures = -1
            elif failures >= 0:
                good = (n for n in range(1, spec.max_attempts + 1) if n > failures and n not in bad)
                failures = next(good, 0) - 1
            specs.append(replace(spec, behaviour=replace(spec.behaviour, failures=failures)))
        return interpret(specs, self.edges)


def random_case(rng: Random, project_id: UUID, *, turns: float, brisk: bool) -> Case:
    """Draw a workflow of up to ten nodes, some of them with up to three inside, three deep.

    `turns` is the chance that its runs take turns; with `brisk` no node takes long.
    """
    scope = _draw_scope(rng, "", rng.randint(1, rng.choice((3, 6, 10))), depth=0, brisk=brisk)
    definition = pb.Definition()
    for key, node in scope.nodes.items():
        _add(definition, key, node)
    definition.edges.extend(pb.Edge(source=one, target=other, source_port=port) for one, other, port in scope.edges)
    timeout = rng.choice((1, 2, 4)) if rng.random() < 0.1 else None
    if timeout:
        definition.timeout.FromSeconds(timeout)
    limits = _draw_limits(rng) if rng.random() < turns else None
    if limits is not None:
        definition.limits.max_running_runs = limits.max_running_runs or 0
        if limits.key:
            definition.limits.concurrency.key, definition.limits.concurrency.max = limits.key, limits.max_per_key
    return Case(
        workflow_id=UUID(int=rng.getrandbits(128)),
        version_id=UUID(int=rng.getrandbits(128)),
        specs=scope.specs(),
        edges=scope.edges,
        definition=definition.SerializeToString(deterministic=True),
        hanging=frozenset(key for key, node in scope.nodes.items() if node.timeout),
        timeout=timeout,
        project_id=project_id,
        limits=limits,
    )


def _draw_limits(rng: Random) -> RunLimits:
    key = rng.choice(("", "input.k"))
    return RunLimits(rng.choice((None, 1, 2, 3) if key else (1, 2)), key, rng.choice((1, 1, 2)))


@dataclass(frozen=True)
class _Node:
    kind: str
    config: dict[str, Any]
    attempts: int = 1
    on_error: bool = False
    failures: int = 0
    port: str = "out"
    timeout: float = 0.0
    retry_when: str = ""
    body: Body | None = None

    def spec(self, key: str) -> Spec:
        """The node of the model."""
        return Spec(key, self.kind, self.attempts, self.on_error, Behaviour(self.failures, self.port), self.body)

    def as_json(self, key: str) -> dict[str, Any]:
        """The node of a body in a config."""
        return {
            "key": key,
            "type": self.kind,
            "config": self.config,
            "retry": {"max_attempts": self.attempts, "when": self.retry_when},
            "on_error": "continue" if self.on_error else "fail",
        }


@dataclass(frozen=True)
class _Scope:
    nodes: dict[str, _Node]
    edges: list[tuple[str, str, str]]

    def specs(self) -> list[Spec]:
        """The nodes of the model."""
        return [node.spec(key) for key, node in self.nodes.items()]

    def as_json(self) -> dict[str, Any]:
        """A body in a config."""
        edges = [{"source": source, "target": target, "source_port": port} for source, target, port in self.edges]
        return {"nodes": [node.as_json(key) for key, node in self.nodes.items()], "edges": edges}


@dataclass(frozen=True)
class _Place:
    """Where a node is drawn: its key, the keys of the nodes before it, in how many containers, and whether in haste."""

    key: str
    sources: list[str]
    depth: int
    brisk: bool


def _draw_scope(rng: Random, prefix: str, count: int, *, depth: int, brisk: bool = True) -> _Scope:
    nodes: dict[str, _Node] = {}
    edges: list[tuple[str, str, str]] = []
    weights = [kind.weight if depth < _DEPTH or not kind.holds else 0 for kind in _NODES.values()]
    for position in range(count):
        key = f"{prefix}n{position}"
        sources = sorted(rng.sample(list(nodes), min(position, rng.choice((0, 1, 1, 1, 2, 3)))))
        edges += [(source, key, rng.choice(_NODES[nodes[source].kind].ports)) for source in sources]
        kind = rng.choices(list(_NODES), weights)[0]
        nodes[key] = _NODES[kind].draw(rng, _Place(key, sources, depth, brisk))
    return _Scope(nodes, edges)


def _work(rng: Random, place: _Place) -> _Node:
    failures = rng.choice((0, 0, 0, 0, 0, 1, 2, -1))
    read = [f"{{{{ nodes.{key} }}}}" for key in place.sources]
    hangs = not place.depth and rng.random() < 0.1
    # Items may be many, one after another: each is short, so that a run ends within the bound.
    durations = (0.0, 0.0, 0.01, 0.1, 0.5) if hangs or place.brisk or rng.random() < 0.9 else (2.0, 4.0)
    ways = ("error", "error", "terminal", "unstorable", "unstorable", "killing") if failures < 0 else ("error",)
    if place.depth:
        ways = ("error",)  # what other nodes suffer from it could not be told by key
    config = {
        "failures": failures,
        "fails_by": rng.choice(("hanging", "stuck") if hangs else ways),
        "before": rng.choice(durations),
        "after": rng.choice(durations),
        "value": rng.choice((None, "{{ input.n }}", "{{ run.id }}", *read)),
        "retry_after": rng.choice((None, None, 0.3)),
        "reads": rng.random() < 0.6,
    }
    timeout = SHORT_TIMEOUT if hangs else 0.0
    when = rng.choice(("", "", "true", "error.retryable || attempt > 0"))
    return _Node("work", config, rng.randint(1, 3), rng.random() < 0.4, failures, timeout=timeout, retry_when=when)


def _condition(rng: Random, place: _Place) -> _Node:
    answer = rng.random() < 0.5
    when = rng.choice((str(answer).lower(), "input.n == 1" if answer else "input.n > 1"))
    return _Node("condition", {"when": when}, port=str(answer).lower())


def _switch(rng: Random, place: _Place) -> _Node:
    port = rng.choice(("a", "b", "default"))
    cases = [{"port": name, "when": f"input.n == {int(name == port)}"} for name in ("a", "b")]
    return _Node("switch", {"cases": cases}, port=port)


def _transform(rng: Random, place: _Place) -> _Node:
    seen = [f"{{{{ nodes.{key}.status }}}}" for key in place.sources]
    return _Node("transform", {"values": {"n": "{{ input.n }}", "seen": seen}})


def _retired(rng: Random, place: _Place) -> _Node:
    """A type that this installation does not serve any more: it fails at once."""
    return _Node("retired", {}, rng.randint(1, 2), rng.random() < 0.5, failures=-1)


def _delay(rng: Random, place: _Place) -> _Node:
    if rng.random() < 0.2:
        return _Node("delay", {"until": moment(rng.uniform(0.0, 8.0)).isoformat()})
    return _Node("delay", {"seconds": rng.choice((0.0, 0.1) if place.depth else (0.0, 0.1, 1.0, 3.0))})


def _map(rng: Random, place: _Place) -> _Node:
    body = _draw_scope(rng, f"{place.key}_", rng.randint(1, 3), depth=place.depth + 1)
    times, concurrency = rng.choice((0, 1, 2, 4)), rng.randint(1, 3)
    on_item_error = rng.choice(("fail", "continue", "collect"))
    config = {
        "items": list(range(times)),
        "body": body.as_json(),
        "concurrency": concurrency,
        "on_item_error": on_item_error,
    }
    model = Body(body.specs(), body.edges, times, on_item_error, concurrency)
    return _Node("map", config, on_error=rng.random() < 0.4, body=model)


def _loop(rng: Random, place: _Place) -> _Node:
    body = _draw_scope(rng, f"{place.key}_", rng.randint(1, 3), depth=place.depth + 1)
    times = rng.randint(1, 3)
    config = {"body": body.as_json(), "until": f"index == {times - 1}"}
    return _Node("loop", config, on_error=rng.random() < 0.4, body=Body(body.specs(), body.edges, times))


@dataclass(frozen=True)
class _Kind:
    weight: int
    ports: tuple[str, ...]
    draw: Callable[[Random, _Place], _Node]
    holds: bool = False
    """It is a container."""


_OUT = ("out", "out", "out", "error")
# A further node type of the engine needs a line here, and its meaning in the reference interpreter.
_NODES = {
    "work": _Kind(24, _OUT, _work),
    "condition": _Kind(5, ("true", "false"), _condition),
    "switch": _Kind(2, ("a", "b", "default"), _switch),
    "transform": _Kind(6, _OUT, _transform),
    "delay": _Kind(6, _OUT, _delay),
    "retired": _Kind(1, _OUT, _retired),
    "map": _Kind(3, _OUT, _map, holds=True),
    "loop": _Kind(2, _OUT, _loop, holds=True),
}


def _add(definition: pb.Definition, key: str, node: _Node) -> None:
    message = definition.nodes.add(key=key, type=node.kind, config=value_pb2.Json(utf8=orjson.dumps(node.config)))
    if node.attempts > 1:
        message.retry.CopyFrom(retry_pb2.RetryPolicy(max_attempts=node.attempts, jitter=True, when=node.retry_when))
    if node.timeout:
        message.timeout.FromMilliseconds(round(node.timeout * 1000))
    if node.on_error:
        message.on_error = pb.ON_ERROR_CONTINUE
