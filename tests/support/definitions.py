"""Definitions for tests, and the real node types to check them against."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import run_pb2

from services.executor.handlers import registry
from services.workflows.domain.catalogue import NodeTypes, make_node_type
from services.workflows.domain.definition import Definition, Edge, Node

_BODY = {"type": "object", "x-headrace-body": ["item", "index"]}
MAP_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["items", "body"],
    "properties": {"items": {"type": "array"}, "body": _BODY, "concurrency": {"type": "integer"}},
}
LOOP_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["body", "until"],
    "properties": {
        "body": {"type": "object", "x-headrace-body": ["state", "index"]},
        "until": {"type": "string"},
        "state": {},
    },
}


def node_types() -> NodeTypes:
    """Those of the executor, and two with bodies."""
    types = {
        name: make_node_type(
            name,
            registry.config_schema(node_type),
            ports=node_type.ports,
            dynamic_ports_field=node_type.dynamic_ports_field,
            expression_fields=node_type.expression_fields,
        )
        for name, node_type in registry.catalogue().items()
    }
    types["each"] = make_node_type("each", MAP_SCHEMA)
    types["again"] = make_node_type("again", LOOP_SCHEMA, expression_fields=("until: state, index",))
    return types


def node_type_messages() -> list[run_pb2.NodeType]:
    """The same as the executor would serve them."""
    return [
        run_pb2.NodeType(
            type=name,
            title=node_type.title,
            config_schema=value_pb2.Json(utf8=orjson.dumps(registry.config_schema(node_type))),
            ports=node_type.ports,
            dynamic_ports_field=node_type.dynamic_ports_field,
            expression_fields=node_type.expression_fields,
        )
        for name, node_type in registry.catalogue().items()
    ]


def transform(key: str, value: Any = 1, **fields: Any) -> Node:
    """A node whose output is `{"a": value}`; the value may be a template."""
    return Node(key=key, type="transform", config={"values": {"a": value}}, **fields)


def reads(key: str, other: str) -> Node:
    """A node that reads the output of another."""
    return transform(key, f"{{{{ nodes.{other}.output.a }}}}")


def chain(*nodes: Node) -> Definition:
    """Nodes, each with an edge to the next."""
    edges = (Edge(one.key, other.key) for one, other in pairwise(nodes))
    return Definition(nodes, tuple(edges))
