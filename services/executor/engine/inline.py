"""Inline node types: cheap and deterministic, evaluated here, without a job.

`transform` values · `condition` when · `switch` cases · `output` value · `delay` seconds or until.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from services.executor.engine.graph import Node
from services.executor.engine.outcomes import Done, Outcome, Wait, config_failure
from services.executor.engine.state import Failure, NodeState, RunState
from services.executor.engine.variables import variables_for
from services.kit.expressions import ExpressionError, compile_expression
from services.kit.templates import TemplateErrors

MAX_DELAY_SECONDS = 366 * 24 * 3600.0
MAX_OUTPUT_BYTES = 1024 * 1024
"""Largest output of a node, inline or not."""


def evaluate(state: RunState, execution: NodeState) -> Outcome:
    """Evaluate an inline node. Never raises for anything that a workflow or its data can hold."""
    node = execution.spec
    try:
        variables = variables_for(state, execution.scope, node.references)
        outcome = _EVALUATORS[node.type](node, variables)
    except (ExpressionError, TemplateErrors) as error:
        return config_failure(node, error)
    except (orjson.JSONEncodeError, TypeError) as error:
        return Failure("INVALID_OUTPUT", f"Node {node.key!r} has an output that is not JSON: {error}.", node.key)
    if isinstance(outcome, Done) and len(outcome.output) > MAX_OUTPUT_BYTES:
        return output_too_large(node.key, len(outcome.output))
    return outcome


def output_too_large(node_key: str, size: int) -> Failure:
    """What a node with a too large output fails with."""
    return Failure(
        "OUTPUT_TOO_LARGE",
        f"The output of node {node_key!r} has {size} bytes; the limit is {MAX_OUTPUT_BYTES}. "
        "Return less, or store the data and pass on its id.",
        node_key,
    )


def _transform(node: Node, variables: dict[str, Any]) -> Outcome:
    rendered = node.template.render(variables)
    return Done(orjson.dumps(rendered.get("values", {})))


def _condition(node: Node, variables: dict[str, Any]) -> Outcome:
    result = truth(node, "when", node.expressions[0], variables)
    if isinstance(result, Failure):
        return result
    return Done(orjson.dumps({"result": result}), "true" if result else "false")


def _switch(node: Node, variables: dict[str, Any]) -> Outcome:
    for position, (case, source) in enumerate(zip(node.config_value["cases"], node.expressions, strict=True)):
        result = truth(node, f"cases[{position}].when", source, variables)
        if isinstance(result, Failure):
            return result
        if result:
            return Done(orjson.dumps({"port": case["port"]}), case["port"])
    return Done(orjson.dumps({"port": "default"}), "default")


def truth(node: Node, field: str, source: str, variables: dict[str, Any]) -> bool | Failure:
    """The value of a condition, or why it has none. Raises ExpressionError."""
    value = compile_expression(source).evaluate(variables)
    if isinstance(value, bool):
        return value
    return Failure(
        "NOT_A_BOOLEAN",
        f"Node {node.key!r}: `{field}` must be true or false, not {type(value).__name__}. Compare it with something.",
        node.key,
    )


def _output(node: Node, variables: dict[str, Any]) -> Outcome:
    return Done(orjson.dumps(node.template.render(variables).get("value")))


def _delay(node: Node, variables: dict[str, Any]) -> Outcome:
    config = node.template.render(variables)
    seconds, until = config.get("seconds"), config.get("until")
    if until is not None:
        return _delay_until(node, until)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_DELAY_SECONDS:
        return Failure(
            "INVALID_CONFIG",
            f"Node {node.key!r}: `seconds` must be a number from 0 to {MAX_DELAY_SECONDS:.0f} (a year).",
            node.key,
        )
    return Wait(seconds=float(seconds))


def _delay_until(node: Node, until: Any) -> Outcome:
    try:
        moment = datetime.fromisoformat(until)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        return Failure(
            "INVALID_CONFIG",
            f"Node {node.key!r}: `until` must be an RFC 3339 time with a zone, such as 2030-01-31T12:00:00Z.",
            node.key,
        )
    return Wait(until=moment.isoformat())


_EVALUATORS: dict[str, Callable[[Node, dict[str, Any]], Outcome]] = {
    "transform": _transform,
    "condition": _condition,
    "switch": _switch,
    "output": _output,
    "delay": _delay,
}
