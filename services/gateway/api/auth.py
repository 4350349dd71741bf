"""Registration, login, tokens and the own account."""

from typing import Any
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from headrace.auth.v1 import auth_service_pb2 as pb
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import AccountHolder, Caller, IdempotencyKey, clients_of
from services.gateway.convert.auth import role_name, tokens_to_json, user_to_json
from services.gateway.identity import Principal
from services.gateway.routing import FORM_BODY, GuardedRequest, Json, new_router
from services.gateway.schemas.auth import LoginInput, Me, MeInput, RefreshInput, RegisterInput, TokenPair, User
from services.kit.errors import InvalidArgumentError

router = new_router("/api/v1/auth", "auth")

_LOGIN_SCHEMA = {"$ref": "#/components/schemas/LoginInput"}
_LOGIN_BODY: dict[str, Any] = {
    **FORM_BODY,
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {"schema": _LOGIN_SCHEMA},
            "application/json": {"schema": _LOGIN_SCHEMA},
        },
    },
}


@router.post("/register", status_code=201, response_model=User)
async def register(request: Request, body: RegisterInput, idempotency_key: IdempotencyKey = None) -> Response:
    """Register a user; a personal project comes with it."""
    clients = clients_of(request)
    asked = pb.RegisterRequest(
        email=body.email, password=body.password, name=body.name, request_id=idempotency_key or ""
    )
    reply = await clients.call(clients.auth.Register, asked)
    return Json(user_to_json(reply.user), status_code=201, headers={"Location": "/api/v1/auth/me"})


@router.post("/login", response_model=TokenPair, openapi_extra=_LOGIN_BODY)
async def login(request: Request) -> Response:
    """Log in with an OAuth2 password form, or the same fields as JSON."""
    body = await _login_input(request)
    clients = clients_of(request)
    asked = pb.LoginRequest(
        email=body.username, password=body.password, client_address=request.scope["headrace.client_address"]
    )
    reply = await clients.call(clients.auth.Login, asked)
    return Json(tokens_to_json(reply.tokens))


@router.post("/refresh", response_model=TokenPair)
async def refresh(request: Request, body: RefreshInput) -> Response:
    """Take the next pair of tokens. A refresh token used twice ends the login it belongs to."""
    clients = clients_of(request)
    reply = await clients.call(clients.auth.Refresh, pb.RefreshRequest(refresh_token=body.refresh_token))
    return Json(tokens_to_json(reply.tokens))


@router.post("/logout", status_code=204)
async def logout(request: Request, body: RefreshInput) -> Response:
    """End the login that a refresh token belongs to. Its access token lives on until it expires."""
    clients = clients_of(request)
    await clients.call(clients.auth.Logout, pb.LogoutRequest(refresh_token=body.refresh_token))
    return Response(status_code=204)


@router.get("/me", response_model=Me)
async def get_me(request: Request, caller: Caller) -> Response:
    """Get the caller, with the projects that the credential reaches."""
    return Json(await _me(request, caller))


@router.patch("/me", response_model=Me)
async def update_me(request: Request, caller: AccountHolder, body: MeInput) -> Response:
    """Change the own name or password."""
    asked = pb.UpdateUserRequest(user_id=caller.user_id)
    for field in body.model_fields_set:
        setattr(asked, field, getattr(body, field))
    clients = clients_of(request)
    await clients.call(clients.auth.UpdateUser, asked)
    return Json(await _me(request, caller))


async def _me(request: Request, caller: Principal) -> dict[str, Any]:
    clients = clients_of(request)
    reply = await clients.call(clients.auth.GetUser, pb.GetUserRequest(user_id=caller.user_id))
    projects = [
        {"id": project.id, "name": project.name, "role": role_name(project.role)}
        for project in reply.projects
        if not caller.is_api_key or project.id == caller.home_project_id
    ]
    return {**user_to_json(reply.user), "projects": projects}


async def _login_input(request: Request) -> LoginInput:
    value = request.parsed if isinstance(request, GuardedRequest) else None
    if value is None:
        text = (await request.body()).decode(errors="replace")
        try:
            fields = parse_qsl(text, keep_blank_values=True, max_num_fields=16)
        except ValueError as error:
            raise InvalidArgumentError("The form cannot be read.", reason="INVALID_FORM") from error
        value = dict(fields)
        if len(value) != len(fields) or "\x00" in text or any("\x00" in item for pair in fields for item in pair):
            raise InvalidArgumentError("The form cannot be read.", reason="INVALID_FORM")
    try:
        return LoginInput.model_validate(value)
    except ValidationError as error:
        # Without the input, which is a password.
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from error
