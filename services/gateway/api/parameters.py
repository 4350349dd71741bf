"""Parameters that many endpoints share: the caller and the project, ids, pages, revisions, idempotency keys."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query
from pydantic import AfterValidator
from starlette.requests import Request

from services.gateway.clients import Clients
from services.gateway.identity import Access, Principal, Role
from services.gateway.routing import GATEWAY, PRINCIPAL, PROJECT_DEPENDENCIES, Gateway
from services.gateway.schemas.common import INT32_MAX, INT64_MAX
from services.kit import strict_json
from services.kit.errors import PermissionDeniedError, RevisionMismatchError
from services.kit.ids import parse_id

_MAX_FILTER_LENGTH = 4096


def gateway_of(request: Request) -> Gateway:
    """What the endpoints work with."""
    gateway: Gateway = request.scope[GATEWAY]
    return gateway


def clients_of(request: Request) -> Clients:
    """The services."""
    return gateway_of(request).clients


async def principal(request: Request) -> Principal:
    """The verified caller."""
    verified: Principal = request.scope[PRINCIPAL]
    return verified


async def account_holder(request: Request) -> Principal:
    """The verified caller, with a login of their own: a key must not make keys or change the account."""
    verified = await principal(request)
    if verified.is_api_key:
        raise PermissionDeniedError("This needs an access token; an API key is not enough.", reason="LOGIN_REQUIRED")
    return verified


def _access(at_least: Role) -> Any:
    async def enter(request: Request) -> Access:
        scope = request.scope
        # Read by hand, as every request passes here; `openapi` describes the header.
        named = [value for name, value in scope["headers"] if name == b"x-project-id"]
        project_id = ",".join(value.decode("latin-1") for value in named) if named else None
        return await gateway_of(request).identity.enter(scope[PRINCIPAL], project_id, at_least)

    PROJECT_DEPENDENCIES.add(enter)
    return Depends(enter)


Caller = Annotated[Principal, Depends(principal)]
AccountHolder = Annotated[Principal, Depends(account_holder)]
Viewer = Annotated[Access, _access(Role.VIEWER)]
"""A caller who may read in the project."""
Editor = Annotated[Access, _access(Role.EDITOR)]
"""A caller who may write workflows, runs, collections and tables."""
Admin = Annotated[Access, _access(Role.ADMIN)]
"""A caller who may manage credentials, keys and members."""


def _id_of(resource: str) -> Callable[[str], str]:
    # NotFoundError passes through Pydantic: a malformed id names nothing, and is answered 404 as any other.
    return lambda text: str(parse_id(text, resource=resource))


_UUID = {"format": "uuid"}
WorkflowId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("workflow"))]
NodeId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("node"))]
EdgeId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("edge"))]
RunId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("run"))]
ApiKeyId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("api_key"))]
CredentialId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("credential"))]
ProjectId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("project"))]
UserId = Annotated[str, Path(json_schema_extra=_UUID), AfterValidator(_id_of("user"))]

PageSize = Annotated[int, Query(ge=0, le=INT32_MAX, description="At most 200 are given; 0 = 50.")]
PageToken = Annotated[str, Query(max_length=1024, description="From `next_page_token` of the page before.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeat the request with the same key and body, and it happens once.",
        examples=["3f1c8c1e-6c0e-4d0b-9f5a-0c1a4b1a2d3e"],
    ),
]
FilterText = Annotated[
    str | None,
    Query(
        alias="filter",
        max_length=_MAX_FILTER_LENGTH,
        description='JSON, such as {"field": "lang", "op": "eq", "value": "de"}.',
        examples=['{"field": "lang", "op": "eq", "value": "de"}'],
    ),
]


async def _expected_revision(
    if_match: Annotated[
        str | None,
        Header(alias="If-Match", description="The revision that you have read; stale = 412.", examples=["3"]),
    ] = None,
) -> int:
    if if_match is None or if_match.strip() == "*":
        return 0
    text = if_match.strip().removeprefix("W/").strip('"')
    # A tag that we never gave matches nothing (RFC 9110 §13.1.1). 0 would mean "any" further on.
    if text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= INT64_MAX:
        return int(text)
    raise RevisionMismatchError("If-Match holds no revision of this. Read it again and give its `revision`.")


ExpectedRevision = Annotated[int, Depends(_expected_revision)]
"""Revision in If-Match; 0 = any."""


def etag(revision: int) -> dict[str, str]:
    """The header that names a revision."""
    return {"ETag": f'"{revision}"'}


def filter_bytes(text: str | None) -> bytes | None:
    """A filter from the query, checked to be JSON. Raises InvalidArgumentError."""
    if text is None:
        return None
    strict_json.loads(text.encode(errors="replace"), max_bytes=_MAX_FILTER_LENGTH * 4)
    return text.encode()
