"""JSON Schemas that answers are held to. Nothing is fetched, and patterns take linear time."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from services.kit.errors import Violation

if TYPE_CHECKING:
    import jsonschema_rs

MAX_SCHEMA_BYTES = 64 * 1024
MAX_PROBLEMS = 50


def schema_problem(schema: Any) -> str:
    """What is wrong with a schema, as the end of a sentence; empty when nothing is."""
    if not isinstance(schema, dict):
        return "must be a JSON Schema, which is an object."
    text = orjson.dumps(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        return f"has {len(text)} bytes; the limit is {MAX_SCHEMA_BYTES}."
    try:
        _validator(text)
    except ValueError as error:
        return f"is not a JSON Schema: {_sentence(str(error))}"
    return ""


def data_problems(schema: dict[str, Any], data: Any) -> Iterator[Violation]:
    """All that is wrong with data under a schema that `schema_problem` finds nothing wrong with."""
    errors = _validator(orjson.dumps(schema)).iter_errors(data)
    for error, _ in zip(errors, range(MAX_PROBLEMS), strict=False):
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
        yield Violation("INVALID_DATA", _sentence(error.message), "data" + "".join(steps)[:256])


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> "jsonschema_rs.Validator":
    import jsonschema_rs  # noqa: PLC0415 - most installations never need it

    options = jsonschema_rs.RegexOptions()
    return jsonschema_rs.validator_for(orjson.loads(schema), offline=True, pattern_options=options)


def _sentence(text: str) -> str:
    text = text.partition("\n")[0][:300]
    return text if text.endswith(".") else f"{text}."
