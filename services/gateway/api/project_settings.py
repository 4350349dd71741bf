"""What is set for a project beside its limits: variables, and how long ended runs are kept."""

from headrace.executor.v1 import executor_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import Caller, ProjectId, clients_of, gateway_of
from services.gateway.convert.common import json_from_proto, json_to_proto
from services.gateway.convert.project_settings import retention_to_json
from services.gateway.identity import Role
from services.gateway.routing import Json, new_router
from services.gateway.schemas.project_settings import ProjectRetention, ProjectVariables, Retention, Variables

router = new_router("/api/v1/projects", "projects")


@router.get("/{project_id}/variables", response_model=ProjectVariables)
async def get_variables(request: Request, caller: Caller, project_id: ProjectId) -> Response:
    """Get what expressions read as `project.vars`. No secrets: every member may see them."""
    access = await gateway_of(request).identity.enter(caller, project_id, Role.VIEWER)
    clients = clients_of(request)
    asked = pb.GetProjectVariablesRequest(project_id=access.project_id)
    reply = await clients.call(clients.executor.GetProjectVariables, asked)
    return Json({"variables": json_from_proto(reply.variables)})


@router.put("/{project_id}/variables", response_model=ProjectVariables)
async def set_variables(request: Request, caller: Caller, project_id: ProjectId, body: Variables) -> Response:
    """Replace all variables of a project (admin). Runs accepted two seconds later see them; earlier ones do not."""
    access = await gateway_of(request).identity.enter(caller, project_id, Role.ADMIN)
    clients = clients_of(request)
    asked = pb.SetProjectVariablesRequest(project_id=access.project_id, variables=json_to_proto(body.variables))
    reply = await clients.call(clients.executor.SetProjectVariables, asked)
    return Json({"variables": json_from_proto(reply.variables)})


@router.get("/{project_id}/retention", response_model=ProjectRetention)
async def get_retention(request: Request, caller: Caller, project_id: ProjectId) -> Response:
    """Get how long ended runs are kept (admin)."""
    access = await gateway_of(request).identity.enter(caller, project_id, Role.ADMIN)
    clients = clients_of(request)
    asked = pb.GetProjectRetentionRequest(project_id=access.project_id)
    reply = await clients.call(clients.executor.GetProjectRetention, asked)
    return Json(retention_to_json(reply.retention))


@router.put("/{project_id}/retention", response_model=ProjectRetention)
async def set_retention(request: Request, caller: Caller, project_id: ProjectId, body: Retention) -> Response:
    """Set how long ended runs are kept (admin), those that have ended already as well."""
    access = await gateway_of(request).identity.enter(caller, project_id, Role.ADMIN)
    clients = clients_of(request)
    asked = pb.SetProjectRetentionRequest(project_id=access.project_id, days=body.days)
    reply = await clients.call(clients.executor.SetProjectRetention, asked)
    return Json(retention_to_json(reply.retention))
