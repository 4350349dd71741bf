"""Nodes of a workflow's draft, one by one."""

import orjson
from headrace.workflows.v1 import workflow_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Editor,
    ExpectedRevision,
    IdempotencyKey,
    NodeId,
    PageSize,
    PageToken,
    Viewer,
    WorkflowId,
    clients_of,
    etag,
)
from services.gateway.convert.common import page_to_json
from services.gateway.convert.definitions import node_to_json, node_to_proto
from services.gateway.routing import Json, new_router
from services.gateway.schemas.workflows import NodeInput, NodePage, NodePatch, NodeWithRevision

router = new_router("/api/v1/workflows/{workflow_id}/nodes", "nodes")


@router.post("", status_code=201, response_model=NodeWithRevision)
async def create_node(
    request: Request,
    access: Editor,
    workflow_id: WorkflowId,
    body: NodeInput,
    revision: ExpectedRevision,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add a node to the draft."""
    clients = clients_of(request)
    asked = pb.CreateNodeRequest(
        project_id=access.project_id,
        workflow_id=workflow_id,
        revision=revision,
        node=node_to_proto(body),
        request_id=idempotency_key or "",
    )
    reply = await clients.call(clients.workflows.CreateNode, asked)
    headers = {**etag(reply.revision), "Location": f"/api/v1/workflows/{workflow_id}/nodes/{reply.node.id}"}
    return Json({**node_to_json(reply.node), "revision": reply.revision}, status_code=201, headers=headers)


@router.get("", response_model=NodePage)
async def list_nodes(
    request: Request, access: Viewer, workflow_id: WorkflowId, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List the draft's nodes in their order."""
    clients = clients_of(request)
    asked = pb.ListNodesRequest(
        project_id=access.project_id, workflow_id=workflow_id, page_size=page_size, page_token=page_token
    )
    reply = await clients.call(clients.workflows.ListNodes, asked)
    items = [node_to_json(node) for node in reply.nodes]
    answer = page_to_json(items, reply.next_page_token, revision=reply.revision)
    return Json(answer, headers=etag(reply.revision))


@router.get("/{node_id}", response_model=NodeWithRevision)
async def get_node(request: Request, access: Viewer, workflow_id: WorkflowId, node_id: NodeId) -> Response:
    """Get a node."""
    clients = clients_of(request)
    asked = pb.GetNodeRequest(project_id=access.project_id, workflow_id=workflow_id, node_id=node_id)
    reply = await clients.call(clients.workflows.GetNode, asked)
    return Json({**node_to_json(reply.node), "revision": reply.revision}, headers=etag(reply.revision))


@router.patch("/{node_id}", response_model=NodeWithRevision)
async def update_node(
    request: Request,
    access: Editor,
    workflow_id: WorkflowId,
    node_id: NodeId,
    body: NodePatch,
    revision: ExpectedRevision,
) -> Response:
    """Change a node by a JSON merge patch (RFC 7396): what is absent stays, null resets. Edges follow a new key."""
    clients = clients_of(request)
    asked = pb.UpdateNodeRequest(
        project_id=access.project_id,
        workflow_id=workflow_id,
        node_id=node_id,
        revision=revision,
        merge_patch=orjson.dumps(body.model_dump(include=body.model_fields_set)),
    )
    reply = await clients.call(clients.workflows.UpdateNode, asked)
    return Json({**node_to_json(reply.node), "revision": reply.revision}, headers=etag(reply.revision))


@router.delete("/{node_id}", status_code=204)
async def delete_node(
    request: Request, access: Editor, workflow_id: WorkflowId, node_id: NodeId, revision: ExpectedRevision
) -> Response:
    """Remove a node and its edges from the draft."""
    clients = clients_of(request)
    asked = pb.DeleteNodeRequest(
        project_id=access.project_id, workflow_id=workflow_id, node_id=node_id, revision=revision
    )
    reply = await clients.call(clients.workflows.DeleteNode, asked)
    return Response(status_code=204, headers=etag(reply.revision))
