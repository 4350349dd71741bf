"""The catalogue of node types as validation needs it. The executor owns the types; an adapter brings them here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jsonschema_rs

from services.workflows.domain.definition import ERROR_PORT

BODY_MARK = "x-headrace-body"
"""Marks a config property that holds a definition. Its value is true or the list of names that exist inside."""

BODY_NAMES = frozenset({"item", "index", "state"})
"""What exists inside a body whose mark does not say."""

# A string with an expression in it may become a value of any type.
_TEMPLATE = {"type": "string", "pattern": "\\{\\{"}
_SCHEMA_MAPS = ("properties", "patternProperties")
_SCHEMA_LISTS = ("anyOf", "allOf", "prefixItems")
_SCHEMA_VALUES = ("items", "additionalProperties")
_DEFINITIONS = ("$defs", "definitions")


@dataclass(frozen=True, slots=True)
class ExpressionField:
    """A config field that is CEL without braces. `steps` lead to it, `[]` to each item of a list."""

    steps: tuple[str, ...]
    names: frozenset[str] = frozenset()
    """Names beyond the usual ones."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A node type, ready to check configs against. Immutable and safe to share between threads."""

    name: str
    validator: "jsonschema_rs.Validator"
    """Checks a config in which any value may be a template."""
    options: frozenset[str]
    """Top-level config fields."""
    all_ports: frozenset[str]
    """Output ports that nodes of the type always have, `error` among them."""
    dynamic_ports_field: str = ""
    """Config field whose items' `port` are further output ports."""
    expression_fields: tuple[ExpressionField, ...] = ()
    bodies: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Config fields that hold a definition, with the names that exist inside."""


NodeTypes = Mapping[str, NodeType]
"""Node types by name; replaced whole, never changed in place."""


class NodeTypeCatalogue(Protocol):
    """Where the node types come from."""

    def node_types(self) -> NodeTypes:
        """The newest known. Raises UnavailableError while none were ever read."""
        ...

    async def refresh(self) -> None:
        """Ask for newer ones, because an unknown type was met. Cheap to call often; never fails."""
        ...


def make_node_type(
    name: str,
    config_schema: dict[str, Any],
    *,
    ports: tuple[str, ...] = ("out",),
    dynamic_ports_field: str = "",
    expression_fields: tuple[str, ...] = (),
) -> NodeType:
    """A node type from what the catalogue publishes.

    `expression_fields` are paths such as `cases[].when`; names beyond the usual ones follow a colon: `until: state,
    index`. Raises ValueError for a schema that is none.
    """
    properties = config_schema.get("properties", {})
    bodies = {key: names for key, schema in properties.items() if (names := _body_names(schema)) is not None}
    opened = _open_inside(config_schema)
    for key in bodies:
        # A body is checked as a definition, and no expression can stand for it.
        opened["properties"][key] = {"type": "object"}
    return NodeType(
        name=name,
        validator=jsonschema_rs.validator_for(opened),
        options=frozenset(properties),
        all_ports=frozenset({ERROR_PORT, *ports}),
        dynamic_ports_field=dynamic_ports_field,
        expression_fields=tuple(_expression_field(text) for text in expression_fields),
        bodies=bodies,
    )


def _body_names(schema: Any) -> frozenset[str] | None:
    mark = schema.get(BODY_MARK) if isinstance(schema, dict) else None
    if isinstance(mark, list):
        return frozenset(str(name) for name in mark)
    return BODY_NAMES if mark is True else None


def _expression_field(text: str) -> ExpressionField:
    path, _, names = text.partition(":")
    steps = tuple(path.strip().replace("[]", ".[]").split("."))
    return ExpressionField(steps, frozenset(name.strip() for name in names.split(",") if name.strip()))


def _open(schema: Any) -> Any:
    """The schema, or any template string."""
    if not isinstance(schema, dict) or not schema:
        return schema
    return {"if": _TEMPLATE, "else": _open_inside(schema)}


def _open_inside(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every value inside it opened for templates. Schemas are the operator's, not users': recursive."""
    opened = dict(schema)
    if "oneOf" in opened:
        # A template in the field that tells the branches apart fits several of them.
        opened["allOf"] = [*opened.get("allOf", ()), {"anyOf": opened.pop("oneOf")}]
    for word in _SCHEMA_MAPS:
        if word in opened:
            opened[word] = {key: _open(item) for key, item in opened[word].items()}
    for word in _DEFINITIONS:
        if word in opened:
            opened[word] = {key: _open_inside(item) for key, item in opened[word].items()}
    for word in _SCHEMA_LISTS:
        if word in opened:
            opened[word] = [_open_inside(item) if isinstance(item, dict) else item for item in opened[word]]
    for word in _SCHEMA_VALUES:
        if word in opened:
            opened[word] = _open(opened[word])
    if "prefixItems" in opened:
        opened["prefixItems"] = [_open(item) for item in schema["prefixItems"]]
    return opened
