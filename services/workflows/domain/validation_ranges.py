"""Numbers and lengths of nodes within what makes sense."""

from collections.abc import Iterator

from services.kit.errors import Violation
from services.workflows.domain.definition import Definition, Node, Retry
from services.workflows.domain.text import json_path

MAX_NODE_TIMEOUT = 86_400.0
"""Seconds; longer waits are for nodes that hold no worker."""
MAX_RUN_TIMEOUT = 2_592_000.0
"""Seconds; 30 days."""
MAX_ATTEMPTS = 100
MAX_INTERVAL = 86_400.0
MAX_BACKOFF = 100.0


def definition_ranges(definition: Definition, path: str) -> Iterator[Violation]:
    """What is out of range in a definition itself."""
    seconds = definition.timeout_seconds
    if seconds is not None and not 0 < seconds <= MAX_RUN_TIMEOUT:
        yield _out_of_range(seconds, "more than 0", MAX_RUN_TIMEOUT, json_path(path, "timeout_seconds"))


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
