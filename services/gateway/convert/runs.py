"""Runs, node executions, events and node types between REST and proto."""

from typing import Any

from headrace.executor.v1 import run_pb2

from services.gateway.convert.common import json_from_proto, time_to_json, usage_to_json

RUN_STATUSES = {
    name.removeprefix("RUN_STATUS_").lower(): number
    for name, number in run_pb2.RunStatus.items()
    if number != run_pb2.RUN_STATUS_UNSPECIFIED
}
_RUN_STATUS_NAMES = {number: name for name, number in RUN_STATUSES.items()}
_NODE_STATUS_NAMES = {number: name.removeprefix("NODE_STATUS_").lower() for name, number in run_pb2.NodeStatus.items()}
_TERMINAL = frozenset({run_pb2.RUN_STATUS_SUCCEEDED, run_pb2.RUN_STATUS_FAILED, run_pb2.RUN_STATUS_CANCELLED})
_EMPTY: dict[str, Any] = {}


def is_terminal(run: run_pb2.Run) -> bool:
    """The run has ended."""
    return run.status in _TERMINAL


def run_summary_to_json(run: run_pb2.Run) -> dict[str, Any]:
    """A run without input and output."""
    return {
        "id": run.id,
        "workflow_id": run.workflow_id,
        "workflow_name": run.workflow_name,
        "version_id": run.version_id,
        "version": run.version_number or None,
        "status": _RUN_STATUS_NAMES.get(run.status, "pending"),
        "error": _failure_to_json(run.error) if run.HasField("error") else None,
        "usage": usage_to_json(run.usage),
        "created_at": time_to_json(run, "created_at"),
        "started_at": time_to_json(run, "started_at"),
        "finished_at": time_to_json(run, "finished_at"),
        "rerun_of": run.rerun_of or None,
    }


def run_to_json(run: run_pb2.Run, *, with_resume_urls: bool = False) -> dict[str, Any]:
    """A run; with where its waits are answered for those who may answer, and if they were asked for."""
    urls = [
        {"node_key": wait.node_key, "item_path": wait.item_path, "url": _resume_url(wait.token)}
        for wait in run.resume_tokens
    ]
    return {
        **run_summary_to_json(run),
        "input": json_from_proto(run.input),
        "output": json_from_proto(run.output),
        "vars": json_from_proto(run.vars, absent=_EMPTY),
        "resume_urls": urls if with_resume_urls else None,
    }


def _resume_url(token: str) -> str:
    return f"/api/v1/events/{token}"


def node_execution_to_json(execution: run_pb2.NodeExecution) -> dict[str, Any]:
    """A node execution."""
    return {
        "node_key": execution.node_key,
        "item_path": execution.item_path,
        "type": execution.type,
        "status": _NODE_STATUS_NAMES.get(execution.status, "pending"),
        "attempt": execution.attempt,
        "input": json_from_proto(execution.input),
        "output": json_from_proto(execution.output),
        "port": execution.port or None,
        "error": _failure_to_json(execution.error) if execution.HasField("error") else None,
        "usage": usage_to_json(execution.usage),
        "queued_at": time_to_json(execution, "queued_at"),
        "started_at": time_to_json(execution, "started_at"),
        "finished_at": time_to_json(execution, "finished_at"),
        "worker": execution.worker or None,
        "handler_seconds": execution.handler_time.ToNanoseconds() / 1e9 if execution.HasField("handler_time") else None,
        "resume_url": _resume_url(execution.resume_token) if execution.resume_token else None,
    }


def event_to_json(event: run_pb2.RunEvent) -> dict[str, Any]:
    """An event."""
    return {
        "sequence": event.sequence,
        "type": event.type,
        "at": time_to_json(event, "at"),
        "node_key": event.node_key or None,
        "item_path": event.item_path,
        "data": json_from_proto(event.data, absent=_EMPTY),
    }


def node_type_to_json(node_type: run_pb2.NodeType) -> dict[str, Any]:
    """A node type."""
    return {
        "type": node_type.type,
        "title": node_type.title,
        "help": node_type.help,
        "icon": node_type.icon,
        "category": node_type.category,
        "config_schema": json_from_proto(node_type.config_schema, absent=_EMPTY),
        "output_schema": json_from_proto(node_type.output_schema, absent=_EMPTY),
        "ports": list(node_type.ports),
        "dynamic_ports_field": node_type.dynamic_ports_field or None,
        "expression_fields": list(node_type.expression_fields),
        "default_timeout_seconds": node_type.default_timeout_seconds or None,
        "effect": node_type.effect or None,
    }


def _failure_to_json(failure: run_pb2.Failure) -> dict[str, Any]:
    return {
        "reason": failure.reason,
        "message": failure.message,
        "node_key": failure.node_key or None,
        "item_path": failure.item_path or None,
        "retryable": failure.retryable,
        "details": json_from_proto(failure.details),
    }
