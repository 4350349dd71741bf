"""Who calls, and what the caller may do in which project. Project and user come from here alone, never from a body."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from headrace.auth.v1 import auth_pb2, auth_service_pb2

from services.gateway.access_tokens import AccessTokens
from services.gateway.cache import AnswerCache
from services.gateway.clients import Clients
from services.kit.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from services.kit.ids import parse_id

_API_KEY_SECONDS = 10.0
"""A revoked key stops working after this time at the latest."""
_REFUSED_KEY_SECONDS = 1.0
_ROLE_SECONDS = 5.0
"""A changed role counts after this time at the latest."""
_MAX_API_KEY_LENGTH = 256
_API_KEY_PREFIX = "hr_"


class Role(IntEnum):
    """What a member may do; each includes the ones below. Numbers as in the contract."""

    VIEWER = auth_pb2.ROLE_VIEWER
    EDITOR = auth_pb2.ROLE_EDITOR
    ADMIN = auth_pb2.ROLE_ADMIN
    OWNER = auth_pb2.ROLE_OWNER


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller: a user, by an access token or by an API key of theirs."""

    user_id: str
    home_project_id: str
    """The personal project, or the one that the key is bound to."""
    home_role: Role
    """In the home project; for a key, what its scopes leave of its owner's role."""
    is_api_key: bool


@dataclass(frozen=True, slots=True)
class Access:
    """A caller in a project."""

    user_id: str
    project_id: str
    role: Role


class Identity:
    """Authenticates requests and admits callers to projects."""

    def __init__(self, tokens: AccessTokens, clients: Clients) -> None:
        self._tokens = tokens
        self._clients = clients
        self._api_keys: AnswerCache[bytes, tuple[Principal, float]] = AnswerCache(
            seconds=_API_KEY_SECONDS, error_seconds=_REFUSED_KEY_SECONDS
        )
        self._roles: AnswerCache[tuple[str, str], Role] = AnswerCache(seconds=_ROLE_SECONDS)

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """The caller behind a request's headers. Raises UnauthenticatedError; UnavailableError when auth is needed.

        `Authorization: Bearer` takes an access token, or an API key as OpenAI's clients send theirs.
        """
        offered = [(name, value) for name, value in headers if name in (b"authorization", b"x-api-key")]
        if not offered:
            raise UnauthenticatedError("Send `Authorization: Bearer <access token>` or `X-API-Key: hr_…`.")
        if len(offered) > 1:
            raise UnauthenticatedError("Send one credential, not several.")
        name, value = offered[0]
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            return await self._api_key(text)
        scheme, _, token = text.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthenticatedError("Use `Authorization: Bearer <access token>`.")
        token = token.strip()
        if token.startswith(_API_KEY_PREFIX):
            return await self._api_key(token)
        claims = await self._tokens.verify(token)
        return Principal(claims.user_id, claims.personal_project_id, Role.OWNER, is_api_key=False)

    async def enter(self, principal: Principal, project_id: str | None, at_least: Role) -> Access:
        """Admit a caller to a project, the home project when None.

        Raises NotFoundError when the project is not the caller's, PermissionDeniedError when the role does not reach.
        """
        wanted = principal.home_project_id
        if project_id is not None:
            wanted = str(parse_id(project_id, resource="project"))
        if wanted == principal.home_project_id:
            role = principal.home_role
        elif principal.is_api_key:
            raise project_not_found()
        else:
            role = await self._role(principal.user_id, wanted)
        if role < at_least:
            raise PermissionDeniedError(
                f"This needs the role {at_least.name.lower()} in the project; yours, or what the API key's scopes "
                f"leave of it, is {role.name.lower()}.",
                reason="ROLE_TOO_LOW",
            )
        return Access(principal.user_id, wanted, role)

    def forget_role(self, user_id: str, project_id: str) -> None:
        """Ask auth anew for a user's role: it was changed through this gateway."""
        self._roles.forget((user_id, project_id))

    async def _role(self, user_id: str, project_id: str) -> Role:
        async def ask() -> Role:
            request = auth_service_pb2.GetProjectRequest(user_id=user_id, project_id=project_id)
            reply = await self._clients.call(self._clients.auth.GetProject, request)
            return _role(reply.project.role)

        return await self._roles.get((user_id, project_id), ask)

    async def _api_key(self, secret: str) -> Principal:
        if not secret.startswith(_API_KEY_PREFIX) or len(secret) > _MAX_API_KEY_LENGTH or not secret.isascii():
            raise _invalid_api_key()

        async def ask() -> tuple[Principal, float]:
            request = auth_service_pb2.VerifyApiKeyRequest(secret=secret)
            return _principal(await self._clients.call(self._clients.auth.VerifyApiKey, request))

        # The secret itself is not kept.
        digest = hashlib.sha256(secret.encode()).digest()
        try:
            principal, expires_at = await self._api_keys.get(digest, ask)
        except (InvalidArgumentError, NotFoundError) as error:
            raise _invalid_api_key() from error
        if expires_at and expires_at <= time.time():
            raise _invalid_api_key()
        return principal


def _principal(reply: auth_service_pb2.VerifyApiKeyResponse) -> tuple[Principal, float]:
    role = _role(reply.role)
    if reply.scopes:
        # Unknown scopes allow nothing beyond reading.
        role = min(role, Role.EDITOR if "write" in reply.scopes else Role.VIEWER)
    expires_at = reply.expires_at.seconds if reply.HasField("expires_at") else 0
    return Principal(reply.user_id, reply.project_id, role, is_api_key=True), float(expires_at)


def _role(number: int) -> Role:
    try:
        return Role(number)
    except ValueError:
        raise project_not_found() from None


def project_not_found() -> NotFoundError:
    """What callers are told of projects that are not theirs."""
    return NotFoundError("There is no such project for you.", reason="PROJECT_NOT_FOUND")


def _invalid_api_key() -> UnauthenticatedError:
    return UnauthenticatedError("The API key is unknown, expired or revoked.", reason="INVALID_API_KEY")
