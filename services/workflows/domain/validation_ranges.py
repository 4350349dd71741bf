"""Numbers and lengths of nodes, and limits of runs, within what makes sense."""

from collections.abc import Iterator

from services.kit.errors import Violation
from services.kit.expressions import ExpressionError, compile_expression
from services.workflows.domain.definition import Definition, Node, Retry, RunLimits
from services.workflows.domain.text import json_path

MAX_NODE_TIMEOUT = 86_400.0
"""Seconds; longer waits are for nodes that hold no worker."""
MAX_RUN_TIMEOUT = 2_592_000.0
"""Seconds; 30 days."""
MAX_ATTEMPTS = 100
MAX_INTERVAL = 86_400.0
MAX_BACKOFF = 100.0
MAX_RUNNING_RUNS = 1_000_000


def definition_ranges(definition: Definition, path: str) -> Iterator[Violation]:
    """What is out of range in a definition itself."""
    seconds = definition.timeout_seconds
    if seconds is not None and not 0 < seconds <= MAX_RUN_TIMEOUT:
        yield _out_of_range(seconds, "more than 0", MAX_RUN_TIMEOUT, json_path(path, "timeout_seconds"))
    if definition.limits is not None:
        yield from _limits(definition.limits, json_path(path, "limits"))


def _limits(limits: RunLimits, path: str) -> Iterator[Violation]:
    most = limits.max_running_runs
    if most is not None and not 1 <= most <= MAX_RUNNING_RUNS:
        yield _out_of_range(most, "at least 1", MAX_RUNNING_RUNS, json_path(path, "max_running_runs"))
    if limits.concurrency is None:
        return
    place = json_path(path, "concurrency")
    if not 1 <= limits.concurrency.max <= MAX_RUNNING_RUNS:
        yield _out_of_range(limits.concurrency.max, "at least 1", MAX_RUNNING_RUNS, json_path(place, "max"))
    try:
        compile_expression(limits.concurrency.key, names=frozenset({"input"}))
    except ExpressionError as error:
        yield Violation(error.reason, f"`concurrency.key`: {error.message}", json_path(place, "key"))


def node_ranges(node: Node, path: str) -> Iterator[Violation]:
    """What is out of range in a node."""
    seconds = node.timeout_seconds
    if seconds is not None and not 0 < seconds <= MAX_NODE_TIMEOUT:
        yield _out_of_range(seconds, "more than 0", MAX_NODE_TIMEOUT, json_path(path, "timeout_seconds"))
    if node.retry is not None:
        yield from _retry_ranges(node.retry, json_path(path, "retry"))


def _retry_ranges(retry: Retry, path: str) -> Iterator[Violation]:
    for name, value, least, most in (
        ("max_attempts", retry.max_attempts, 1, MAX_ATTEMPTS),
        ("initial_interval", retry.initial_interval, 0, MAX_INTERVAL),
        ("backoff", retry.backoff, 1, MAX_BACKOFF),
        ("max_interval", retry.max_interval, 0, MAX_INTERVAL),
    ):
        if not least <= value <= most:
            yield _out_of_range(value, f"at least {least}", most, json_path(path, name))
    if retry.max_interval < retry.initial_interval:
        message = "`max_interval` is shorter than `initial_interval`."
        yield Violation("OUT_OF_RANGE", message, json_path(path, "max_interval"))


def _out_of_range(value: float, least: str, most: float, path: str) -> Violation:
    return Violation("OUT_OF_RANGE", f"{value:g} is out of range: {least} and at most {most:g}.", path)
