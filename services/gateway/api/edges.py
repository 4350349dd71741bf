"""Edges of a workflow's draft, one by one."""

from headrace.workflows.v1 import workflow_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    EdgeId,
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
from services.gateway.convert.common import page_to_json
from services.gateway.convert.definitions import edge_to_json, edge_to_proto
from services.gateway.routing import Json, new_router
from services.gateway.schemas.workflows import EdgeInput, EdgePage, EdgeWithRevision

router = new_router("/api/v1/workflows/{workflow_id}/edges", "edges")


@router.post("", status_code=201, response_model=EdgeWithRevision)
async def create_edge(
    request: Request,
    access: Editor,
    workflow_id: WorkflowId,
    body: EdgeInput,
    revision: ExpectedRevision,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Connect two nodes of the draft."""
    clients = clients_of(request)
    asked = pb.CreateEdgeRequest(
        project_id=access.project_id,
        workflow_id=workflow_id,
        revision=revision,
        edge=edge_to_proto(body),
        request_id=idempotency_key or "",
    )
    reply = await clients.call(clients.workflows.CreateEdge, asked)
    answer = {**edge_to_json(reply.edge), "revision": reply.revision}
    return Json(answer, status_code=201, headers=etag(reply.revision))


@router.get("", response_model=EdgePage)
async def list_edges(
    request: Request, access: Viewer, workflow_id: WorkflowId, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List the draft's edges in their order."""
    clients = clients_of(request)
    asked = pb.ListEdgesRequest(
        project_id=access.project_id, workflow_id=workflow_id, page_size=page_size, page_token=page_token
    )
    reply = await clients.call(clients.workflows.ListEdges, asked)
    items = [edge_to_json(edge) for edge in reply.edges]
    answer = page_to_json(items, reply.next_page_token, revision=reply.revision)
    return Json(answer, headers=etag(reply.revision))


@router.delete("/{edge_id}", status_code=204)
async def delete_edge(
    request: Request, access: Editor, workflow_id: WorkflowId, edge_id: EdgeId, revision: ExpectedRevision
) -> Response:
    """Remove an edge from the draft."""
    clients = clients_of(request)
    asked = pb.DeleteEdgeRequest(
        project_id=access.project_id, workflow_id=workflow_id, edge_id=edge_id, revision=revision
    )
    reply = await clients.call(clients.workflows.DeleteEdge, asked)
    return Response(status_code=204, headers=etag(reply.revision))
