"""Workflows and versions from proto."""

from typing import Any

from headrace.workflows.v1 import workflow_pb2

from services.gateway.convert.common import json_from_proto, time_to_json
from services.gateway.convert.definitions import definition_to_json


def workflow_summary_to_json(workflow: workflow_pb2.Workflow) -> dict[str, Any]:
    """A workflow without its draft."""
    return {
        "id": workflow.id,
        "name": workflow.name,
        "description": workflow.description,
        "revision": workflow.revision,
        "latest_version": workflow.latest_version or None,
        "created_at": time_to_json(workflow, "created_at"),
        "updated_at": time_to_json(workflow, "updated_at"),
    }


def workflow_to_json(workflow: workflow_pb2.Workflow) -> dict[str, Any]:
    """A workflow with its draft."""
    if workflow.HasField("definition_json"):
        definition = json_from_proto(workflow.definition_json)
    else:
        definition = definition_to_json(workflow.definition)
    return {**workflow_summary_to_json(workflow), "definition": definition}


def version_summary_to_json(version: workflow_pb2.WorkflowVersion) -> dict[str, Any]:
    """A version without its definition."""
    return {
        "id": version.id,
        "workflow_id": version.workflow_id,
        "workflow_name": version.workflow_name,
        "number": version.number,
        "note": version.note,
        "content_hash": version.content_hash,
        "created_at": time_to_json(version, "created_at"),
    }


def version_to_json(version: workflow_pb2.WorkflowVersion) -> dict[str, Any]:
    """A version."""
    return {**version_summary_to_json(version), "definition": definition_to_json(version.definition)}
