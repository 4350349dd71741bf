"""Container nodes: `map`, `loop` and `sub_workflow`. They open scopes, take their results, and say when they are done.

A container's own config is rendered once, when it begins, and stored as the node's input. Everything else follows from
the rows of its scopes, so a container is restored by opening and closing them again in order.

    path of a scope     each[3]             item 3 of the map `each`
                        each[3]/pages[0]    iteration 0 of the loop `pages` in that item
                        each~2[3]           the same item in the second attempt at the map
                        call                what the sub_workflow `call` runs
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import orjson

from services.executor.engine.inline import truth
from services.executor.engine.outcomes import CONFIG_ERRORS, Done, config_failure
from services.executor.engine.state import Failure, Linked, NodeState, RunState, Scope
from services.executor.engine.variables import variables_for
from services.kit.expressions import ExpressionError
from services.kit.ids import derived_text

MAX_ITEMS = 10_000
"""Items of one map, and iterations of one loop."""
MAX_CALL_DEPTH = 10
"""Sub-workflows within sub-workflows."""
MAX_CALLS = 10_000
"""Sub-workflows that one run calls in all."""
MAX_EXECUTIONS = 250_000
"""Nodes of all scopes of one run: each costs the executor about half a kilobyte while its scope is open, and a row."""
MAX_RESULT_BYTES = 4 * 1024 * 1024
"""Results of all items together."""

ATTEMPT = re.compile(r"~(\d+)")


class Container(Protocol):
    """What has come of a container that runs. Scopes are opened in order and may end in any."""

    def open_next(self, state: RunState) -> Scope | Failure | None:
        """The next scope to run beside those that are open; None when there is none to open now."""
        ...

    def close(self, state: RunState, scope: Scope, result: bytes | Failure) -> None:
        """Take the result of a scope that has ended."""
        ...

    def outcome(self) -> Done | Failure | None:
        """How it has ended; None while it has not. A failure ends it although scopes may be open."""
        ...


def begin(state: RunState, node: NodeState) -> Failure | None:
    """Render a container's config, and make the node hold the container; or say why it cannot begin."""
    try:
        template = node.spec.template
        node.input = orjson.dumps(template.render(variables_for(state, node.scope, template.references)))
    except CONFIG_ERRORS as error:
        return config_failure(node.spec, error)
    return resume(state, node)


def resume(state: RunState, node: NodeState) -> Failure | None:
    """Make a node whose config is rendered hold its container, with no scope opened yet."""
    config = orjson.loads(node.input or b"{}")
    container = _CONTAINERS[node.spec.type](state, node, config)
    if isinstance(container, Failure):
        return container
    node.container = container
    return None


def is_container(node: NodeState) -> bool:
    """The node holds scopes."""
    return node.spec.type in _CONTAINERS


def scope_path(node: NodeState, number: int) -> str:
    """The path of a container's scope, in its present attempt."""
    outer = f"{node.scope.path}/" if node.scope.path else ""
    attempt = f"~{node.failures + 1}" if node.failures else ""
    # Of the paths of scopes only those of sub-workflows carry no number.
    place = "" if node.spec.type == "sub_workflow" else f"[{number}]"
    return f"{outer}{node.spec.key}{attempt}{place}"


def effect_path(path: str) -> str:
    """A path less the attempts in it: what effects are known by, so that another attempt at a map repeats none."""
    return ATTEMPT.sub("", path)


def idempotency_key(run_id: str, node_key: str, path: str) -> str:
    """The key of a node execution's effect, a UUID: of run, node and item, never of attempt, worker or time."""
    return derived_text(run_id, "effect", f"{node_key}\x00{effect_path(path)}")


class MapContainer:
    """Runs the body for each item, so many at a time; results in the order of the items."""

    def __init__(self, node: NodeState, items: list[Any], concurrency: int, on_item_error: str) -> None:
        self._node = node
        self._items = items
        self._concurrency = concurrency
        self._on_item_error = on_item_error
        self._results: list[bytes] = [b"null"] * len(items)
        self._errors: dict[int, Failure] = {}
        self._bytes = 0
        self._opened = 0
        self._open = 0
        self._failure: Failure | None = None

    @classmethod
    def make(cls, _: RunState, node: NodeState, config: Mapping[str, Any]) -> "MapContainer | Failure":
        """From a rendered config."""
        items, concurrency = config.get("items"), config.get("concurrency", 10)
        if not isinstance(items, list):
            return _invalid(node, f"`items` must be a list, not {_kind(items)}.")
        if len(items) > MAX_ITEMS:
            message = f"`items` has {len(items)} items; the limit is {MAX_ITEMS}. Split the list, or map over pages."
            return _failure(node, "TOO_MANY_ITEMS", message)
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_ITEMS:
            return _invalid(node, f"`concurrency` must be a whole number from 1 to {MAX_ITEMS}.")
        return cls(node, items, concurrency, config.get("on_item_error", "fail"))

    def open_next(self, state: RunState) -> Scope | Failure | None:
        """See Container."""
        if self._open >= self._concurrency or self._opened >= len(self._items):
            return None
        number = self._opened
        scope = _body_scope(state, self._node, number, {"item": self._items[number], "index": number})
        if isinstance(scope, Scope):
            self._opened += 1
            self._open += 1
        return scope

    def close(self, state: RunState, scope: Scope, result: bytes | Failure) -> None:
        """See Container."""
        self._open -= 1
        if isinstance(result, bytes):
            self._results[scope.number] = result
            self._bytes += len(result)
            if self._bytes > MAX_RESULT_BYTES and self._failure is None:
                self._failure = _too_large(self._node, self._bytes)
        elif self._on_item_error == "fail":
            self._failure = self._failure or _inner_failure(self._node, scope, result)
        else:
            self._errors[scope.number] = result

    def outcome(self) -> Done | Failure | None:
        """See Container."""
        if self._failure is not None:
            return self._failure
        if self._open or self._opened < len(self._items):
            return None
        output: dict[str, Any] = {"results": [orjson.Fragment(result) for result in self._results]}
        if self._on_item_error == "collect":
            output["errors"] = [
                {"index": number, "error": failure.as_json()} for number, failure in sorted(self._errors.items())
            ]
        return Done(orjson.dumps(output))


class LoopContainer:
    """Runs the body again and again, carrying its output as `state`, until a condition is true or often enough."""

    def __init__(self, node: NodeState, carried: bytes, max_iterations: int) -> None:
        self._node = node
        self._carried = carried
        self._max_iterations = max_iterations
        self._opened = 0
        self._open = False
        self._ended: Failure | bool = False

    @classmethod
    def make(cls, _: RunState, node: NodeState, config: Mapping[str, Any]) -> "LoopContainer | Failure":
        """From a rendered config."""
        limit = config.get("max_iterations", 100)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_ITEMS:
            return _invalid(node, f"`max_iterations` must be a whole number from 1 to {MAX_ITEMS}.")
        return cls(node, orjson.dumps(config.get("state")), limit)

    def open_next(self, state: RunState) -> Scope | Failure | None:
        """See Container."""
        if self._open or self._ended:
            return None
        names = {"state": orjson.loads(self._carried), "index": self._opened}
        scope = _body_scope(state, self._node, self._opened, names)
        if isinstance(scope, Scope):
            self._opened += 1
            self._open = True
        return scope

    def close(self, state: RunState, scope: Scope, result: bytes | Failure) -> None:
        """See Container."""
        self._open = False
        if isinstance(result, Failure):
            self._ended = _inner_failure(self._node, scope, result)
            return
        if len(result) > MAX_RESULT_BYTES:
            self._ended = _too_large(self._node, len(result))
            return
        self._carried = result
        until = self._is_enough(state, scope.number)
        self._ended = until if isinstance(until, Failure) else until or self._opened >= self._max_iterations

    def _is_enough(self, state: RunState, number: int) -> bool | Failure:
        (source,) = self._node.spec.expressions
        references = self._node.spec.references
        wanted = replace(references, names=references.names - {"state", "index"})
        try:
            variables = variables_for(state, self._node.scope, wanted)
            variables |= {"state": orjson.loads(self._carried), "index": number}
            return truth(self._node.spec, "until", source, variables)
        except ExpressionError as error:
            return _failure(self._node, error.reason, str(error))

    def outcome(self) -> Done | Failure | None:
        """See Container."""
        if self._ended is False:
            return None
        if isinstance(self._ended, Failure):
            return self._ended
        return Done(orjson.dumps({"state": orjson.Fragment(self._carried), "iterations": self._opened}))


class CallContainer:
    """Runs another workflow once, in the version that was fixed when the run began."""

    def __init__(self, node: NodeState, linked: Linked, input_json: bytes) -> None:
        self._node = node
        self._linked = linked
        self._input = input_json
        self._opened = False
        self._outcome: Done | Failure | None = None

    @classmethod
    def make(cls, state: RunState, node: NodeState, config: Mapping[str, Any]) -> "CallContainer | Failure":
        """From a rendered config."""
        linked = state.links.get(node.spec.link)
        if linked is None:
            return _invalid(node, "`workflow` and `version` must be literal: they are fixed when the run begins.")
        return cls(node, linked, orjson.dumps(config.get("input", {})))

    def open_next(self, state: RunState) -> Scope | Failure | None:
        """See Container."""
        if self._opened:
            return None
        scope = self._scope(state)
        self._opened = isinstance(scope, Scope)
        return scope

    def _scope(self, state: RunState) -> Scope | Failure:
        calls = self._node.scope.calls + 1
        if calls > MAX_CALL_DEPTH:
            message = f"Sub-workflows are nested deeper than {MAX_CALL_DEPTH}. Does one of them call itself?"
            return _failure(self._node, "SUB_WORKFLOW_TOO_DEEP", message)
        if state.calls >= MAX_CALLS:
            message = f"The run has called {MAX_CALLS} sub-workflows, the limit. Split the work into several runs."
            return _failure(self._node, "TOO_MANY_SUB_WORKFLOWS", message)
        too_many = _too_many_executions(state, self._node, len(self._linked.graph.nodes))
        if too_many is not None:
            return too_many
        path = scope_path(self._node, 0)
        return Scope(self._linked.graph, path=path, container=self._node, input=self._input, calls=calls)

    def close(self, state: RunState, scope: Scope, result: bytes | Failure) -> None:
        """See Container."""
        if isinstance(result, Failure):
            self._outcome = _inner_failure(self._node, scope, result)
        elif len(result) > MAX_RESULT_BYTES:
            self._outcome = _too_large(self._node, len(result))
        else:
            self._outcome = Done(result)

    def outcome(self) -> Done | Failure | None:
        """See Container."""
        return self._outcome


def _body_scope(state: RunState, node: NodeState, number: int, names: Mapping[str, Any]) -> Scope | Failure:
    body = node.spec.body
    if body is None:
        raise AssertionError("a map or loop of a valid version has a body")
    too_many = _too_many_executions(state, node, len(body.nodes))
    if too_many is not None:
        return too_many
    path = scope_path(node, number)
    return Scope(body, path=path, container=node, number=number, names=names, calls=node.scope.calls)


def _too_many_executions(state: RunState, node: NodeState, more: int) -> Failure | None:
    if state.executions + more <= MAX_EXECUTIONS:
        return None
    message = f"The run has {state.executions} node executions; the limit is {MAX_EXECUTIONS}. Split the work."
    return _failure(node, "TOO_MANY_NODE_EXECUTIONS", message)


def _inner_failure(node: NodeState, scope: Scope, failure: Failure) -> Failure:
    """What a container fails with when something in it did."""
    place = f"item {scope.number}" if node.spec.type == "map" else f"iteration {scope.number}"
    if node.spec.type == "sub_workflow":
        place = "its workflow"
    return Failure(
        failure.reason,
        f"Node {node.spec.key!r}, {place}: {failure.message}",
        node.spec.key,
        details={"index": scope.number, "error": failure.as_json()},
        item_path=node.scope.path,
    )


def _too_large(node: NodeState, size: int) -> Failure:
    message = (
        f"The results have {size} bytes so far; the limit is {MAX_RESULT_BYTES}. "
        "Let the body return less, or store the data and return its id."
    )
    return _failure(node, "OUTPUT_TOO_LARGE", message)


def _invalid(node: NodeState, message: str) -> Failure:
    return _failure(node, "INVALID_CONFIG", message)


def _failure(node: NodeState, reason: str, message: str) -> Failure:
    return Failure(reason, f"Node {node.spec.key!r}: {message}", node.spec.key, item_path=node.scope.path)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


_CONTAINERS: Mapping[str, Callable[[RunState, NodeState, Mapping[str, Any]], Container | Failure]] = {
    "map": MapContainer.make,
    "loop": LoopContainer.make,
    "sub_workflow": CallContainer.make,
}
