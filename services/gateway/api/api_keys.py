"""API keys of the caller, each bound to a project."""

from headrace.auth.v1 import auth_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    AccountHolder,
    Admin,
    ApiKeyId,
    IdempotencyKey,
    PageSize,
    PageToken,
    Viewer,
    clients_of,
)
from services.gateway.convert.auth import api_key_to_json
from services.gateway.convert.common import page_to_json, time_to_proto
from services.gateway.routing import Json, new_router
from services.gateway.schemas.auth import ApiKeyInput, ApiKeyPage, NewApiKey

router = new_router("/api/v1/auth/api-keys", "auth")


@router.post("", status_code=201, response_model=NewApiKey)
async def create_api_key(
    request: Request, caller: AccountHolder, access: Admin, body: ApiKeyInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make an API key for the project. The key itself is shown this once."""
    clients = clients_of(request)
    asked = pb.CreateApiKeyRequest(
        user_id=access.user_id,
        project_id=access.project_id,
        name=body.name,
        scopes=dict.fromkeys(body.scopes),
        expires_at=time_to_proto(body.expires_at) if body.expires_at else None,
        request_id=idempotency_key or "",
    )
    reply = await clients.call(clients.auth.CreateApiKey, asked)
    return Json({**api_key_to_json(reply.api_key), "key": reply.secret}, status_code=201)


@router.get("", response_model=ApiKeyPage)
async def list_api_keys(
    request: Request, access: Viewer, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List the own API keys of the project, newest first."""
    clients = clients_of(request)
    asked = pb.ListApiKeysRequest(
        user_id=access.user_id, project_id=access.project_id, page_size=page_size, page_token=page_token
    )
    reply = await clients.call(clients.auth.ListApiKeys, asked)
    return Json(page_to_json([api_key_to_json(key) for key in reply.api_keys], reply.next_page_token))


@router.delete("/{api_key_id}", status_code=204)
async def delete_api_key(request: Request, caller: AccountHolder, access: Viewer, api_key_id: ApiKeyId) -> Response:
    """Revoke an own API key. It stops working within ten seconds."""
    clients = clients_of(request)
    asked = pb.DeleteApiKeyRequest(user_id=access.user_id, project_id=access.project_id, api_key_id=api_key_id)
    await clients.call(clients.auth.DeleteApiKey, asked)
    return Response(status_code=204)
