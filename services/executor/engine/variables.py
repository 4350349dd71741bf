"""The names that templates and expressions see, built from a run's state."""

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from services.executor.engine.run_variables import JsonText
from services.executor.engine.state import NodeState, NodeStatus, RunState, Scope
from services.kit.expressions import References

_STATUS_NAMES = {status: status.name.lower() for status in NodeStatus}


def referenced_nodes(scope: Scope, references: References) -> Iterable[NodeState]:
    """The nodes that an expression in this scope may read, nearer ones hiding outer ones of the same key."""
    if references.all_nodes:
        seen: dict[str, NodeState] = {}
        for outer in scope.outwards():
            for node in outer.nodes:
                if node.status is not NodeStatus.PENDING:
                    seen.setdefault(node.spec.key, node)
        return seen.values()
    return [found for key in references.nodes if (found := scope.node(key)) is not None]


def variables_for(state: RunState, scope: Scope, references: References) -> dict[str, Any]:
    """The variables as values, for evaluation here. Shared with the state: not to be changed."""
    found = _variables(state, scope, references, NodeState.output_value, _object_value)
    if "input" in references.names:
        found["input"] = scope.input_value()
    return found


def variables_json(state: RunState, scope: Scope, references: References) -> bytes:
    """The same as JSON text for a worker, without parsing what is already text."""
    found = _variables(state, scope, references, _output_text, _object_text)
    if "input" in references.names:
        found["input"] = orjson.Fragment(scope.input_json())
    return orjson.dumps(found)


def _object_value(json: JsonText) -> Any:
    return json.value


def _output_text(node: NodeState) -> Any:
    return orjson.Fragment(node.output or b"null")


def _object_text(json: JsonText) -> Any:
    return orjson.Fragment(json.text)


def _variables(
    state: RunState,
    scope: Scope,
    references: References,
    output: Callable[[NodeState], Any],
    content: Callable[[JsonText], Any],
) -> dict[str, Any]:
    names, found = references.names, dict[str, Any]()
    if "nodes" in names:
        found["nodes"] = {node.spec.key: _node_view(node, output) for node in referenced_nodes(scope, references)}
    if "run" in names:
        found["run"] = {
            "id": state.run_text,
            "workflow_id": state.workflow_id,
            "version": state.version_number,
        }
        if references.reads("run", "vars"):
            found["run"]["vars"] = content(state.vars.run)
    if "project" in names:
        found["project"] = {"id": state.project_id}
        if references.reads("project", "vars"):
            found["project"]["vars"] = content(state.vars.project)
    for name in ("item", "index", "state"):
        if name in names:
            _add_inner(found, scope, name)
    return found


def _add_inner(found: dict[str, Any], scope: Scope, name: str) -> None:
    """`item`, `index`, `state`: what the nearest map or loop says. Outside of them the name has no value."""
    for outer in scope.outwards():
        if name in outer.names:
            found[name] = outer.names[name]
            return


def _node_view(node: NodeState, output: Callable[[NodeState], Any]) -> dict[str, Any]:
    view: dict[str, Any] = {"status": _STATUS_NAMES[node.status]}
    if node.output is not None:
        view["output"] = output(node)
    if node.error is not None:
        view["error"] = node.error.as_json()
    return view
