"""What evaluating a node in the engine can come to."""

from dataclasses import dataclass

import orjson

from services.executor.engine.graph import OUT, Node
from services.executor.engine.state import Failure
from services.kit.expressions import ExpressionError
from services.kit.templates import TemplateErrors


@dataclass(frozen=True, slots=True)
class Done:
    """The node has its output."""

    output: bytes
    port: str = OUT


@dataclass(frozen=True, slots=True)
class Wait:
    """The node goes on after `seconds`, or at the RFC 3339 time `until`; with neither, when someone answers."""

    seconds: float | None = None
    until: str | None = None
    asked: bytes | None = None
    """JSON: the config that whoever answers is shown; None where nobody is asked."""


Outcome = Done | Wait | Failure

CONFIG_ERRORS = (ExpressionError, TemplateErrors, orjson.JSONEncodeError)
"""What rendering a config and writing it as JSON may raise, whatever a workflow and its data hold."""


def config_failure(node: Node, error: Exception) -> Failure:
    """Why a node has no rendered config; `error` is one of CONFIG_ERRORS."""
    reason = error.reason if isinstance(error, ExpressionError) else "INVALID_CONFIG"
    return Failure(reason, f"Node {node.key!r}: {error}", node.key)
