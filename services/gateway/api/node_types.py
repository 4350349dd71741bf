"""The catalogue of node types."""

from headrace.executor.v1 import executor_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import Caller, clients_of
from services.gateway.convert.common import page_to_json
from services.gateway.convert.runs import node_type_to_json
from services.gateway.routing import Json, new_router
from services.gateway.schemas.runs import NodeTypeList

router = new_router("/api/v1/node-types", "node types")


@router.get("", response_model=NodeTypeList)
async def list_node_types(request: Request, caller: Caller) -> Response:
    """List what a node can be, by name: config, output, ports."""
    clients = clients_of(request)
    reply = await clients.call(clients.executor.ListNodeTypes, pb.ListNodeTypesRequest())
    return Json(page_to_json([node_type_to_json(node_type) for node_type in reply.node_types], ""))
