"""Config fields that take one thing or a list of them."""

from typing import Any

from pydantic import BeforeValidator


def one_or_more(item: Any) -> BeforeValidator:
    """For `Annotated[list[Item], one_or_more(Item)]`: one item alone is a list of one, and the schema says so."""
    return BeforeValidator(_listed, json_schema_input_type=list[item] | item)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value
