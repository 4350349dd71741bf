"""Limits of projects: what may run, wait and start at a time."""

from headrace.executor.v1 import executor_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import Caller, ProjectId, clients_of, gateway_of
from services.gateway.convert.limits import limits_in_force_to_json, limits_to_proto
from services.gateway.identity import Role
from services.gateway.routing import Json, new_router
from services.gateway.schemas.limits import Limits, ProjectLimits

router = new_router("/api/v1/projects", "projects")


@router.get("/{project_id}/limits", response_model=ProjectLimits)
async def get_limits(request: Request, caller: Caller, project_id: ProjectId) -> Response:
    """Get what a project may use (admin)."""
    access = await gateway_of(request).identity.enter(caller, project_id, Role.ADMIN)
    clients = clients_of(request)
    asked = pb.GetProjectLimitsRequest(project_id=access.project_id)
    reply = await clients.call(clients.executor.GetProjectLimits, asked)
    return Json(limits_in_force_to_json(reply.limits))


@router.put("/{project_id}/limits", response_model=ProjectLimits)
async def set_limits(request: Request, caller: Caller, project_id: ProjectId, body: Limits) -> Response:
    """Replace what a project may use (admin): what is left out is not limited. It counts within two seconds."""
    access = await gateway_of(request).identity.enter(caller, project_id, Role.ADMIN)
    clients = clients_of(request)
    asked = pb.SetProjectLimitsRequest(project_id=access.project_id, limits=limits_to_proto(body))
    reply = await clients.call(clients.executor.SetProjectLimits, asked)
    return Json(limits_in_force_to_json(reply.limits))
