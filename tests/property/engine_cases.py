"""Random workflows with known outcomes: nodes that fail as told, conditions, error ports, containers in containers."""

from typing import Any
from uuid import uuid4

from hypothesis import strategies as st

from services.executor.engine.graph import Graph, NodeKind, graph_from_body
from services.executor.engine.state import Linked, RunState
from tests.property.reference_interpreter import Behaviour, Body, Spec, interpret

KINDS = {
    "work": NodeKind(inline=False, queue="default", default_timeout=60),
    "condition": NodeKind(inline=True, queue="", default_timeout=60, expression_fields=("when",)),
    "transform": NodeKind(inline=True, queue="", default_timeout=60),
    "wait_for_event": NodeKind(inline=True, queue="", default_timeout=60, effect_of=lambda _: "read"),
    "map": NodeKind(inline=True, queue="", default_timeout=60, body_fields=("body",)),
    "loop": NodeKind(
        inline=True,
        queue="",
        default_timeout=60,
        expression_fields=("until: state, index",),
        body_fields=("body",),
    ),
    "sub_workflow": NodeKind(inline=True, queue="", default_timeout=60),
}
_PORTS = {"condition": ["true", "false"], "wait_for_event": ["out", "out", "timeout", "error"]}
MAX_NODES = 8
_DEPTH = 3


class Case:
    """A random workflow, and what each of its nodes does."""

    def __init__(self, specs: list[Spec], edges: list[tuple[str, str, str]]) -> None:
        self.specs, self.edges = specs, edges
        self.by_key: dict[str, Spec] = {}
        self.links: dict[str, Linked] = {}
        self.graph = self._graph(specs, edges)
        self.expected = interpret(specs, edges)

    def _graph(self, specs: list[Spec], edges: list[tuple[str, str, str]]) -> Graph:
        return graph_from_body(self._body(specs, edges), KINDS)

    def _body(self, specs: list[Spec], edges: list[tuple[str, str, str]]) -> dict[str, Any]:
        return {
            "nodes": [self._node(spec) for spec in specs],
            "edges": [{"source": source, "target": target, "source_port": port} for source, target, port in edges],
        }

    def _node(self, spec: Spec) -> dict[str, Any]:
        self.by_key[spec.key] = spec
        return {
            "key": spec.key,
            "type": spec.kind,
            "config": self._config(spec),
            "retry": {"max_attempts": spec.max_attempts},
            "on_error": "continue" if spec.continue_on_error else "fail",
        }

    def _config(self, spec: Spec) -> dict[str, Any]:
        if spec.body is None:
            timeout = {"timeout_seconds": 5} if spec.behaviour.port == "timeout" else {}
            return {"when": str(spec.behaviour.port == "true").lower()} if spec.kind == "condition" else timeout
        if spec.kind == "sub_workflow":
            graph = self._graph(spec.body.nodes, spec.body.edges)
            self.links[f"{spec.key}@latest"] = Linked(uuid4(), graph)
            return {"workflow": spec.key}
        body = self._body(spec.body.nodes, spec.body.edges)
        if spec.kind == "loop":
            return {"body": body, "until": f"index == {spec.body.times - 1}"}
        return {
            "body": body,
            "items": list(range(spec.body.times)),
            "concurrency": spec.body.concurrency,
            "on_item_error": spec.body.on_item_error,
        }

    def new_state(self) -> RunState:
        return RunState(
            run_id=uuid4(),
            project_id=str(uuid4()),
            workflow_id=str(uuid4()),
            version_id=str(uuid4()),
            version_number=1,
            graph=self.graph,
            input=b"{}",
            links=self.links,
        )

    def __repr__(self) -> str:
        return f"Case({self.specs}, {self.edges})"


@st.composite
def _scopes(draw: st.DrawFn, prefix: str, depth: int, most: int) -> tuple[list[Spec], list[tuple[str, str, str]]]:
    count = draw(st.integers(1, most))
    plain = ["work", "work", "work", "condition", "transform", "wait_for_event"]
    kinds = plain if depth == _DEPTH else [*plain, "map", "loop", "sub_workflow"]
    specs = []
    for position in range(count):
        specs.append(_spec(draw, f"{prefix}n{position}", draw(st.sampled_from(kinds)), depth))
    edges = []
    for target in range(1, count):
        for source in sorted(draw(st.sets(st.integers(0, target - 1), max_size=3))):
            ports = _PORTS.get(specs[source].kind, ["out", "out", "error"])
            edges.append((specs[source].key, specs[target].key, draw(st.sampled_from(ports))))
    return specs, edges


def _spec(draw: st.DrawFn, key: str, kind: str, depth: int) -> Spec:
    body = None
    if kind in ("map", "loop", "sub_workflow"):
        nodes, edges = draw(_scopes(f"{key}_", depth + 1, 3))
        times = {"map": st.integers(0, 3), "loop": st.integers(1, 3), "sub_workflow": st.just(1)}[kind]
        on_item_error = draw(st.sampled_from(["fail", "continue", "collect"]))
        body = Body(nodes, edges, draw(times), on_item_error, draw(st.integers(1, 3)))
    ways = {"condition": ["true", "false"], "wait_for_event": ["out", "timeout"]}.get(kind, ["out"])
    port = draw(st.sampled_from(ways))
    failures = draw(st.sampled_from([0, 0, 0, 1, 2, -1])) if kind == "work" else 0
    only_in = draw(st.none() | st.frozensets(st.integers(0, 3), max_size=2)) if failures else None
    attempts = draw(st.integers(1, 3)) if body is None else 1
    return Spec(key, kind, attempts, draw(st.booleans()), Behaviour(failures, port, only_in), body)


@st.composite
def cases(draw: st.DrawFn, *, with_containers: bool = True) -> Case:
    """A workflow of at most MAX_NODES nodes at the top."""
    return Case(*draw(_scopes("", 0 if with_containers else _DEPTH, MAX_NODES)))
