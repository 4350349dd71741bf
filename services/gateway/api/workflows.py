"""Workflows: the named things that people edit, and their drafts as a whole."""

from typing import Annotated

from fastapi import Query
from headrace.common.v1 import issue_pb2
from headrace.workflows.v1 import workflow_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Editor,
    ExpectedRevision,
    IdempotencyKey,
    PageSize,
    PageToken,
    Viewer,
    WorkflowId,
    clients_of,
    etag,
)
from services.gateway.convert.common import issues_to_json, page_to_json
from services.gateway.convert.definitions import definition_to_proto
from services.gateway.convert.workflows import workflow_summary_to_json, workflow_to_json
from services.gateway.routing import LARGE_BODY, Json, new_router
from services.gateway.schemas.workflows import (
    DefinitionInput,
    ValidateInput,
    Verdict,
    Workflow,
    WorkflowInput,
    WorkflowPage,
    WorkflowPatch,
    WorkflowWithIssues,
)

router = new_router("/api/v1/workflows", "workflows")


@router.get("/{workflow_id}", response_model=Workflow)
async def get_workflow(request: Request, access: Viewer, workflow_id: WorkflowId) -> Response:
    """Get a workflow with its draft."""
    clients = clients_of(request)
    asked = pb.GetWorkflowRequest(project_id=access.project_id, workflow_id=workflow_id, definition_as_json=True)
    reply = await clients.call(clients.workflows.GetWorkflow, asked)
    return Json(workflow_to_json(reply.workflow), headers=etag(reply.workflow.revision))


@router.post("", status_code=201, response_model=WorkflowWithIssues, openapi_extra=LARGE_BODY)
async def create_workflow(
    request: Request, access: Editor, body: WorkflowInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a workflow. A draft with issues is saved; `issues` says what keeps it from being published."""
    clients = clients_of(request)
    asked = pb.CreateWorkflowRequest(
        project_id=access.project_id,
        name=body.name,
        description=body.description,
        definition=definition_to_proto(body.definition) if body.definition else None,
        request_id=idempotency_key or "",
    )
    reply = await clients.call(clients.workflows.CreateWorkflow, asked)
    workflow = reply.workflow
    headers = {**etag(workflow.revision), "Location": f"/api/v1/workflows/{workflow.id}"}
    answer = {**workflow_to_json(workflow), "issues": issues_to_json(reply.issues)}
    return Json(answer, status_code=201, headers=headers)


@router.get("", response_model=WorkflowPage)
async def list_workflows(
    request: Request,
    access: Viewer,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    name: Annotated[str, Query(max_length=128, description="Exact name.")] = "",
) -> Response:
    """List workflows without drafts, newest first."""
    clients = clients_of(request)
    asked = pb.ListWorkflowsRequest(project_id=access.project_id, page_size=page_size, page_token=page_token, name=name)
    reply = await clients.call(clients.workflows.ListWorkflows, asked)
    items = [workflow_summary_to_json(workflow) for workflow in reply.workflows]
    return Json(page_to_json(items, reply.next_page_token))


@router.patch("/{workflow_id}", response_model=WorkflowWithIssues, openapi_extra=LARGE_BODY)
async def update_workflow(
    request: Request, access: Editor, workflow_id: WorkflowId, body: WorkflowPatch, revision: ExpectedRevision
) -> Response:
    """Change name, description or draft."""
    clients = clients_of(request)
    asked = pb.UpdateWorkflowRequest(project_id=access.project_id, workflow_id=workflow_id, revision=revision)
    if "name" in body.model_fields_set:
        asked.name = body.name
    if "description" in body.model_fields_set:
        asked.description = body.description or ""
    if "definition" in body.model_fields_set:
        asked.definition.CopyFrom(definition_to_proto(body.definition))
    reply = await clients.call(clients.workflows.UpdateWorkflow, asked)
    answer = {**workflow_to_json(reply.workflow), "issues": issues_to_json(reply.issues)}
    return Json(answer, headers=etag(reply.workflow.revision))


@router.delete("/{workflow_id}", status_code=204)
async def delete_workflow(
    request: Request, access: Editor, workflow_id: WorkflowId, revision: ExpectedRevision
) -> Response:
    """Delete a workflow. Its runs stay, and those under way go on."""
    clients = clients_of(request)
    asked = pb.DeleteWorkflowRequest(project_id=access.project_id, workflow_id=workflow_id, revision=revision)
    await clients.call(clients.workflows.DeleteWorkflow, asked)
    return Response(status_code=204)


@router.put("/{workflow_id}/definition", response_model=WorkflowWithIssues, openapi_extra=LARGE_BODY)
async def put_definition(
    request: Request, access: Editor, workflow_id: WorkflowId, body: DefinitionInput, revision: ExpectedRevision
) -> Response:
    """Replace all nodes and edges of the draft at once. A draft with issues is saved, and they are returned."""
    clients = clients_of(request)
    asked = pb.PutDefinitionRequest(
        project_id=access.project_id,
        workflow_id=workflow_id,
        revision=revision,
        definition=definition_to_proto(body),
    )
    reply = await clients.call(clients.workflows.PutDefinition, asked)
    answer = {**workflow_to_json(reply.workflow), "issues": issues_to_json(reply.issues)}
    return Json(answer, headers=etag(reply.workflow.revision))


@router.post("/{workflow_id}/validate", response_model=Verdict, openapi_extra=LARGE_BODY)
async def validate_workflow(
    request: Request, access: Viewer, workflow_id: WorkflowId, body: ValidateInput | None = None
) -> Response:
    """List all issues of the draft, or of a definition given in its place. Changes nothing."""
    clients = clients_of(request)
    definition = body.definition if body else None
    asked = pb.ValidateWorkflowRequest(
        project_id=access.project_id,
        workflow_id=workflow_id,
        definition=definition_to_proto(definition) if definition else None,
    )
    reply = await clients.call(clients.workflows.ValidateWorkflow, asked)
    valid = all(issue.severity == issue_pb2.SEVERITY_WARNING for issue in reply.issues)
    return Json({"valid": valid, "issues": issues_to_json(reply.issues)})
