"""Projects and their members."""

from headrace.auth.v1 import auth_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    AccountHolder,
    Caller,
    ExpectedRevision,
    IdempotencyKey,
    PageSize,
    PageToken,
    ProjectId,
    UserId,
    clients_of,
    etag,
    gateway_of,
)
from services.gateway.convert.auth import ROLES, member_to_json, project_to_json
from services.gateway.convert.common import page_to_json
from services.gateway.identity import Access, Principal, Role
from services.gateway.routing import Json, new_router
from services.gateway.schemas.projects import (
    Member,
    MemberInput,
    MemberPage,
    Project,
    ProjectInput,
    ProjectPage,
    ProjectPatch,
)
from services.kit.errors import NotFoundError

router = new_router("/api/v1/projects", "projects")


@router.get("", response_model=ProjectPage)
async def list_projects(
    request: Request, caller: Caller, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List the projects that the credential reaches, newest first."""
    clients = clients_of(request)
    if caller.is_api_key:
        own = pb.GetProjectRequest(user_id=caller.user_id, project_id=caller.home_project_id)
        reply = await clients.call(clients.auth.GetProject, own)
        return Json(page_to_json([project_to_json(reply.project)], ""))
    asked = pb.ListProjectsRequest(user_id=caller.user_id, page_size=page_size, page_token=page_token)
    page = await clients.call(clients.auth.ListProjects, asked)
    return Json(page_to_json([project_to_json(project) for project in page.projects], page.next_page_token))


@router.post("", status_code=201, response_model=Project)
async def create_project(
    request: Request, caller: AccountHolder, body: ProjectInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a project; the caller owns it."""
    clients = clients_of(request)
    asked = pb.CreateProjectRequest(user_id=caller.user_id, name=body.name, request_id=idempotency_key or "")
    project = (await clients.call(clients.auth.CreateProject, asked)).project
    headers = {**etag(project.revision), "Location": f"/api/v1/projects/{project.id}"}
    return Json(project_to_json(project), status_code=201, headers=headers)


@router.get("/{project_id}", response_model=Project)
async def get_project(request: Request, caller: Caller, project_id: ProjectId) -> Response:
    """Get a project with the own role in it."""
    access = await _enter(request, caller, project_id, Role.VIEWER)
    clients = clients_of(request)
    asked = pb.GetProjectRequest(user_id=access.user_id, project_id=access.project_id)
    project = (await clients.call(clients.auth.GetProject, asked)).project
    return Json(project_to_json(project), headers=etag(project.revision))


@router.patch("/{project_id}", response_model=Project)
async def update_project(
    request: Request, caller: Caller, project_id: ProjectId, body: ProjectPatch, revision: ExpectedRevision
) -> Response:
    """Rename a project (admin)."""
    access = await _enter(request, caller, project_id, Role.ADMIN)
    asked = pb.UpdateProjectRequest(user_id=access.user_id, project_id=access.project_id, revision=revision)
    if "name" in body.model_fields_set:
        asked.name = body.name
    clients = clients_of(request)
    project = (await clients.call(clients.auth.UpdateProject, asked)).project
    return Json(project_to_json(project), headers=etag(project.revision))


@router.delete("/{project_id}", status_code=204)
async def delete_project(
    request: Request, caller: AccountHolder, project_id: ProjectId, revision: ExpectedRevision
) -> Response:
    """Delete a project (owner). A personal project stays."""
    access = await _enter(request, caller, project_id, Role.OWNER)
    clients = clients_of(request)
    asked = pb.DeleteProjectRequest(user_id=access.user_id, project_id=access.project_id, revision=revision)
    await clients.call(clients.auth.DeleteProject, asked)
    gateway_of(request).identity.forget_role(access.user_id, access.project_id)
    return Response(status_code=204)


@router.get("/{project_id}/members", response_model=MemberPage)
async def list_members(
    request: Request, caller: Caller, project_id: ProjectId, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List a project's members by the time they joined."""
    access = await _enter(request, caller, project_id, Role.VIEWER)
    clients = clients_of(request)
    asked = pb.ListMembersRequest(
        user_id=access.user_id, project_id=access.project_id, page_size=page_size, page_token=page_token
    )
    reply = await clients.call(clients.auth.ListMembers, asked)
    return Json(page_to_json([member_to_json(member) for member in reply.members], reply.next_page_token))


@router.get("/{project_id}/members/{user_id}", response_model=Member)
async def get_member(request: Request, caller: Caller, project_id: ProjectId, user_id: UserId) -> Response:
    """Get a member."""
    access = await _enter(request, caller, project_id, Role.VIEWER)
    return Json(await _find_member(request, access, user_id))


@router.put("/{project_id}/members/{user_id}", response_model=Member)
async def put_member(
    request: Request, caller: AccountHolder, project_id: ProjectId, user_id: UserId, body: MemberInput
) -> Response:
    """Add a user, or change a member's role (admin; owner for owners)."""
    access = await _enter(request, caller, project_id, Role.ADMIN)
    clients = clients_of(request)
    asked = pb.PutMemberRequest(
        user_id=access.user_id, project_id=access.project_id, member_user_id=user_id, role=ROLES[body.role]
    )
    reply = await clients.call(clients.auth.PutMember, asked)
    gateway_of(request).identity.forget_role(user_id, access.project_id)
    return Json(member_to_json(reply.member))


@router.delete("/{project_id}/members/{user_id}", status_code=204)
async def delete_member(request: Request, caller: AccountHolder, project_id: ProjectId, user_id: UserId) -> Response:
    """Remove a member (admin), or leave a project."""
    needed = Role.VIEWER if user_id == caller.user_id else Role.ADMIN
    access = await _enter(request, caller, project_id, needed)
    clients = clients_of(request)
    asked = pb.DeleteMemberRequest(user_id=access.user_id, project_id=access.project_id, member_user_id=user_id)
    await clients.call(clients.auth.DeleteMember, asked)
    gateway_of(request).identity.forget_role(user_id, access.project_id)
    return Response(status_code=204)


async def _enter(request: Request, caller: Principal, project_id: str, at_least: Role) -> Access:
    return await gateway_of(request).identity.enter(caller, project_id, at_least)


async def _find_member(request: Request, access: Access, user_id: str) -> dict[str, object]:
    clients = clients_of(request)
    token = ""
    while True:
        asked = pb.ListMembersRequest(
            user_id=access.user_id, project_id=access.project_id, page_size=200, page_token=token
        )
        reply = await clients.call(clients.auth.ListMembers, asked)
        for member in reply.members:
            if member.user_id == user_id:
                return member_to_json(member)
        if not (token := reply.next_page_token):
            raise NotFoundError("There is no such member in the project.", reason="MEMBER_NOT_FOUND")
