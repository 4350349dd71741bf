"""Waiting for people and events: `approval` and `wait_for_event`, and node executions whose outcome nobody knows.

A wait is a row in the state `waiting`; nothing holds it in memory and nothing looks at it until it is answered or its
time is over. Its epoch is raised when it begins, so that a timer or a token of an earlier wait means nothing to it.

    begin       render the config, which is what people are shown
    accept      check an answer; the node's output
    time_out    what the end of the time makes of it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.executor.engine import forms
from services.executor.engine.inline import MAX_OUTPUT_BYTES
from services.executor.engine.outcomes import CONFIG_ERRORS, Done, Wait, config_failure
from services.executor.engine.state import Failure, NodeState, NodeStatus, RunState
from services.executor.engine.variables import variables_for
from services.kit.errors import Violation

APPROVAL, EVENT = "approval", "wait_for_event"
TIMEOUT = "timeout"
"""The port taken when nobody has answered in time."""
CHOICES = ("approve", "reject")
"""Decisions where the config names none."""
MAX_SECONDS = 366 * 24 * 3600.0
MAX_APPROVERS = 100
MAX_CHOICES = 20
OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
VERDICTS = ("retry", "fail", "succeed")
"""What a person may decide about an outcome that nobody knows."""

_ROLES = ("viewer", "editor", "admin", "owner")
"""Each includes those before it."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who answers: verified, never as claimed in a request."""

    user_id: str
    email: str
    role: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What someone says to a node execution that waits."""

    decision: str
    data: bytes
    """JSON."""
    by: Person | None
    """None = whoever had the token."""
    request: str = ""
    """What a repetition of the same request is known by."""


def waits_for_answer(node: NodeState) -> bool:
    """A person or an event is asked, be there a time-out or not."""
    # What an inline node waits for is told by its error: another attempt with one, what its config says without.
    return node.status is NodeStatus.WAITING and node.spec.type in (APPROVAL, EVENT) and node.error is None


def is_parked(node: NodeState) -> bool:
    """Nobody knows the outcome of the last attempt, and a person has to decide."""
    # Whatever waits for another attempt has no claim counted; the reason of the error is the handler's word.
    return node.status is NodeStatus.WAITING and node.claims > 0


def begin(state: RunState, node: NodeState) -> Wait | Failure:
    """What an `approval` or `wait_for_event` asks for. Never raises for anything that a workflow can hold."""
    key = node.spec.key
    try:
        config = node.spec.template.render(variables_for(state, node.scope, node.spec.references))
        problem = _problem(config)
        if problem is None:
            asked = orjson.dumps(config)
    except CONFIG_ERRORS as error:
        return config_failure(node.spec, error)
    if problem is not None:
        return Failure("INVALID_CONFIG", f"Node {key!r}: {problem}", key)
    return Wait(seconds=config.get("timeout_seconds"), asked=asked)


def _problem(config: Mapping[str, Any]) -> str | None:
    seconds = config.get("timeout_seconds")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 < seconds <= MAX_SECONDS):
        return f"`timeout_seconds` must be a number above 0 and at most {MAX_SECONDS:.0f} (a year)."
    if not _is_list_of_text(config.get("approvers", []), MAX_APPROVERS):
        return f"`approvers` must be at most {MAX_APPROVERS} user ids, e-mail addresses or roles."
    if not _is_list_of_text(config.get("choices", list(CHOICES)), MAX_CHOICES) or config.get("choices") == []:
        return f"`choices` must be from 1 to {MAX_CHOICES} words."
    for name in ("form", "schema"):
        if name in config and (wrong := forms.schema_problem(config[name])):
            return f"`{name}` {wrong}"
    return None


def _is_list_of_text(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(isinstance(item, str) and item for item in value)


def may_answer(node: NodeState, person: Person) -> bool:
    """Whether the config's `approvers` include a person, by id, by e-mail or by role; all do where there are none."""
    approvers = _asked(node.input).get("approvers")
    if not approvers:
        return True
    named = {approver.strip().lower() for approver in approvers}
    roles = _ROLES[: _ROLES.index(person.role) + 1] if person.role in _ROLES else ()
    return not named.isdisjoint({person.user_id.lower(), person.email.lower(), *roles})


def takes_token(node_type: str, asked: bytes | None) -> bool:
    """Whether such a wait may be answered without a login: not where the config says who may answer."""
    return node_type == EVENT or (node_type == APPROVAL and not _asked(asked).get("approvers"))


def answer_of_payload(node_type: str, payload: bytes, request: str) -> Answer:
    """The answer that an event brings: all of it to `wait_for_event`, `{decision, data?}` to an `approval`."""
    if node_type != APPROVAL:
        return Answer("", payload, None, request)
    value = orjson.loads(payload)
    fields = value if isinstance(value, dict) else {}
    decision = fields.get("decision")
    return Answer(decision if isinstance(decision, str) else "", orjson.dumps(fields.get("data")), None, request)


def accept(node: NodeState, answer: Answer) -> Done | tuple[Violation, ...]:
    """The output that an answer makes, or all that is wrong with it."""
    config = _asked(node.input)
    violations: list[Violation] = []
    output = answer.data
    schema = config.get("schema")
    if node.spec.type == APPROVAL:
        schema = config.get("form")
        violations += _wrong_decision(answer.decision, config.get("choices", CHOICES))
        by = answer.by.user_id if answer.by else None
        output = orjson.dumps({"decision": answer.decision, "data": orjson.Fragment(answer.data), "by": by})
    elif answer.decision:
        message = "An event has no `decision`; give its payload as `data`."
        violations.append(Violation("UNEXPECTED_DECISION", message, "decision"))
    if schema is not None:
        violations += forms.data_problems(schema, orjson.loads(answer.data))
    violations += _too_large(output)
    return tuple(violations) or Done(output)


def check_verdict(answer: Answer) -> tuple[Violation, ...]:
    """All that is wrong with a decision about an outcome that nobody knows."""
    return (*_wrong_decision(answer.decision, VERDICTS), *_too_large(answer.data))


def _wrong_decision(decision: str, choices: Sequence[str]) -> Sequence[Violation]:
    if decision in choices:
        return ()
    words = ", ".join(f"`{choice}`" for choice in choices)
    if not decision:
        return (Violation("REQUIRED", f"`decision` is missing; it is one of {words}.", "decision"),)
    return (Violation("INVALID_VALUE", f"`decision` must be one of {words}.", "decision"),)


def _too_large(output: bytes) -> Sequence[Violation]:
    if len(output) <= MAX_OUTPUT_BYTES:
        return ()
    message = f"The data has {len(output)} bytes; the limit is {MAX_OUTPUT_BYTES}. Store it, and give its address."
    return (Violation("OUTPUT_TOO_LARGE", message, "data"),)


def time_out(node: NodeState) -> Done | Failure:
    """What a wait comes to that nobody has answered: the port `timeout` where an edge leaves by it, else a failure."""
    if node.scope.graph.has_port(node.position, TIMEOUT):
        nothing = {"decision": None, "data": None, "by": None} if node.spec.type == APPROVAL else None
        return Done(orjson.dumps(nothing), TIMEOUT)
    key, seconds = node.spec.key, _asked(node.input).get("timeout_seconds")
    message = (
        f"Node {key!r}: nobody answered within its `timeout_seconds` of {seconds:g}. "
        "Raise it, or connect the port `timeout`."
    )
    return Failure("WAIT_TIMEOUT", message, key, item_path=node.path)


def unknown(node: NodeState, cause: str) -> Failure:
    """Why a node execution is parked; `cause` is a sentence."""
    key = node.spec.key
    message = (
        f"Nobody knows whether node {key!r} has acted. {cause} It is delivered at most once, so a person decides: "
        "answer it with `retry`, `fail` or `succeed`."
    )
    return Failure(OUTCOME_UNKNOWN, message, key, item_path=node.path)


def _asked(config: bytes | None) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(config or b"{}")
    return found
