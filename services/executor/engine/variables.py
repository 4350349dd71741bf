"""The names that templates and expressions see, built from a run's state."""

from collections.abc import Iterable
from typing import Any

import orjson

from services.executor.engine.state import NodeState, NodeStatus, RunState
from services.kit.expressions import References

_STATUS_NAMES = {status: status.name.lower() for status in NodeStatus}


def referenced_nodes(state: RunState, references: References) -> Iterable[int]:
    """Positions of the nodes that an expression may read."""
    if references.all_nodes:
        return [position for position, node in enumerate(state.nodes) if node.status is not NodeStatus.PENDING]
    return [state.graph.index[key] for key in references.nodes if key in state.graph.index]


def variables_for(state: RunState, references: References) -> dict[str, Any]:
    """The variables as values, for evaluation here. Shared with the state: not to be changed."""
    found: dict[str, Any] = {}
    names = references.names
    if "input" in names:
        found["input"] = state.input_value()
    if "nodes" in names:
        found["nodes"] = {
            state.graph.nodes[position].key: _node_view(state.nodes[position], state.nodes[position].output_value())
            for position in referenced_nodes(state, references)
        }
    _add_run(found, state, names)
    return found


def variables_json(state: RunState, references: References) -> bytes:
    """The same as JSON text for a worker, without parsing what is already text."""
    found: dict[str, Any] = {}
    names = references.names
    if "input" in names:
        found["input"] = orjson.Fragment(state.input)
    if "nodes" in names:
        found["nodes"] = {
            state.graph.nodes[position].key: _node_view(
                state.nodes[position], orjson.Fragment(state.nodes[position].output or b"null")
            )
            for position in referenced_nodes(state, references)
        }
    _add_run(found, state, names)
    return orjson.dumps(found)


def _node_view(node: NodeState, output: Any) -> dict[str, Any]:
    view: dict[str, Any] = {"status": _STATUS_NAMES[node.status]}
    if node.output is not None:
        view["output"] = output
    if node.error is not None:
        view["error"] = node.error.as_json()
    return view


def _add_run(found: dict[str, Any], state: RunState, names: frozenset[str]) -> None:
    if "run" in names:
        found["run"] = {
            "id": str(state.run_id),
            "workflow_id": state.workflow_id,
            "version": state.version_number,
        }
    if "project" in names:
        found["project"] = {"id": state.project_id, "vars": {}}
