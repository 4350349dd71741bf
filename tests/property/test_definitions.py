"""Definitions under Hypothesis: validation never fails, sound graphs have no issues, edits keep drafts whole."""

from __future__ import annotations

from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.templates import TemplateErrors, compile_template
from services.workflows.domain import drafts, graph
from services.workflows.domain.definition import (
    Concurrency,
    Definition,
    Delivery,
    Edge,
    Join,
    Node,
    OnError,
    Retry,
    RunLimits,
)
from services.workflows.domain.definition_json import (
    content_hash,
    definition_to_json,
    dump_definition,
    load_definition,
    read_definition,
)
from services.workflows.domain.model import EdgeExistsError, NodeKeyTakenError
from services.workflows.domain.validation import storage_problems, validate
from services.workflows.domain.validation_expressions import references_of_paths
from tests.support.definitions import node_types, reads, transform

TYPES = node_types()
# Whole definitions take long to draw when the machine is busy with other tests.
HEAVY = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.sampled_from(["a", "b", "c", "d", "e", "A", "", "x-y"])
PORTS = st.sampled_from(["out", "in", "true", "false", "error", "p"])
EXPRESSIONS = st.sampled_from(
    [
        "{{ nodes.a.output }}",
        "{{ nodes.b.output.x[0] }} and {{ input.y }}",
        "{{ nodes['c'] }}",
        "{{ item }}",
        "{{ 1 + }}",
        "{{",
        "{{ size(nodes) }}",
        "text",
        "nodes.a.output == 1",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats(allow_nan=False) | st.text(max_size=5) | EXPRESSIONS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | KEYS, inner, max_size=3),
    max_leaves=8,
)
OPTIONS = st.sampled_from(["values", "when", "cases", "url", "items", "body", "until", "prompt", "seconds", "nodes"])
CONFIGS = st.dictionaries(OPTIONS, JSON, max_size=3)
RETRIES = st.builds(
    Retry,
    max_attempts=st.integers(-1, 200),
    initial_interval=st.floats(-1, 1e6),
    backoff=st.floats(-1, 1e6),
    max_interval=st.floats(-1, 1e6),
    when=EXPRESSIONS | st.just("attempt < 3"),
)
NODES = st.builds(
    Node,
    key=KEYS,
    type=st.sampled_from([*sorted(TYPES), "nonsense", ""]),
    id=st.sampled_from(["", "1", "2", "3"]),
    name=st.text(max_size=5),
    config=CONFIGS,
    retry=st.none() | RETRIES,
    timeout_seconds=st.none() | st.floats(-1, 1e6),
    on_error=st.sampled_from(OnError),
    join=st.sampled_from(Join),
    delivery=st.sampled_from(Delivery),
)
EDGES = st.builds(Edge, source=KEYS, target=KEYS, id=st.just(""), source_port=PORTS, target_port=PORTS)
LIMITS = st.builds(
    RunLimits,
    max_running_runs=st.none() | st.integers(1, 10**7),
    concurrency=st.none() | st.builds(Concurrency, key=EXPRESSIONS | st.just("input.a"), max=st.integers(-1, 10**7)),
)
DEFINITIONS = st.builds(
    Definition,
    nodes=st.lists(NODES, max_size=7).map(tuple),
    edges=st.lists(EDGES, max_size=9).map(tuple),
    timeout_seconds=st.none() | st.floats(-1, 1e7),
    limits=st.none() | LIMITS,
)


def in_a_body(definition: Definition) -> Definition:
    config = {"items": [], "body": definition_to_json(definition)}
    return Definition((Node("m", "each", config=config),))


@HEAVY
@given(DEFINITIONS)
def test_validation_answers_whatever_the_definition(definition: Definition) -> None:
    issues = validate(definition, TYPES)
    assert validate(definition, TYPES) == issues
    assert {issue.code for issue in storage_problems(definition)} <= {issue.code for issue in issues}
    assert all(issue.message.endswith((".", "?", "`")) for issue in issues)
    inside = validate(in_a_body(definition), TYPES)
    assert bool(inside) == bool(issues) or {issue.code for issue in issues} <= {"UNKNOWN_FIELD"}


@HEAVY
@given(JSON)
def test_a_body_may_be_any_json(value: Any) -> None:
    config = {"items": [], "body": value, "until": "true"}
    validate(Definition((Node("a", "each", config=config), Node("b", "again", config=config))), TYPES)
    problems: list[Any] = []
    read_definition(value, "", problems)
    assert all(problem.code for problem in problems)


@HEAVY
@given(DEFINITIONS)
def test_definitions_survive_their_json_form(definition: Definition) -> None:
    stored = drafts.with_ids(definition, Definition(), lambda: "id")
    again = load_definition(dump_definition(stored))
    assert dump_definition(again) == dump_definition(stored)
    assert content_hash(again) == content_hash(stored)


@st.composite
def dags(draw: st.DrawFn) -> Definition:
    """Nodes that read any of their ancestors; edges lead from lower to higher numbers."""
    size = draw(st.integers(1, 12))
    pairs = draw(st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=30))
    edges = sorted((low, high) for low, high in pairs if low < high)
    ancestors: list[set[int]] = [set() for _ in range(size)]
    for low, high in sorted(edges, key=lambda edge: edge[1]):
        ancestors[high] |= ancestors[low] | {low}
    nodes = []
    for index in range(size):
        if ancestors[index] and draw(st.booleans()):
            nodes.append(reads(f"n{index}", f"n{draw(st.sampled_from(sorted(ancestors[index])))}"))
        else:
            nodes.append(transform(f"n{index}", "{{ input.x }}"))
    order = draw(st.permutations(range(size)))
    return Definition(tuple(nodes[index] for index in order), tuple(Edge(f"n{low}", f"n{high}") for low, high in edges))


@given(dags())
def test_a_sound_graph_has_no_issues(definition: Definition) -> None:
    assert validate(definition, TYPES) == []
    assert validate(in_a_body(definition), TYPES) == []


GRAPHS = st.integers(1, 9).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, size - 1), max_size=4), min_size=size, max_size=size)
)


def ways(successors: list[list[int]]) -> set[tuple[int, int]]:
    """All pairs with a way of at least one edge from the first to the second, slowly."""
    pairs = {(node, target) for node, targets in enumerate(successors) for target in targets}
    while True:
        longer = pairs | {(a, d) for a, b in pairs for c, d in pairs if b == c}
        if longer == pairs:
            return pairs
        pairs = longer


@given(GRAPHS)
def test_ancestors_components_and_cycles_agree_with_a_slow_reference(successors: list[list[int]]) -> None:
    reference, size = ways(successors), len(successors)
    components = graph.components_in_order(successors)
    assert sorted(node for component in components for node in component) == list(range(size))
    place = {node: index for index, component in enumerate(components) for node in component}
    assert all(place[one] <= place[other] for one, other in reference)
    together = {(a, b) for a, b in reference if (b, a) in reference}
    assert all((place[a] == place[b]) == ((a, b) in together or a == b) for a in range(size) for b in range(size))
    for component in components:
        if graph.is_cyclic(component, successors):
            cycle = graph.shortest_cycle(component, successors)
            assert all(b in successors[a] for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        else:
            assert (component[0], component[0]) not in reference
    missing = graph.not_ancestors(components, successors, [range(size)] * size)
    assert missing == {(node, other) for node in range(size) for other in range(size) if (other, node) not in reference}


PIECES = st.sampled_from(
    [
        "{{",
        "}}",
        "{",
        "}",
        " ",
        "nodes",
        "input",
        "item",
        "run",
        "vars",
        ".",
        "a",
        "in",
        "null",
        "x1",
        "[0]",
        "['k']",
        "(",
        '"',
        "//",
        "+",
        "1",
    ]
)


@settings(max_examples=300)
@given(
    st.lists(PIECES, max_size=14).map("".join) | st.lists(PIECES, max_size=6).map(lambda p: "{{ " + "".join(p) + " }}")
)
def test_the_short_way_to_references_agrees_with_the_parser(text: str) -> None:
    quick = references_of_paths(text)
    if quick is not None:
        try:
            assert compile_template(text).references == quick
        except TemplateErrors as errors:
            raise AssertionError(f"the parser refuses {text!r}") from errors


EDITS = st.lists(
    st.tuples(st.sampled_from(["add", "rename", "drop", "edge", "cut"]), st.integers(0, 9), KEYS), max_size=25
)


@given(EDITS)
def test_edits_keep_keys_unique_and_edges_between_nodes(edits: list[tuple[str, int, str]]) -> None:
    draft, ids = Definition(), count(1)
    for kind, number, key in edits:
        key = key if key in "abcde" else ""  # noqa: PLW2901 - bad keys are refused elsewhere
        node = draft.nodes[number % len(draft.nodes)] if draft.nodes else None
        try:
            if kind == "add":
                draft, _ = drafts.add_node(draft, transform(key, id=str(next(ids))))
            elif node and kind == "rename" and key:
                draft, _ = drafts.patch_node(draft, node.id, {"key": key})
            elif node and kind == "drop":
                draft = drafts.remove_node(draft, node.id)
            elif node and kind == "edge":
                draft = drafts.add_edge(draft, Edge(node.key, draft.nodes[0].key, id=str(next(ids))))
            elif draft.edges and kind == "cut":
                draft = drafts.remove_edge(draft, draft.edges[number % len(draft.edges)].id)
        except (NodeKeyTakenError, EdgeExistsError):
            continue
        keys = [node.key for node in draft.nodes]
        assert len(set(keys)) == len(keys)
        assert all(edge.source in keys and edge.target in keys for edge in draft.edges)
        assert storage_problems(draft) == []
