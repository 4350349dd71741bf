"""Definitions as JSON: the REST form, which is also how drafts, versions and bodies are kept; and the content hash."""

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import orjson

from services.kit.errors import Violation
from services.workflows.domain.definition import (
    DEFAULT_PORT,
    INPUT_PORT,
    Concurrency,
    Definition,
    Delivery,
    Edge,
    Join,
    Node,
    OnError,
    Position,
    Retry,
    RunLimits,
)
from services.workflows.domain.text import Suggestions, article, excerpt, json_path, kind_of

LARGEST_NUMBER = 1_000_000_000
"""Of counts, seconds and places on the canvas: what the contract's types can hold. Validation has narrower ranges."""

_ON_ERROR = {item.value: item for item in OnError}
_JOIN = {item.value: item for item in Join}
_DELIVERY = {item.value: item for item in Delivery}
ChoiceT = TypeVar("ChoiceT", bound=StrEnum)

_BEFORE_LIMITS = re.compile(r'"timeout_seconds":[^,{}\[\]"]*\}$')

_DEFINITION_FIELDS = frozenset({"nodes", "edges", "timeout_seconds", "limits"})
_LIMITS_FIELDS = frozenset({"max_running_runs", "concurrency"})
_CONCURRENCY_FIELDS = frozenset({"key", "max"})
_NODE_FIELDS = frozenset(
    {"id", "key", "type", "name", "config", "retry", "timeout_seconds", "on_error", "position", "join", "delivery"}
)
_EDGE_FIELDS = frozenset({"id", "source", "target", "source_port", "target_port"})
_RETRY_FIELDS = frozenset({"max_attempts", "initial_interval", "backoff", "max_interval", "jitter", "when"})
_POSITION_FIELDS = frozenset({"x", "y"})


def dump_definition(definition: Definition) -> bytes:
    """The JSON text of a definition, its fields in a fixed order."""
    return orjson.dumps(definition_to_json(definition))


def load_definition(text: str | bytes) -> Definition:
    """The definition in a text that `dump_definition` made; trusts it, which is four times as fast as to check."""
    value = orjson.loads(text)
    return Definition(
        nodes=tuple(map(_stored_node, value["nodes"])),
        edges=tuple(Edge(**edge) for edge in value["edges"]),
        timeout_seconds=value["timeout_seconds"],
        # Absent from what was stored before there were any.
        limits=_stored_limits(value.get("limits")),
    )


def has_all_fields(text: str) -> bool:
    """Whether `dump_definition` made the text when there were all fields that there are now."""
    # The newest field is the last of the text; whatever wrote it wrote the others.
    return _BEFORE_LIMITS.search(text, len(text) - 64) is None


def _stored_limits(value: dict[str, Any] | None) -> RunLimits | None:
    if value is None:
        return None
    concurrency = value["concurrency"]
    return RunLimits(value["max_running_runs"], None if concurrency is None else Concurrency(**concurrency))


def _stored_node(value: dict[str, Any]) -> Node:
    retry, position = value["retry"], value["position"]
    return Node(
        id=value["id"],
        key=value["key"],
        type=value["type"],
        name=value["name"],
        config=value["config"],
        retry=None if retry is None else Retry(**retry),
        timeout_seconds=value["timeout_seconds"],
        on_error=_ON_ERROR[value["on_error"]],
        position=None if position is None else Position(**position),
        join=_JOIN[value["join"]],
        # Left out of definitions that were stored before there was a choice.
        delivery=_DELIVERY[value.get("delivery", Delivery.AT_LEAST_ONCE.value)],
    )


def content_hash(definition: Definition) -> str:
    """SHA-256, hex, over what makes a difference to runs.

    Ids, names and positions take no part, nor does the order of nodes and edges, which runs do not see. The order of
    keys in a config does: a response schema's order is the order in which a model writes its answer.
    """
    nodes = [_hashed(node) for node in sorted(definition.nodes, key=lambda node: node.key)]
    edges = sorted(edge.ends for edge in definition.edges)
    content: list[Any] = [nodes, edges, definition.timeout_seconds]
    if definition.limits is not None:
        content.append(limits_to_json(definition.limits))
    return hashlib.sha256(orjson.dumps(content)).hexdigest()


def _hashed(node: Node) -> tuple[object, ...]:
    parts = (
        node.key,
        node.type,
        node.config,
        _retry_to_json(node.retry),
        node.timeout_seconds,
        node.on_error,
        node.join,
    )
    # What came later takes part only where it is not the default, so that older hashes stay true.
    return parts if node.delivery is Delivery.AT_LEAST_ONCE else (*parts, node.delivery)


def definition_to_json(definition: Definition) -> dict[str, Any]:
    """The REST form of a definition."""
    return {
        "nodes": [node_to_json(node) for node in definition.nodes],
        "edges": [edge_to_json(edge) for edge in definition.edges],
        "timeout_seconds": definition.timeout_seconds,
        "limits": definition.limits and limits_to_json(definition.limits),
    }


def limits_to_json(limits: RunLimits) -> dict[str, Any]:
    """The REST form of limits of runs."""
    concurrency = limits.concurrency
    return {
        "max_running_runs": limits.max_running_runs,
        "concurrency": concurrency and {"key": concurrency.key, "max": concurrency.max},
    }


def node_to_json(node: Node) -> dict[str, Any]:
    """The REST form of a node. Shares `config`."""
    return {
        "id": node.id,
        "key": node.key,
        "type": node.type,
        "name": node.name,
        "config": node.config,
        "retry": _retry_to_json(node.retry),
        "timeout_seconds": node.timeout_seconds,
        "on_error": node.on_error.value,
        "position": node.position and {"x": node.position.x, "y": node.position.y},
        "join": node.join.value,
        "delivery": node.delivery.value,
    }


def edge_to_json(edge: Edge) -> dict[str, Any]:
    """The REST form of an edge."""
    return {
        "id": edge.id,
        "source": edge.source,
        "target": edge.target,
        "source_port": edge.source_port,
        "target_port": edge.target_port,
    }


def _retry_to_json(retry: Retry | None) -> dict[str, Any] | None:
    if retry is None:
        return None
    return {
        "max_attempts": retry.max_attempts,
        "initial_interval": retry.initial_interval,
        "backoff": retry.backoff,
        "max_interval": retry.max_interval,
        "jitter": retry.jitter,
        "when": retry.when,
    }


def read_definition(value: Any, path: str, problems: list[Violation]) -> Definition:
    """The definition in a JSON value. What is of the wrong shape goes to `problems` and is left out or defaulted."""
    fields = _Fields(value, path, _DEFINITION_FIELDS, problems)
    nodes = fields.list_of("nodes")
    edges = fields.list_of("edges")
    return Definition(
        nodes=tuple(read_node(item, json_path(path, "nodes", index), problems) for index, item in enumerate(nodes)),
        edges=tuple(read_edge(item, json_path(path, "edges", index), problems) for index, item in enumerate(edges)),
        timeout_seconds=fields.number("timeout_seconds"),
        limits=_read_limits(fields.object("limits"), path, problems),
    )


def _read_limits(value: dict[str, Any] | None, path: str, problems: list[Violation]) -> RunLimits | None:
    if value is None:
        return None
    place = json_path(path, "limits")
    fields = _Fields(value, place, _LIMITS_FIELDS, problems)
    inner = fields.object("concurrency")
    concurrency = None
    if inner is not None:
        of_key = _Fields(inner, json_path(place, "concurrency"), _CONCURRENCY_FIELDS, problems)
        concurrency = Concurrency(of_key.text("key", required=True), of_key.integer("max", 1))
    return RunLimits(fields.integer("max_running_runs", 0) or None, concurrency)


def read_node(value: Any, path: str, problems: list[Violation]) -> Node:
    """The node in a JSON value, with `problems` as in `read_definition`."""
    fields = _Fields(value, path, _NODE_FIELDS, problems)
    return Node(
        id=fields.text("id"),
        key=fields.text("key", required=True),
        type=fields.text("type", required=True),
        name=fields.text("name"),
        config=fields.object("config") or {},
        retry=_read_retry(fields.object("retry"), path, problems),
        timeout_seconds=fields.number("timeout_seconds"),
        on_error=fields.choice("on_error", OnError.FAIL),
        position=_read_position(fields.object("position"), path, problems),
        join=fields.choice("join", Join.ALL),
        delivery=fields.choice("delivery", Delivery.AT_LEAST_ONCE),
    )


def read_edge(value: Any, path: str, problems: list[Violation]) -> Edge:
    """The edge in a JSON value, with `problems` as in `read_definition`."""
    fields = _Fields(value, path, _EDGE_FIELDS, problems)
    return Edge(
        id=fields.text("id"),
        source=fields.text("source", required=True),
        target=fields.text("target", required=True),
        source_port=fields.text("source_port") or DEFAULT_PORT,
        target_port=fields.text("target_port") or INPUT_PORT,
    )


def _read_retry(value: dict[str, Any] | None, path: str, problems: list[Violation]) -> Retry | None:
    if value is None:
        return None
    fields = _Fields(value, json_path(path, "retry"), _RETRY_FIELDS, problems)
    default = Retry()
    return Retry(
        max_attempts=fields.integer("max_attempts", default.max_attempts),
        initial_interval=fields.number_or("initial_interval", default.initial_interval),
        backoff=fields.number_or("backoff", default.backoff),
        max_interval=fields.number_or("max_interval", default.max_interval),
        jitter=fields.boolean("jitter", default.jitter),
        when=fields.text("when"),
    )


def _read_position(value: dict[str, Any] | None, path: str, problems: list[Violation]) -> Position | None:
    if value is None:
        return None
    fields = _Fields(value, json_path(path, "position"), _POSITION_FIELDS, problems)
    return Position(x=fields.number_or("x", 0.0), y=fields.number_or("y", 0.0))


class _Fields:
    """Reads the fields of an object, each by its type; null counts as left out."""

    __slots__ = ("_is_object", "_path", "_problems", "_value")

    def __init__(self, value: Any, path: str, known: frozenset[str], problems: list[Violation]) -> None:
        self._path = path
        self._problems = problems
        self._is_object = isinstance(value, dict)
        if not self._is_object:
            self._value: Mapping[str, Any] = {}
            problems.append(Violation("INVALID_TYPE", f"Expected an object, found {kind_of(value)}.", path))
            return
        self._value = value
        if not known.issuperset(value):
            self._refuse_unknown(known)

    def text(self, name: str, *, required: bool = False) -> str:
        value = self._value.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            self._wrong(name, "text", value)
        elif required and self._is_object:
            problem = Violation("REQUIRED", f"`{name}` is missing.", json_path(self._path, name))
            self._problems.append(problem)
        return ""

    def number(self, name: str) -> float | None:
        value = self._value.get(name)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if self._is_storable(name, value) else None
        self._wrong(name, "number", value)
        return None

    def number_or(self, name: str, default: float) -> float:
        value = self.number(name)
        return default if value is None else value

    def integer(self, name: str, default: int) -> int:
        value = self._value.get(name)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool):
            return value if self._is_storable(name, value) else default
        self._wrong(name, "whole number", value)
        return default

    def boolean(self, name: str, default: bool) -> bool:
        value = self._value.get(name)
        if isinstance(value, bool):
            return value
        if value is not None:
            self._wrong(name, "boolean", value)
        return default

    def object(self, name: str) -> dict[str, Any] | None:
        value = self._value.get(name)
        if value is None or isinstance(value, dict):
            return value
        self._wrong(name, "object", value)
        return None

    def list_of(self, name: str) -> list[Any]:
        value = self._value.get(name)
        if isinstance(value, list):
            return value
        if value is not None:
            self._wrong(name, "list", value)
        return []

    def choice(self, name: str, default: ChoiceT) -> ChoiceT:
        value = self._value.get(name)
        if value is None:
            return default
        try:
            return type(default)(value)
        except ValueError:
            words = " or ".join(f"`{item.value}`" for item in type(default))
            problem = Violation(
                "INVALID_VALUE", f"Expected {words}, found `{excerpt(value)}`.", json_path(self._path, name)
            )
            self._problems.append(problem)
            return default

    def _is_storable(self, name: str, value: float) -> bool:
        if abs(value) <= LARGEST_NUMBER:
            return True
        problem = Violation(
            "OUT_OF_RANGE",
            f"{excerpt(value)} is outside -{LARGEST_NUMBER:,} to {LARGEST_NUMBER:,}.",
            json_path(self._path, name),
        )
        self._problems.append(problem)
        return False

    def _wrong(self, name: str, expected: str, value: Any) -> None:
        noun = expected if expected == "text" else article(expected)
        problem = Violation("INVALID_TYPE", f"Expected {noun}, found {kind_of(value)}.", json_path(self._path, name))
        self._problems.append(problem)

    def _refuse_unknown(self, known: frozenset[str]) -> None:
        suggestions = Suggestions()
        for name in self._value:
            if name not in known:
                hint = suggestions.did_you_mean(name, sorted(known))
                problem = Violation(
                    "UNKNOWN_FIELD", f"There is no field `{excerpt(name)}` here.{hint}", json_path(self._path, name)
                )
                self._problems.append(problem)
