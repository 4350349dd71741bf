"""Validation: one test per thing that can be wrong, and its place."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from services.kit.errors import Violation
from services.workflows.domain.catalogue import make_node_type
from services.workflows.domain.definition import MAX_EDGES, MAX_NODES, Definition, Edge, Node, Retry
from services.workflows.domain.validation import MAX_EXPRESSIONS, MAX_ISSUES, is_valid, storage_problems, validate
from tests.support.definitions import chain, node_types, reads, transform

TYPES = node_types()


def issues(definition: Definition) -> list[Violation]:
    return validate(definition, TYPES)


def found(definition: Definition) -> list[tuple[str, str]]:
    return [(issue.code, issue.path) for issue in issues(definition)]


def only(definition: Definition) -> Violation:
    (issue,) = issues(definition)
    return issue


def one(config: dict[str, Any], node_type: str) -> Definition:
    return Definition((Node("n", node_type, config=config),))


def test_a_sound_definition_has_no_issues() -> None:
    definition = Definition(
        nodes=(
            Node("search", "faiss_search", config={"collection": "docs", "query": "{{ input.question }}", "top_k": 3}),
            Node("found", "condition", config={"when": "size(nodes.search.output.results) > 0"}),
            Node(
                "answer", "llm_call", config={"prompt": "From {{ nodes.search.output.results }}: {{ input.question }}"}
            ),
            Node(
                "post",
                "http_request",
                config={"method": "POST", "url": "{{ input.url }}", "json": {"text": "{{ nodes.answer.output.text }}"}},
                retry=Retry(when="error.reason == 'HTTP_STATUS' && attempt < 3"),
                timeout_seconds=10,
            ),
            Node("none", "output", config={"value": "nothing"}),
        ),
        edges=(
            Edge("search", "found"),
            Edge("found", "answer", source_port="true"),
            Edge("found", "none", source_port="false"),
            Edge("answer", "post"),
            Edge("post", "none", source_port="error"),
        ),
    )
    assert issues(definition) == []


def test_an_empty_definition_cannot_run() -> None:
    assert found(Definition()) == [("EMPTY_DEFINITION", "nodes")]


@pytest.mark.parametrize("key", ["", "A", "1a", "a b", "a.b", "ä", "a" * 65, "a\n", "-a", "_a"])
def test_a_key_is_a_slug(key: str) -> None:
    assert ("INVALID_KEY", "nodes[0].key") in found(Definition((transform(key),)))


def test_a_key_is_given_once() -> None:
    assert found(Definition((transform("a"), transform("b"), transform("a")))) == [("DUPLICATE_KEY", "nodes[2].key")]


def test_an_unknown_type_is_told_with_what_was_probably_meant() -> None:
    issue = only(one({}, "transfrom"))
    assert (issue.code, issue.path, issue.node_key) == ("UNKNOWN_NODE_TYPE", "nodes[0].type", "n")
    assert "`transform`" in issue.message


def test_a_misspelt_option_and_a_missing_one_are_told_at_their_place() -> None:
    got = issues(one({"urll": "http://x"}, "http_request"))
    assert {(issue.code, issue.path) for issue in got} == {
        ("INVALID_CONFIG", "nodes[0].config.url"),
        ("INVALID_CONFIG", "nodes[0].config.urll"),
    }
    assert any("Did you mean `url`?" in issue.message for issue in got)


def test_a_value_of_the_wrong_type_is_told_in_words() -> None:
    issue = only(one({"collection": "c", "query": "q", "top_k": "many"}, "faiss_search"))
    assert issue.path == "nodes[0].config.top_k"
    assert issue.message == "Expected a whole number, found `many`."


def test_a_template_may_become_a_value_of_any_type() -> None:
    config = {"collection": "c", "query": "q", "top_k": "{{ input.k }}", "filter": "{{ input.filter }}"}
    assert issues(one(config, "faiss_search")) == []


def test_one_of_several_options_is_asked_for_by_name() -> None:
    issue = only(one({}, "delay"))
    assert issue.message == "`delay` needs `seconds` or `until`."


def test_issues_deep_in_a_config_have_their_path() -> None:
    got = found(one({"cases": [{"port": "a", "when": "true"}, {"port": "b"}]}, "switch"))
    assert ("INVALID_CONFIG", "nodes[0].config.cases[1].when") in got


def test_every_cycle_is_named() -> None:
    definition = Definition(
        tuple(transform(key) for key in "abcdef"),
        (
            Edge("a", "b"),
            Edge("b", "c"),
            Edge("c", "b"),
            Edge("c", "d"),
            Edge("e", "e"),
            Edge("f", "a"),
        ),
    )
    got = [issue for issue in issues(definition) if issue.code == "CYCLE"]
    assert [(issue.path, "`b` → `c` → `b`" in issue.message or "`e` → `e`" in issue.message) for issue in got] == [
        ("edges[2]", True),
        ("edges[4]", True),
    ]


def test_what_only_a_cycle_leads_to_is_unreachable() -> None:
    definition = Definition(
        tuple(transform(key) for key in "abcd"), (Edge("a", "b"), Edge("b", "a"), Edge("b", "c"), Edge("d", "c"))
    )
    assert "UNREACHABLE_NODE" not in {code for code, _ in found(definition)}
    definition = replace(definition, edges=definition.edges[:3])
    assert ("UNREACHABLE_NODE", "nodes[2]") in found(definition)


def test_edges_join_nodes_that_exist_once_at_ports_that_exist() -> None:
    definition = Definition(
        (transform("a"), transform("b")),
        (
            Edge("a", "b"),
            Edge("a", "bb"),
            Edge("a", "b"),
            Edge("a", "b", source_port="true"),
            Edge("a", "b", source_port="error"),
            Edge("a", "b", target_port="left"),
        ),
    )
    assert found(definition) == [
        ("UNKNOWN_NODE", "edges[1].target"),
        ("DUPLICATE_EDGE", "edges[2]"),
        ("UNKNOWN_PORT", "edges[3].source_port"),
        ("UNKNOWN_PORT", "edges[5].target_port"),
    ]


def test_a_node_may_make_its_own_ports() -> None:
    cases = [{"port": port, "when": "true"} for port in ("big", "small", "big")]
    definition = Definition(
        (Node("s", "switch", config={"cases": cases}), transform("a")),
        (Edge("s", "a", source_port="big"), Edge("s", "a", source_port="default"), Edge("s", "a", source_port="huge")),
    )
    got = issues(definition)
    assert [(issue.code, issue.path, issue.severity) for issue in got] == [
        ("DEAD_PORT", "nodes[0].config.cases[1].port", "warning"),
        ("DUPLICATE_PORT", "nodes[0].config.cases[2].port", "error"),
        ("UNKNOWN_PORT", "edges[2].source_port", "error"),
    ]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("{{ nodes.a. }}", "EXPRESSION_SYNTAX"),
        ("{{ input.x", "EXPRESSION_SYNTAX"),
        ("{{ inputs.x }}", "EXPRESSION_UNKNOWN_NAME"),
        ("{{ frobnicate(1) }}", "EXPRESSION_UNKNOWN_NAME"),
        ("{{ item.x }}", "EXPRESSION_UNKNOWN_NAME"),
        ("{{ run.var.mode }}", "EXPRESSION_UNKNOWN_NAME"),
        ("{{ default(project.variables.mode, 1) }}", "EXPRESSION_UNKNOWN_NAME"),
        ("{{ input[index + 1] }}", "EXPRESSION_UNKNOWN_NAME"),
        ("{{ nodes.missing.output }}", "UNKNOWN_NODE_REFERENCE"),
        ("{{ nodes['missing'].output }}", "UNKNOWN_NODE_REFERENCE"),
        ("{{ size(nodes.n.output) }}", "NOT_AN_ANCESTOR"),
        ("{{ nodes.n.output }}", "NOT_AN_ANCESTOR"),
    ],
)
def test_an_expression_that_cannot_work_is_told_where_it_stands(value: str, code: str) -> None:
    issue = only(one({"values": {"ok": "{{ input.x }}", "deep": [{"x y": value}]}}, "transform"))
    assert (issue.code, issue.path, issue.node_key) == (code, 'nodes[0].config.values.deep[0]["x y"]', "n")


def test_any_variable_of_the_run_and_the_project_may_be_read() -> None:
    text = "{{ run.vars.mode }} {{ project.vars['a-b'] }} {{ run.id }} {{ project.vars }}"
    assert issues(one({"values": {"a": text}}, "transform")) == []
    issue = only(one({"values": {"a": "{{ run.var.mode }}"}}, "transform"))
    assert issue.message == "There is no `run.var`; there are `run.id`, `run.vars`, `run.version`, `run.workflow_id`."


def test_a_misspelt_node_is_told_with_what_was_probably_meant() -> None:
    assert "Did you mean `search`?" in only(chain(transform("search"), reads("b", "serach"))).message


def test_only_ancestors_can_be_read() -> None:
    """a ─► b ─► c      a ─► d: c reads a and b; d must not read b, nor b c."""
    definition = Definition(
        (transform("a"), reads("b", "c"), transform("c", "{{ nodes.a.output }} {{ nodes.b.output }}"), reads("d", "b")),
        (Edge("a", "b"), Edge("b", "c"), Edge("a", "d")),
    )
    assert found(definition) == [
        ("NOT_AN_ANCESTOR", "nodes[1].config.values.a"),
        ("NOT_AN_ANCESTOR", "nodes[3].config.values.a"),
    ]


def test_expression_fields_are_expressions_without_braces() -> None:
    assert found(one({"when": "input.x > 1 &&"}, "condition")) == [("EXPRESSION_SYNTAX", "nodes[0].config.when")]
    assert "without `{{ }}`" in only(one({"when": "{{ input.x }}"}, "condition")).message
    cases = [{"port": "a", "when": "nodes.gone.output"}]
    definition = Definition((Node("s", "switch", config={"cases": cases}), transform("a")), (Edge("s", "a", "", "a"),))
    assert found(definition) == [("UNKNOWN_NODE_REFERENCE", "nodes[0].config.cases[0].when")]


def test_retry_conditions_see_the_error_and_the_attempt_only() -> None:
    good = transform("n", retry=Retry(when="error.reason in ['A'] || attempt < 2"))
    assert issues(Definition((good,))) == []
    bad = transform("n", retry=Retry(when="input.x"))
    assert found(Definition((bad,))) == [("EXPRESSION_UNKNOWN_NAME", "nodes[0].retry.when")]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"timeout_seconds": -1.0}, "timeout_seconds"),
        ({"timeout_seconds": 1e8}, "timeout_seconds"),
        ({"retry": Retry(max_attempts=0)}, "retry.max_attempts"),
        ({"retry": Retry(max_attempts=101)}, "retry.max_attempts"),
        ({"retry": Retry(initial_interval=-1.0)}, "retry.initial_interval"),
        ({"retry": Retry(backoff=0.5)}, "retry.backoff"),
        ({"retry": Retry(initial_interval=5.0, max_interval=1.0)}, "retry.max_interval"),
    ],
)
def test_numbers_have_a_range(fields: dict[str, Any], path: str) -> None:
    assert found(Definition((transform("n", **fields),))) == [("OUT_OF_RANGE", f"nodes[0].{path}")]


def body(*nodes: dict[str, Any], edges: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    return {"nodes": list(nodes), "edges": [{"source": one, "target": other} for one, other in edges]}


def inner(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "type": "transform", "config": {"values": {"a": value}}}


def each(key: str, content: Any) -> Node:
    return Node(key, "each", config={"items": "{{ input.items }}", "body": content})


def test_a_body_reads_its_own_nodes_its_item_and_what_runs_before_its_node() -> None:
    content = body(
        inner("x", "{{ item.n + index }}"),
        inner("y", "{{ nodes.x.output.a }} {{ nodes.before.output.a }}"),
        edges=(("x", "y"),),
    )
    assert issues(chain(transform("before"), each("m", content))) == []


def test_issues_of_a_body_are_placed_in_it() -> None:
    content = body(
        inner("x", "{{ nodes.y.output }}"),
        inner("y", "{{ nodes.after.output }} {{ state }}"),
        inner("z", "{{ nodes.nowhere.output }} {{ nodes.m.output }}"),
        {"key": "w", "type": "http_request", "config": {"url": 1}, "timeout": 3},
        edges=(("x", "y"), ("y", "v")),
    )
    got = issues(chain(each("m", content), transform("after")))
    assert {(issue.code, issue.path, issue.node_key) for issue in got} == {
        ("UNKNOWN_FIELD", "nodes[0].config.body.nodes[3].timeout", "m"),
        ("NOT_AN_ANCESTOR", "nodes[0].config.body.nodes[0].config.values.a", "m.x"),
        ("NOT_AN_ANCESTOR", "nodes[0].config.body.nodes[1].config.values.a", "m.y"),
        ("EXPRESSION_UNKNOWN_NAME", "nodes[0].config.body.nodes[1].config.values.a", "m.y"),
        ("UNKNOWN_NODE_REFERENCE", "nodes[0].config.body.nodes[2].config.values.a", "m.z"),
        ("NOT_AN_ANCESTOR", "nodes[0].config.body.nodes[2].config.values.a", "m.z"),
        ("INVALID_CONFIG", "nodes[0].config.body.nodes[3].config.url", "m.w"),
        ("UNKNOWN_NODE", "nodes[0].config.body.edges[1].target", "m"),
    }


def test_a_loop_has_its_state_in_body_and_condition() -> None:
    config = {"body": body(inner("x", "{{ state.n + index }}")), "until": "state.n > 3 || index > 5"}
    assert issues(one(config, "again")) == []
    config = {"body": body(inner("x", "{{ item }}")), "until": "item"}
    assert {code for code, _ in found(one(config, "again"))} == {"EXPRESSION_UNKNOWN_NAME"}


@pytest.mark.parametrize("content", [None, 1, [], "{{ input.body }}", {"nodes": 1}, {"nodes": [1]}, {"nodes": []}])
def test_a_body_that_is_no_definition_is_an_issue(content: Any) -> None:
    assert not is_valid(issues(Definition((each("m", content),))))


def test_bodies_are_nested_so_deep_and_no_deeper() -> None:
    def nested(levels: int) -> Definition:
        content = body(inner("x", 1))
        for _ in range(levels - 1):
            content = body({"key": "m", "type": "each", "config": {"items": [], "body": content}})
        return Definition((each("m", content),))

    assert issues(nested(5)) == []
    assert [code for code, _ in found(nested(6))] == ["TOO_DEEP"]
    assert [code for code, _ in found(nested(30))] == ["TOO_DEEP"]


def test_limits_keep_a_draft_from_being_stored() -> None:
    many = Definition(tuple(transform(f"n{index}") for index in range(MAX_NODES + 1)))
    assert [issue.code for issue in storage_problems(many)] == ["TOO_MANY_NODES"]
    edges = Definition((transform("a"),), (Edge("a", "b"),) * (MAX_EDGES + 1))
    assert "TOO_MANY_EDGES" in [issue.code for issue in storage_problems(edges)]
    large = Definition((transform("a", "x" * (8 * 1024 * 1024)),))
    assert [issue.code for issue in storage_problems(large)] == ["DEFINITION_TOO_LARGE"]
    full = Definition((transform("a", "{{ 1 }}" * (MAX_EXPRESSIONS + 1)),))
    assert [issue.code for issue in storage_problems(full)] == ["TOO_MANY_EXPRESSIONS"]
    keys = Definition((transform("A"), transform("b"), transform("b"), Node("c", "nonsense")))
    assert [issue.code for issue in storage_problems(keys)] == ["INVALID_KEY", "DUPLICATE_KEY"]


def test_a_body_cannot_hide_nodes_from_the_limit() -> None:
    content = body(*(inner(f"x{index}", 1) for index in range(MAX_NODES)))
    assert "TOO_MANY_NODES" in [code for code, _ in found(Definition((each("m", content),)))]


def test_so_many_issues_are_cut_short() -> None:
    got = issues(Definition(tuple(Node(f"n{index}", "nonsense") for index in range(3000))))
    assert len(got) == MAX_ISSUES
    assert "2001 more" in got[-1].message


def test_a_broken_schema_is_refused_when_the_type_is_made() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        make_node_type("t", {"type": "nonsense"})


SIZE = 10_000


def far_chain() -> Definition:
    """Each node reads one that lies at 38% of the way to it, so that nearly all are read."""
    return chain(transform("n0"), *(reads(f"n{i}", f"n{i * 382 // 1000}") for i in range(1, SIZE)))


def wide() -> Definition:
    nodes = (transform("n0"), *(reads(f"n{i}", "n0") for i in range(1, SIZE)))
    return Definition(nodes, tuple(Edge("n0", f"n{i}") for i in range(1, SIZE)))


def layers() -> Definition:
    """100 layers of 100 nodes, each reading and entered by five of the layer before."""
    nodes = [transform(f"n{i}") if i < 100 else reads(f"n{i}", f"n{i - 100}") for i in range(SIZE)]
    edges = [Edge(f"n{i - 100 - i % 100 + (i + k) % 100}", f"n{i}") for i in range(100, SIZE) for k in range(5)]
    return Definition(tuple(nodes), tuple(edges))


@pytest.mark.parametrize("make", [far_chain, wide, layers])
def test_ten_thousand_nodes_are_checked_in_under_a_second(make: Any) -> None:
    definition = make()
    # Again when the machine is busy with something else.
    assert any(seconds_to_accept(definition) < 1.0 for _ in range(3))


def seconds_to_accept(definition: Definition) -> float:
    started = time.process_time()
    assert issues(definition) == []
    return time.process_time() - started


@pytest.mark.parametrize(
    "text",
    [
        "{{" * 50_000,
        "{{ " * 30_000,
        "{{ nodes." + "a." * 50_000,
        "{" * 100_000,
        "{{" + " " * 100_000,
        "{{ x }}" * 10_000,
        "".join(f"{{{{ nodes.a{index} + 1 }}}}" for index in range(40_000)),
    ],
)
def test_hostile_text_is_checked_quickly(text: str) -> None:
    started = time.process_time()
    assert not is_valid(issues(Definition((transform("a", text), transform(text[:100_000]))))) or text[:2] != "{{"
    assert time.process_time() - started < 2.0
