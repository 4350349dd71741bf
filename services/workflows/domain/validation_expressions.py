"""The expressions of a node: their syntax, the names they use, and the nodes they read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from services.kit.errors import Violation
from services.kit.expressions import CONTEXT_NAMES, FIELDS, ExpressionError, References, compile_expression
from services.kit.templates import TemplateErrors, compile_template, contains_template
from services.workflows.domain.catalogue import ExpressionField, NodeType
from services.workflows.domain.definition import Node
from services.workflows.domain.text import excerpt, json_path

EVERYWHERE = frozenset({"input", "nodes", "run", "project"})
"""Names that every expression may use."""
MAX_EXPRESSIONS_OF_TEXT = 1000
"""More than anyone writes; compiling a text takes time by the square of them."""
_RETRY_NAMES = frozenset({"error", "attempt"})
_INSIDE_BODIES = {
    "item": "`item` exists only in the body of a `map` node.",
    "index": "`index` exists only in the body of a `map` or `loop` node.",
    "state": "`state` exists only in a `loop` node and its body.",
}

# `{{ nodes.a.output.b[0] }}`: nearly all expressions are such paths, and what they read can be told without parsing
# them (4 µs instead of 80). Whatever looks different in the least goes to the parser; a property test compares the two.
_PATH = re.compile(
    r"(?<!\{)\{\{[ \t\r\n\f]*([a-z]+)((?:\.[A-Za-z_][A-Za-z0-9_]*|\[[0-9]{1,9}\]){0,16})[ \t\r\n\f]*\}\}"
)
_FIRST_FIELD = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)")
_LONGEST_PATH = 512
# Words that CEL keeps for itself may not be fields.
_KEPT = re.compile(
    r"\.(?:in|true|false|null|as|break|const|continue|else|for|function|if|import|let|loop|package|namespace|return|var"
    r"|void|while)(?![A-Za-z0-9_])"
)


class Place(NamedTuple):
    """Where a value stands in a config: the place that holds it and the step from there. Made text only for issues."""

    outer: "Place | str"
    step: str | int

    def path(self) -> str:
        """The JSON path."""
        steps: list[str | int] = []
        place: Place | str = self
        while isinstance(place, Place):
            steps.append(place.step)
            place = place.outer
        return json_path(place, *reversed(steps))


class Read(NamedTuple):
    """An expression reads the output of a node."""

    key: str
    place: Place


@dataclass(slots=True)
class NodeExpressions:
    """What checking the expressions of one node found."""

    problems: list[Violation] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


def check_expressions(node: Node, node_type: NodeType | None, path: str, names: frozenset[str]) -> NodeExpressions:
    """Check all expressions of a node but those in its bodies. `names` exist there beyond those that always do."""
    found = NodeExpressions()
    allowed = EVERYWHERE | names if names else EVERYWHERE
    config = node.config
    config_place = Place(path, "config")
    if node_type is not None and (node_type.bodies or node_type.expression_fields):
        config = {key: value for key, value in config.items() if key not in node_type.bodies}
        for expression_field in node_type.expression_fields:
            config = _check_field(expression_field, config, config_place, allowed, found)
    for text, place in _template_strings(config, config_place, found):
        _note(_references(text, place, found), place, allowed, found)
    if node.retry is not None and node.retry.when:
        try:
            compile_expression(node.retry.when, names=_RETRY_NAMES)
        except ExpressionError as error:
            found.problems.append(_problem(error, Place(Place(path, "retry"), "when")))
    return found


def _template_strings(value: Any, start: Place, found: NodeExpressions) -> Iterator[tuple[str, Place]]:
    """The strings in a JSON value that hold expressions, in the order of the document."""
    stack: list[tuple[Any, Place]] = [(value, start)]
    while stack:
        item, place = stack.pop()
        if isinstance(item, str):
            if contains_template(item):
                yield item, place
        elif isinstance(item, dict):
            for key, child in reversed(item.items()):
                if contains_template(key):
                    message = "A key cannot be a template; build the object in one expression instead."
                    found.problems.append(Violation("EXPRESSION_SYNTAX", message, Place(place, key).path()))
                if isinstance(child, str | dict | list):
                    stack.append((child, Place(place, key)))
        elif isinstance(item, list):
            for index in range(len(item) - 1, -1, -1):
                if isinstance(item[index], str | dict | list):
                    stack.append((item[index], Place(place, index)))


def _references(text: str, place: Place, found: NodeExpressions) -> References:
    quick = references_of_paths(text)
    if quick is not None:
        return quick
    if (count := text.count("{{")) > MAX_EXPRESSIONS_OF_TEXT:
        message = f"{count:,} expressions in one text are over the limit of {MAX_EXPRESSIONS_OF_TEXT:,}."
        found.problems.append(Violation("TOO_MANY_EXPRESSIONS", message, place.path()))
        return References()
    try:
        return compile_template(text).references
    except TemplateErrors as errors:
        found.problems.extend(_problem(error, place) for _, error in errors.errors)
        return References()


def references_of_paths(text: str) -> References | None:
    """What a template reads if all its expressions are plain paths from known names; else None."""
    names: set[str] = set()
    nodes: set[str] = set()
    fields: set[str] = set()
    all_nodes = False
    end = 0
    for match in _PATH.finditer(text):
        if "{{" in text[end : match.start()]:
            return None
        end = match.end()
        name, path = match.groups()
        if name not in CONTEXT_NAMES or len(path) > _LONGEST_PATH or _KEPT.search(path):
            return None
        names.add(name)
        if name == "nodes":
            first = _FIRST_FIELD.match(path)
            if first:
                nodes.add(first.group(1))
            else:
                all_nodes = True
        elif name in FIELDS:
            first = _FIRST_FIELD.match(path)
            fields.add(name + first.group() if first else name)
    if "{{" in text[end:]:
        return None
    return References(frozenset(names), frozenset(nodes), all_nodes, frozenset(fields))


def _note(references: References, place: Place, allowed: frozenset[str], found: NodeExpressions) -> None:
    """Check the names of an expression and note the nodes it reads."""
    if not references.names <= allowed:
        for name in sorted(references.names - allowed):
            usual = ", ".join(f"`{known}`" for known in sorted(allowed))
            message = _INSIDE_BODIES.get(name) or f"There is no `{name}` here; there are {usual}."
            found.problems.append(Violation("EXPRESSION_UNKNOWN_NAME", message, place.path()))
    for field_read in sorted(references.fields):
        name, _, last = field_read.partition(".")
        if last and last not in FIELDS[name]:
            usual = ", ".join(f"`{name}.{known}`" for known in sorted(FIELDS[name]))
            message = f"There is no `{excerpt(field_read, 64)}`; there are {usual}."
            found.problems.append(Violation("EXPRESSION_UNKNOWN_NAME", message, place.path()))
    for key in sorted(references.nodes):
        found.reads.append(Read(key, place))


def _check_field(
    expression_field: ExpressionField,
    config: dict[str, Any],
    start: Place,
    allowed: frozenset[str],
    found: NodeExpressions,
) -> dict[str, Any]:
    """Check a field of CEL without braces; returns the config without it, for what remains is a template."""
    *steps, last = expression_field.steps
    config = config.copy()
    holders: list[tuple[Any, Place]] = [(config, start)]
    for step in steps:
        inner: list[tuple[Any, Place]] = []
        for holder, place in holders:
            keys = range(len(holder)) if step == "[]" and isinstance(holder, list) else (step,)
            for key in keys:
                child = _child(holder, key)
                if isinstance(child, dict | list):
                    holder[key] = child.copy()
                    inner.append((holder[key], Place(place, key)))
        holders = inner
    for holder, place in holders:
        keys = range(len(holder)) if last == "[]" and isinstance(holder, list) else (last,)
        for key in keys:
            source = _child(holder, key)
            if isinstance(source, str):
                holder[key] = None
                _check_source(source, Place(place, key), allowed | expression_field.names, found)
    return config


def _child(holder: Any, key: str | int) -> Any:
    if isinstance(holder, dict):
        return holder.get(key)
    return holder[key] if isinstance(key, int) else None


def _check_source(source: str, place: Place, names: frozenset[str], found: NodeExpressions) -> None:
    try:
        references = compile_expression(source, names=CONTEXT_NAMES | names).references
    except ExpressionError as error:
        hint = " This field is an expression by itself: write it without `{{ }}`." if "{{" in source else ""
        found.problems.append(Violation(error.reason, error.message + hint, place.path()))
        return
    _note(references, place, names, found)


def _problem(error: ExpressionError, place: Place) -> Violation:
    return Violation(error.reason, error.message, place.path())
