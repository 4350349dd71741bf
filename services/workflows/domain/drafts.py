"""Changes to drafts, as pure functions from definition to definition."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.kit.errors import InvalidArgumentError, Violation
from services.workflows.domain.definition import KEY, KEY_LENGTH, KEY_RULE, Definition, Edge, Node
from services.workflows.domain.definition_json import node_to_json, read_node
from services.workflows.domain.model import (
    EdgeExistsError,
    EdgeNotFoundError,
    NodeKeyTakenError,
    NodeNotFoundError,
)
from services.workflows.domain.text import excerpt
from services.workflows.domain.validation import storage_problems

MakeId = Callable[[], str]

_NOT_IN_KEYS = re.compile(r"[^a-z0-9]+")


def require_storable(definition: Definition) -> None:
    """Raise InvalidArgumentError for a draft that cannot even be stored, with all reasons."""
    problems = storage_problems(definition)
    if problems:
        raise InvalidArgumentError(
            f"The draft cannot be saved: {problems[0].message}", violations=tuple(problems), reason="INVALID_ARGUMENT"
        )


def with_ids(definition: Definition, present: Definition, make_id: MakeId) -> Definition:
    """The definition with an id on every node and edge.

    Ids that the present draft knows are kept. A node without one takes that of the present node with its key, and an
    edge that of the present edge between the same ports. All others get new ones: clients do not choose ids.
    """
    node_ids = {node.key: node.id for node in present.nodes}
    edge_ids = {edge.ends: edge.id for edge in present.edges}
    nodes = _give_ids([(node.id, node_ids.get(node.key)) for node in definition.nodes], set(node_ids.values()), make_id)
    edges = _give_ids(
        [(edge.id, edge_ids.get(edge.ends)) for edge in definition.edges], set(edge_ids.values()), make_id
    )
    return replace(
        definition,
        nodes=tuple(
            node if node.id == new else replace(node, id=new) for node, new in zip(definition.nodes, nodes, strict=True)
        ),
        edges=tuple(
            edge if edge.id == new else replace(edge, id=new) for edge, new in zip(definition.edges, edges, strict=True)
        ),
    )


def _give_ids(wishes: list[tuple[str, str | None]], known: set[str], make_id: MakeId) -> list[str]:
    """For each (asked for, natural) pair an id; each known one is given once, first to those that ask for it."""
    given: list[str] = []
    for asked, _ in wishes:
        given.append(asked if asked in known else "")
        known.discard(asked)
    for index, (_, natural) in enumerate(wishes):
        if not given[index]:
            given[index] = natural if natural is not None and natural in known else make_id()
            known.discard(given[index])
    return given


def find_node(definition: Definition, node_id: str) -> Node:
    """The node with an id. Raises NodeNotFoundError."""
    for node in definition.nodes:
        if node.id == node_id:
            return node
    raise NodeNotFoundError(f"There is no node with the id {excerpt(node_id, 64)} in this workflow.")


def find_edge(definition: Definition, edge_id: str) -> Edge:
    """The edge with an id. Raises EdgeNotFoundError."""
    for edge in definition.edges:
        if edge.id == edge_id:
            return edge
    raise EdgeNotFoundError(f"There is no edge with the id {excerpt(edge_id, 64)} in this workflow.")


def add_node(definition: Definition, node: Node) -> tuple[Definition, Node]:
    """Add a node; without a key it gets one from its name or type. Raises NodeKeyTakenError."""
    keys = {other.key for other in definition.nodes}
    if not node.key:
        node = replace(node, key=_free_key(node.name or node.type, keys))
    elif node.key in keys:
        raise NodeKeyTakenError(excerpt(node.key))
    return replace(definition, nodes=(*definition.nodes, node)), node


def _free_key(text: str, taken: set[str]) -> str:
    stem = _NOT_IN_KEYS.sub("_", text[: 4 * KEY_LENGTH].lower()).strip("_")[: KEY_LENGTH - 8]
    if not stem or not KEY.fullmatch(stem):
        stem = f"node_{stem}".rstrip("_")
    key, number = stem, 1
    while key in taken:
        number += 1
        key = f"{stem}_{number}"
    return key


def patch_node(definition: Definition, node_id: str, patch: Any) -> tuple[Definition, Node]:
    """Change a node by a JSON merge patch (RFC 7396) over its REST form; a new key follows into edges.

    Raises NodeNotFoundError, NodeKeyTakenError, and InvalidArgumentError with all that is wrong with the result's form.
    """
    old = find_node(definition, node_id)
    if not isinstance(patch, dict):
        raise _refused(Violation("INVALID_TYPE", "The change must be a JSON object.", ""))
    problems: list[Violation] = []
    new = read_node(merge_patch(node_to_json(old), patch), "", problems)
    if new.id != old.id:
        problems.append(Violation("READ_ONLY", "The id of a node cannot be changed.", "id"))
    if not KEY.fullmatch(new.key):
        problems.append(Violation("INVALID_KEY", f"`{excerpt(new.key)}` cannot be a key. {KEY_RULE}", "key"))
    if problems:
        raise _refused(*problems)
    if new.key != old.key and any(node.key == new.key for node in definition.nodes):
        raise NodeKeyTakenError(new.key)
    nodes = tuple(new if node.id == node_id else node for node in definition.nodes)
    edges = definition.edges
    if new.key != old.key:
        edges = tuple(_renamed(edge, old.key, new.key) for edge in edges)
    return replace(definition, nodes=nodes, edges=edges), new


def merge_patch(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396: null removes, objects merge, everything else replaces. Changes neither argument."""
    result = target.copy()
    stack = [(result, patch)]
    while stack:
        into, changes = stack.pop()
        for name, value in changes.items():
            if value is None:
                into.pop(name, None)
            elif isinstance(value, dict):
                present = into.get(name)
                into[name] = present.copy() if isinstance(present, dict) else {}
                stack.append((into[name], value))
            else:
                into[name] = value
    return result


def _renamed(edge: Edge, old: str, new: str) -> Edge:
    if old not in (edge.source, edge.target):
        return edge
    source = new if edge.source == old else edge.source
    target = new if edge.target == old else edge.target
    return replace(edge, source=source, target=target)


def remove_node(definition: Definition, node_id: str) -> Definition:
    """Remove a node and its edges. Raises NodeNotFoundError."""
    key = find_node(definition, node_id).key
    return replace(
        definition,
        nodes=tuple(node for node in definition.nodes if node.id != node_id),
        edges=tuple(edge for edge in definition.edges if key not in (edge.source, edge.target)),
    )


def add_edge(definition: Definition, edge: Edge) -> Definition:
    """Add an edge. Raises NodeNotFoundError for an end that is no node, EdgeExistsError."""
    keys = {node.key for node in definition.nodes}
    for end, key in (("source", edge.source), ("target", edge.target)):
        if key not in keys:
            raise NodeNotFoundError(f"The {end} of the edge, `{excerpt(key)}`, is no node of this workflow.")
    if any(other.ends == edge.ends for other in definition.edges):
        raise EdgeExistsError(
            f"There is an edge from `{edge.source}` ({excerpt(edge.source_port)}) to `{edge.target}` "
            f"({excerpt(edge.target_port)}) already."
        )
    return replace(definition, edges=(*definition.edges, edge))


def remove_edge(definition: Definition, edge_id: str) -> Definition:
    """Remove an edge. Raises EdgeNotFoundError."""
    find_edge(definition, edge_id)
    return replace(definition, edges=tuple(edge for edge in definition.edges if edge.id != edge_id))


def _refused(*violations: Violation) -> InvalidArgumentError:
    return InvalidArgumentError(violations[0].message, violations=violations)
