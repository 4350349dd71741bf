"""A run's state made again from its rows, equal to what the executor had that committed them.

Containers open and close their scopes in order, as they did: results are computed from rows, not stored a second time.
"""

from collections.abc import Mapping

from services.executor.engine import containers
from services.executor.engine.state import (
    NODE_TERMINAL,
    Failure,
    NodeRow,
    NodeState,
    NodeStatus,
    RunState,
    Scope,
    edge_is_live,
)

Rows = Mapping[str, Mapping[str, NodeRow]]
"""Rows of node executions by item path and node key."""


def restore(state: RunState, rows: Rows) -> None:
    """Bring a fresh state to where its rows say it is."""
    state.active_nodes = state.executions = state.calls = 0
    _restore_scope(state, state.root, rows)
    open_scopes = [state.root, *state.scopes.values()]
    opened = {scope.path for scope in open_scopes}
    state.executions = sum(len(scope.nodes) for scope in open_scopes)
    state.executions += sum(len(found) for path, found in rows.items() if path not in opened)
    state.output_bytes = sum(len(row.output or b"") for found in rows.values() for row in found.values())
    # Of the paths of scopes only those of sub-workflows carry no number.
    state.calls = sum(1 for path in rows if path and not path.endswith("]"))


def _restore_scope(state: RunState, scope: Scope, rows: Rows) -> None:
    for key, row in rows.get(scope.path, {}).items():
        scope.nodes[scope.graph.index[key]].adopt(row)
    scope.open_nodes = 0
    for node in scope.nodes:
        state.held_bytes += len(node.output or b"")
        if node.status in NODE_TERMINAL:
            for edge in scope.graph.outgoing[node.position]:
                scope.waiting_edges[edge.target] -= 1
                scope.live_edges[edge.target] += edge_is_live(node, edge.port)
            continue
        scope.open_nodes += 1
        if node.status is NodeStatus.RUNNING and containers.is_container(node):
            _restore_container(state, node, rows)
        elif node.status in (NodeStatus.READY, NodeStatus.RUNNING):
            state.active_nodes += 1
            is_recorded = (containers.effect_path(node.path), node.spec.key) in state.recorded
            if node.status is NodeStatus.READY and (node.is_inline or is_recorded):
                state.inline.append(node)


def _restore_container(state: RunState, node: NodeState, rows: Rows) -> None:
    failure = containers.resume(state, node)
    container = node.container
    if failure is not None or container is None:
        raise AssertionError(f"a container that began can be resumed: {failure}")
    number = 0
    while containers.scope_path(node, number) in rows:
        scope = container.open_next(state)
        if not isinstance(scope, Scope):
            break
        number += 1
        _restore_scope(state, scope, rows)
        result = _result(scope)
        if result is None:
            state.open_scope(scope)
        else:
            state.held_bytes += (len(result) if isinstance(result, bytes) else 0) - scope.output_bytes()
            container.close(state, scope, result)
    state.inline.append(node)


def _result(scope: Scope) -> bytes | Failure | None:
    """How a scope ended; None while it is open."""
    for node in scope.nodes:
        if node.status is NodeStatus.FAILED and not node.port:
            return node.error
    return None if scope.open_nodes else scope.result()
