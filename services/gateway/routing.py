"""Routes that guard themselves: authenticated by default, then the body's type, size and JSON, then FastAPI."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from services.gateway.guesses import Guesses
from services.gateway.problems import RequestError
from services.kit import strict_json
from services.kit.errors import DomainError, InternalError, InvalidArgumentError, Violation
from services.kit.ids import new_id

if TYPE_CHECKING:
    from services.gateway.access_tokens import KeySet
    from services.gateway.clients import Clients
    from services.gateway.identity import Identity
    from services.gateway.settings import Settings

log = structlog.get_logger(__name__)

PUBLIC = frozenset(
    {
        ("POST", "/api/v1/auth/register"),
        ("POST", "/api/v1/auth/login"),
        ("POST", "/api/v1/auth/refresh"),
        ("POST", "/api/v1/auth/logout"),
        ("POST", "/api/v1/events/{token}"),
        ("GET", "/.well-known/jwks.json"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/docs/{name}"),
    }
)
"""All that is answered without a credential. Logins and events bear proof of their own, a password or a token."""

LARGE_BODY = {"x-body-limit": "large"}
"""`openapi_extra` of routes whose bodies hold definitions or records."""
FORM_BODY = {"x-form-body": True}
"""`openapi_extra` of routes that take a form beside JSON, and read the body themselves."""

PRINCIPAL = "headrace.principal"
"""Key of the verified caller in the ASGI scope."""
GATEWAY = "headrace.gateway"
"""Key of the `Gateway` in the ASGI scope."""
PROJECT_DEPENDENCIES: set[Callable[..., Any]] = set()
"""Dependencies that read X-Project-Id."""

_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"
_FORM = "application/x-www-form-urlencoded"
_MAX_VALUES = 1_000_000
"""JSON values in one body: 1,000 records of 768 numbers. Bytes are limited besides."""
_LARGE = 128 * 1024
"""Bytes from which a body is parsed in a thread, so that other requests are answered meanwhile."""


@dataclass(slots=True)
class Gateway:
    """What the endpoints work with. Lives at `app.state.gateway`."""

    settings: "Settings"
    clients: "Clients"
    identity: "Identity"
    keys: "KeySet"
    guesses: Guesses = field(default_factory=Guesses)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is told to stop: event streams end, their clients go on elsewhere."""


class Json(JSONResponse):
    """An answer written by orjson. `orjson.Fragment`s are copied as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return orjson.dumps(content)


class GuardedRequest(Request):
    """A request whose body was read and parsed by its route."""

    parsed: Any = None

    async def json(self) -> Any:
        """The body as checked JSON."""
        return self.parsed


class GuardedRoute(APIRoute):
    """A route that lets nobody in unless it is in PUBLIC, and no body but what it takes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with the guard before it."""
        inner = super().get_route_handler()
        extra = self.openapi_extra or {}
        methods = self.methods or set()
        is_public = all((method, self.path_format) in PUBLIC for method in methods)
        is_large = extra.get("x-body-limit") == "large"
        takes_form = bool(extra.get("x-form-body"))
        has_body = self.body_field is not None or takes_form
        types = {_JSON, _FORM} if takes_form else {_JSON, _MERGE_PATCH} if "PATCH" in methods else {_JSON}

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except (DomainError, HTTPException, RequestValidationError):
                raise
            except Exception as error:
                # Here and not around the application: Starlette answers in plain text before that.
                raise masked(error, route=self.path_format) from error

        async def answer(request: Request) -> Response:
            scope = request.scope
            gateway: Gateway = request.app.state.gateway
            scope[GATEWAY] = gateway
            if not is_public:
                scope[PRINCIPAL] = await gateway.identity.authenticate(scope["headers"])
            _refuse_nul(scope["path"], scope["query_string"])
            if not has_body:
                return await inner(request)
            guarded = GuardedRequest(scope, request.receive)
            settings = gateway.settings
            limit = settings.max_large_body_bytes if is_large else settings.max_body_bytes
            body = await _read(request, limit)
            if body:
                media_type = _media_type(request, types)
                if media_type != _FORM:
                    guarded.parsed = await _parse(body, limit)
                # Starlette's own cache of the body, so that FastAPI finds it there.
                guarded._body = body
            else:
                guarded._body = b""
            return await inner(guarded)

        return handle


def masked(error: BaseException, *, route: str) -> InternalError:
    """What a client may see of an unexpected exception: an incident id. The exception is logged with it."""
    incident = str(new_id())
    log.error("request_failed", incident=incident, route=route, exc_info=error)
    return InternalError(InternalError.public_message, metadata={"incident": incident})


def takes_project(route: APIRoute) -> bool:
    """Whether X-Project-Id means something to a route."""
    return any(dependency.call in PROJECT_DEPENDENCIES for dependency in route.dependant.dependencies)


def new_router(prefix: str, tag: str) -> APIRouter:
    """A router of guarded routes."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=GuardedRoute,
        default_response_class=Json,
        # Operations are called as their functions are.
        generate_unique_id_function=lambda route: route.name,
    )


async def _read(request: Request, limit: int) -> bytes:
    """The body; counted as it comes, whatever Content-Length says."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message: Message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestError(
                HTTPStatus.BAD_REQUEST, "CLIENT_DISCONNECTED", "The client left before its body was read."
            )
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            text = f"The body is over the limit of {limit} bytes."
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "BODY_TOO_LARGE", text)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _media_type(request: Request, allowed: set[str]) -> str:
    offered = request.headers.getlist("content-type")
    media_type, _, parameters = (offered[0] if len(offered) == 1 else "").partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    if media_type in allowed and charset in ("", "charset=utf-8", "charset=utf8"):
        return media_type
    wanted = " or ".join(sorted(allowed))
    message = f"This path takes a body of type {wanted}, in UTF-8. Say so in one Content-Type header."
    raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message, headers={"Accept": wanted})


async def _parse(body: bytes, limit: int) -> Any:
    def parse() -> Any:
        return strict_json.loads(body, max_bytes=limit, max_values=_MAX_VALUES)

    try:
        return await asyncio.to_thread(parse) if len(body) > _LARGE else parse()
    except InvalidArgumentError as error:
        if error.violations and error.violations[0].code == "INVALID_JSON":
            error.reason = "INVALID_JSON"
        raise


def _refuse_nul(path: str, query: bytes) -> None:
    """No text in PostgreSQL holds NUL, so nothing is found by it."""
    if "\x00" in path:
        raise RequestError(HTTPStatus.NOT_FOUND, "NOT_FOUND", "There is nothing whose name holds a NUL character.")
    if b"%00" in query or b"\x00" in query:
        raise InvalidArgumentError(
            "Query parameters must not hold the NUL character.",
            violations=(Violation("NUL_CHARACTER", "holds the NUL character", "query"),),
        )
