"""A node's config against the JSON Schema of its type, in words for people."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs

from services.kit.errors import Violation
from services.workflows.domain.catalogue import NodeType
from services.workflows.domain.text import Suggestions, article, excerpt, json_path

_MAX_ERRORS = 50
"""Of one config."""
_KINDS = {"string": "text", "integer": "whole number", "array": "list", "null": "null"}


def config_problems(
    config: dict[str, Any], node_type: NodeType, path: str, suggestions: Suggestions
) -> Iterator[Violation]:
    """What is wrong with a config, in the schema's eyes. `path` is that of the config."""
    if node_type.validator.is_valid(config):
        return
    for error, _ in zip(node_type.validator.iter_errors(config), range(_MAX_ERRORS), strict=False):
        yield from _explain(error, node_type, path, suggestions)


def _explain(
    error: "jsonschema_rs.ValidationError", node_type: NodeType, path: str, suggestions: Suggestions
) -> Iterator[Violation]:
    error = _innermost(error)
    kind: Any = error.kind
    place = json_path(path, *error.instance_path)
    if kind.name == "required":
        message = f"`{kind.property}` is missing; `{node_type.name}` needs it."
        yield Violation("INVALID_CONFIG", message, json_path(place, kind.property))
    elif kind.name == "additionalProperties":
        for name in kind.unexpected[:_MAX_ERRORS]:
            hint = "" if error.instance_path else suggestions.did_you_mean(name, sorted(node_type.options))
            message = f"`{node_type.name}` has no option `{excerpt(name)}` here.{hint}"
            yield Violation("INVALID_CONFIG", message, json_path(place, name))
    elif kind.name == "type":
        yield Violation("INVALID_CONFIG", f"Expected {_types(kind.types)}, found `{excerpt(error.instance)}`.", place)
    elif kind.name == "enum":
        options = ", ".join(f"`{excerpt(option)}`" for option in kind.options)
        message = f"`{excerpt(error.instance)}` is not one of {options}."
        yield Violation("INVALID_CONFIG", message, place)
    elif kind.name == "anyOf" and (choice := _required_choice(kind.context)):
        words = " or ".join(f"`{name}`" for name in choice)
        yield Violation("INVALID_CONFIG", f"`{node_type.name}` needs {words}.", place)
    elif kind.name == "anyOf":
        yield Violation("INVALID_CONFIG", f"`{excerpt(error.instance)}` has none of the forms allowed here.", place)
    else:
        message = excerpt(error.message, 300)
        yield Violation("INVALID_CONFIG", message if message.endswith(".") else f"{message}.", place)


def _innermost(error: "jsonschema_rs.ValidationError") -> "jsonschema_rs.ValidationError":
    """For a value that fits no branch, the error in the branch that it fits best: the one that complains deepest.

    Branches that fail on the value as a whole tell nothing more than that it fits none.
    """
    while error.kind.name == "anyOf":
        depth = len(error.instance_path)
        kind: Any = error.kind
        if _required_choice(kind.context):
            return error
        branches: list[list[jsonschema_rs.ValidationError]] = [list(branch) for branch in kind.context if branch]
        alone = [branch for branch in branches if not _is_null(branch)]
        if len(alone) == 1 and len(alone[0]) == 1:
            error = alone[0][0]
            continue
        inner = [item for branch in branches for item in branch if len(item.instance_path) > depth or _names_key(item)]
        if not inner:
            return error
        error = max(inner, key=lambda item: len(item.instance_path))
    return error


def _required_choice(branches: "list[list[jsonschema_rs.ValidationError]]") -> list[str]:
    """The options of which one is needed, when that is all that the branches ask for."""
    kinds: list[Any] = [branch[0].kind if len(branch) == 1 else None for branch in branches]
    return [kind.property for kind in kinds] if all(kind and kind.name == "required" for kind in kinds) else []


def _is_null(branch: "list[jsonschema_rs.ValidationError]") -> bool:
    kind: Any = branch[0].kind
    return len(branch) == 1 and kind.name == "type" and list(kind.types) == ["null"]


def _names_key(error: "jsonschema_rs.ValidationError") -> bool:
    return error.kind.name in ("required", "additionalProperties")


def _types(names: list[str]) -> str:
    words = [_KINDS.get(name, name) for name in names]
    return " or ".join(word if word in ("text", "null") else article(word) for word in words)
