"""Changes to drafts, and their JSON form."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from services.kit.errors import InvalidArgumentError
from services.workflows.domain import drafts
from services.workflows.domain.definition import Definition, Delivery, Edge, Join, Node, OnError, Position, Retry
from services.workflows.domain.definition_json import content_hash, dump_definition, load_definition
from services.workflows.domain.model import EdgeExistsError, NodeKeyTakenError, NodeNotFoundError
from tests.support.definitions import chain, transform

FULL = Definition(
    nodes=(
        Node(
            id="1",
            key="a",
            type="transform",
            name="First",
            config={"z": 1, "a": [1.0, None, True, {"é": "ü"}]},
            retry=Retry(max_attempts=5, jitter=False, when="attempt < 3"),
            timeout_seconds=1.5,
            on_error=OnError.CONTINUE,
            position=Position(1.5, -2.0),
            join=Join.ANY,
            delivery=Delivery.AT_MOST_ONCE,
        ),
        Node(id="2", key="b", type="output"),
    ),
    edges=(Edge(id="3", source="a", target="b", source_port="error"),),
    timeout_seconds=60.0,
)


def test_a_definition_survives_its_json_form() -> None:
    assert load_definition(dump_definition(FULL)) == FULL


def test_the_hash_sees_what_runs_see() -> None:
    def with_first(**changes: Any) -> Definition:
        fields = {name: getattr(FULL.nodes[0], name) for name in Node.__slots__} | changes
        return Definition((Node(**fields), *FULL.nodes[1:]), FULL.edges, FULL.timeout_seconds)

    same = [
        with_first(id="9", name="Other", position=None),
        Definition(FULL.nodes[::-1], FULL.edges, 60.0),
        Definition(FULL.nodes, (Edge(id="9", source="a", target="b", source_port="error"),), 60.0),
    ]
    other = [
        with_first(key="c"),
        with_first(type="output"),
        with_first(config={}),
        with_first(config={"a": FULL.nodes[0].config["a"], "z": 1}),
        with_first(config=FULL.nodes[0].config | {"z": 1.0}),
        with_first(retry=None),
        with_first(timeout_seconds=None),
        with_first(on_error=OnError.FAIL),
        with_first(join=Join.ALL),
        with_first(delivery=Delivery.AT_LEAST_ONCE),
        Definition(FULL.nodes, (), 60.0),
        Definition(FULL.nodes, FULL.edges, None),
    ]
    assert {content_hash(definition) for definition in same} == {content_hash(FULL)}
    assert len({content_hash(definition) for definition in [FULL, *other]}) == len(other) + 1


def with_ids(new: Definition, present: Definition) -> tuple[list[str], list[str]]:
    numbers = count(100)
    result = drafts.with_ids(new, present, lambda: str(next(numbers)))
    return [node.id for node in result.nodes], [edge.id for edge in result.edges]


def test_ids_are_kept_where_they_are_known_and_made_where_they_are_not() -> None:
    present = Definition(
        (transform("a", id="1"), transform("b", id="2"), transform("c", id="3")), (Edge("a", "b", id="4"),)
    )
    assert with_ids(present, present) == (["1", "2", "3"], ["4"])
    renamed = Definition((transform("x", id="1"), transform("a"), transform("b"), transform("c", id="forged")))
    assert with_ids(renamed, present)[0] == ["1", "100", "2", "3"]
    twice = Definition((transform("x", id="1"), transform("y", id="1")))
    assert with_ids(twice, present)[0] == ["1", "100"]
    swapped = Definition((transform("b", id="1"), transform("a", id="2")), (Edge("a", "b"), Edge("b", "a", id="4")))
    assert with_ids(swapped, present) == (["1", "2"], ["100", "4"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Find passages!", "find_passages"),
        ("", "transform"),
        ("Änderung", "nderung"),
        ("123", "node_123"),
        ("日本", "node"),
    ],
)
def test_a_key_is_made_from_the_name_or_the_type(name: str, key: str) -> None:
    once, node = drafts.add_node(Definition(), Node("", "transform", name=name))
    assert node.key == key
    assert drafts.add_node(once, Node("", "transform", name=name))[1].key == f"{key}_2"


def test_made_keys_are_keys_however_long_the_name() -> None:
    _, node = drafts.add_node(Definition(), Node("", "transform", name="x" * 100_000))
    assert len(node.key) <= 64


def test_a_renamed_node_keeps_its_edges() -> None:
    draft = chain(transform("a", id="1"), transform("b", id="2"), transform("c", id="3"))
    changed, node = drafts.patch_node(draft, "2", {"key": "middle", "name": "Middle"})
    assert (node.key, node.name, node.id) == ("middle", "Middle", "2")
    assert [(edge.source, edge.target) for edge in changed.edges] == [("a", "middle"), ("middle", "c")]
    with pytest.raises(NodeKeyTakenError):
        drafts.patch_node(draft, "2", {"key": "a"})


def test_a_patch_merges_into_the_config_and_null_resets() -> None:
    node = Node(
        "a",
        "http_request",
        id="1",
        config={"url": "u", "headers": {"x": "1", "y": "2"}},
        timeout_seconds=5.0,
        retry=Retry(max_attempts=9),
    )
    patch = {
        "config": {"url": None, "headers": {"y": None, "z": "3"}},
        "timeout_seconds": None,
        "retry": {"backoff": 3},
        "position": {"x": 1, "y": 2},
    }
    _, changed = drafts.patch_node(Definition((node,)), "1", patch)
    assert changed.config == {"headers": {"x": "1", "z": "3"}}
    assert changed.timeout_seconds is None
    assert changed.retry == Retry(max_attempts=9, backoff=3.0)
    assert changed.position == Position(1.0, 2.0)
    assert node.config == {"url": "u", "headers": {"x": "1", "y": "2"}}


@pytest.mark.parametrize(
    ("patch", "path"),
    [
        ([], ""),
        ({"id": "2"}, "id"),
        ({"project_id": "x"}, "project_id"),
        ({"key": "Not A Key"}, "key"),
        ({"type": None}, "type"),
        ({"config": "text"}, "config"),
        ({"timeout_seconds": "5"}, "timeout_seconds"),
        ({"timeout_seconds": True}, "timeout_seconds"),
        ({"timeout_seconds": 10**12}, "timeout_seconds"),
        ({"retry": {"max_attempts": 2.5}}, "retry.max_attempts"),
        ({"retry": {"attempts": 2}}, "retry.attempts"),
        ({"on_error": "ignore"}, "on_error"),
        ({"on_error": ["fail"]}, "on_error"),
        ({"position": {"x": "left"}}, "position.x"),
    ],
)
def test_a_patch_that_makes_no_node_is_refused_with_the_place(patch: Any, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        drafts.patch_node(Definition((transform("a", id="1"),)), "1", patch)
    assert path in {violation.path for violation in caught.value.violations}


def test_a_removed_node_takes_its_edges_along() -> None:
    draft = chain(transform("a", id="1"), transform("b", id="2"), transform("c", id="3"))
    assert drafts.remove_node(draft, "2") == Definition((draft.nodes[0], draft.nodes[2]))
    with pytest.raises(NodeNotFoundError):
        drafts.remove_node(draft, "9")


def test_an_edge_joins_two_nodes_once_between_the_same_ports() -> None:
    draft = chain(transform("a"), transform("b"))
    assert len(drafts.add_edge(draft, Edge("a", "b", source_port="error")).edges) == 2
    with pytest.raises(EdgeExistsError):
        drafts.add_edge(draft, Edge("a", "b"))
    with pytest.raises(NodeNotFoundError):
        drafts.add_edge(draft, Edge("a", "z"))
