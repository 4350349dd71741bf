"""Credentials: named secrets that nodes refer to. Their data goes in and never comes out."""

from headrace.auth.v1 import auth_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Admin,
    CredentialId,
    ExpectedRevision,
    IdempotencyKey,
    PageSize,
    PageToken,
    Viewer,
    clients_of,
    etag,
)
from services.gateway.convert.auth import credential_to_json
from services.gateway.convert.common import json_to_proto, page_to_json
from services.gateway.routing import Json, new_router
from services.gateway.schemas.credentials import Credential, CredentialInput, CredentialPage, CredentialPatch

router = new_router("/api/v1/credentials", "credentials")


@router.post("", status_code=201, response_model=Credential)
async def create_credential(
    request: Request, access: Admin, body: CredentialInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store a credential, encrypted."""
    clients = clients_of(request)
    asked = pb.CreateCredentialRequest(
        project_id=access.project_id,
        name=body.name,
        type=body.type,
        data=json_to_proto(body.data),
        request_id=idempotency_key or "",
    )
    credential = (await clients.call(clients.auth.CreateCredential, asked)).credential
    headers = {**etag(credential.revision), "Location": f"/api/v1/credentials/{credential.id}"}
    return Json(credential_to_json(credential), status_code=201, headers=headers)


@router.get("", response_model=CredentialPage)
async def list_credentials(
    request: Request, access: Viewer, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List credentials without their data, newest first."""
    clients = clients_of(request)
    asked = pb.ListCredentialsRequest(project_id=access.project_id, page_size=page_size, page_token=page_token)
    reply = await clients.call(clients.auth.ListCredentials, asked)
    items = [credential_to_json(credential) for credential in reply.credentials]
    return Json(page_to_json(items, reply.next_page_token))


@router.patch("/{credential_id}", response_model=Credential)
async def update_credential(
    request: Request, access: Admin, credential_id: CredentialId, body: CredentialPatch, revision: ExpectedRevision
) -> Response:
    """Rename a credential or replace its data."""
    clients = clients_of(request)
    asked = pb.UpdateCredentialRequest(project_id=access.project_id, credential_id=credential_id, revision=revision)
    if "name" in body.model_fields_set:
        asked.name = body.name
    if "data" in body.model_fields_set:
        asked.data.CopyFrom(json_to_proto(body.data))
    credential = (await clients.call(clients.auth.UpdateCredential, asked)).credential
    return Json(credential_to_json(credential), headers=etag(credential.revision))


@router.delete("/{credential_id}", status_code=204)
async def delete_credential(
    request: Request, access: Admin, credential_id: CredentialId, revision: ExpectedRevision
) -> Response:
    """Delete a credential. Nodes that name it fail from now on."""
    clients = clients_of(request)
    asked = pb.DeleteCredentialRequest(project_id=access.project_id, credential_id=credential_id, revision=revision)
    await clients.call(clients.auth.DeleteCredential, asked)
    return Response(status_code=204)
