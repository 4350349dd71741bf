"""Published versions of a workflow."""

from typing import Annotated

from fastapi import Path
from headrace.workflows.v1 import workflow_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Editor,
    ExpectedRevision,
    PageSize,
    PageToken,
    Viewer,
    WorkflowId,
    clients_of,
)
from services.gateway.convert.common import page_to_json
from services.gateway.convert.workflows import version_summary_to_json, version_to_json
from services.gateway.routing import Json, new_router
from services.gateway.schemas.common import INT32_MAX
from services.gateway.schemas.workflows import PublishInput, Version, VersionPage
from services.kit.errors import NotFoundError

router = new_router("/api/v1/workflows/{workflow_id}/versions", "versions")


@router.post(
    "",
    status_code=201,
    response_model=Version,
    responses={200: {"model": Version, "description": "The draft is the newest version already; this is it."}},
)
async def publish_version(
    request: Request,
    access: Editor,
    workflow_id: WorkflowId,
    revision: ExpectedRevision,
    body: PublishInput | None = None,
) -> Response:
    """Publish the draft under the next number; 422 with all issues when it is not valid."""
    clients = clients_of(request)
    listed = pb.ListVersionsRequest(project_id=access.project_id, workflow_id=workflow_id, page_size=1)
    before = await clients.call(clients.workflows.ListVersions, listed)
    asked = pb.PublishVersionRequest(
        project_id=access.project_id, workflow_id=workflow_id, revision=revision, note=body.note if body else ""
    )
    version = (await clients.call(clients.workflows.PublishVersion, asked)).version
    is_new = not before.versions or before.versions[0].number < version.number
    headers = {"Location": f"/api/v1/workflows/{workflow_id}/versions/{version.number}"}
    return Json(version_to_json(version), status_code=201 if is_new else 200, headers=headers)


@router.get("", response_model=VersionPage)
async def list_versions(
    request: Request, access: Viewer, workflow_id: WorkflowId, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List published versions without definitions, newest first."""
    clients = clients_of(request)
    asked = pb.ListVersionsRequest(
        project_id=access.project_id, workflow_id=workflow_id, page_size=page_size, page_token=page_token
    )
    reply = await clients.call(clients.workflows.ListVersions, asked)
    items = [version_summary_to_json(version) for version in reply.versions]
    return Json(page_to_json(items, reply.next_page_token))


@router.get("/{number}", response_model=Version)
async def get_version(
    request: Request,
    access: Viewer,
    workflow_id: WorkflowId,
    number: Annotated[str, Path(description="From 1.", json_schema_extra={"pattern": "^[1-9][0-9]{0,8}$"})],
) -> Response:
    """Get a published version with its definition."""
    if not (number.isascii() and number.isdigit() and len(number) < 11 and 0 < int(number) <= INT32_MAX):
        raise NotFoundError("There is no version of that number.", reason="VERSION_NOT_FOUND")
    clients = clients_of(request)
    asked = pb.GetVersionRequest(project_id=access.project_id, workflow_id=workflow_id, number=int(number))
    reply = await clients.call(clients.workflows.GetVersion, asked)
    return Json(version_to_json(reply.version))
