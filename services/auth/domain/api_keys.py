"""API keys: long-lived secrets that act for a user in one project.

A secret is `hr_` and an HMAC over the key's id and a random seed, under a key that is not in the database. So a
repeated create call can answer with the same secret although only the seed and a hash are stored.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import structlog

from services.auth.domain.model import ApiKey, KeyHolder, NewApiKey, Place, Role
from services.auth.domain.names import name_violations, refuse_violations
from services.auth.domain.projects import require_role
from services.auth.domain.store import Store
from services.kit.errors import NotFoundError, UnauthenticatedError, Violation
from services.kit.ids import id_for_create, request_hash, require_same_request

log = structlog.get_logger(__name__)

SCOPES = ("read", "write")
_PREFIX = "hr_"
_SHOWN_CHARACTERS = 10
# `hr_` and 32 bytes in base64url without padding.
_SECRET_CHARACTERS = 46


class ApiKeys:
    """The use cases about API keys."""

    def __init__(self, store: Store, *, key: bytes) -> None:
        self._store = store
        self._key = key

    async def create(
        self,
        user_id: UUID,
        project_id: UUID,
        *,
        name: str,
        scopes: Sequence[str],
        expires_at: datetime | None,
        request_id: str,
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it and its secret, the same for the same request id. Needs an admin of the project."""
        name, scopes = name.strip(), tuple(sorted(set(scopes)))
        refuse_violations(_violations(name, scopes, expires_at))
        key_id = id_for_create(f"{project_id}/{user_id}", "api_key", request_id)
        request = request_hash(name, ",".join(scopes), expires_at.isoformat() if expires_at else "")
        seed = os.urandom(16)
        secret = self._secret(key_id, seed)
        new = NewApiKey(
            id=key_id,
            project_id=project_id,
            user_id=user_id,
            name=name,
            prefix=secret[:_SHOWN_CHARACTERS],
            seed=seed,
            secret_hash=_hash(secret),
            scopes=scopes,
            expires_at=expires_at,
            request_hash=request if request_id else None,
        )
        async with self._store.transaction() as transaction:
            await require_role(transaction, user_id, project_id, Role.ADMIN)
            stored = await transaction.insert_api_key(new)
            if stored is not None:
                return stored, secret
            earlier = await transaction.api_key(project_id, user_id, key_id)
        if earlier is None:  # deleted at this moment
            raise _not_found(key_id)
        require_same_request(earlier.request_hash, request)
        return earlier, self._secret(key_id, earlier.seed)

    async def page(self, user_id: UUID, project_id: UUID, *, after: Place | None, limit: int) -> list[ApiKey]:
        """The user's keys in a project, newest first. Needs a member."""
        async with self._store.transaction() as transaction:
            await require_role(transaction, user_id, project_id, Role.VIEWER)
            return await transaction.api_keys(project_id, user_id, after=after, limit=limit)

    async def delete(self, user_id: UUID, project_id: UUID, key_id: UUID) -> None:
        """Delete one of the user's keys; it stops working at once. Raises NotFoundError (API_KEY_NOT_FOUND)."""
        async with self._store.transaction() as transaction:
            await require_role(transaction, user_id, project_id, Role.VIEWER)
            if not await transaction.delete_api_key(project_id, user_id, key_id):
                raise _not_found(key_id)

    async def verify(self, secret: str) -> KeyHolder:
        """Whom a secret stands for. Raises UnauthenticatedError (INVALID_API_KEY) whatever is wrong with it."""
        holder = None
        if len(secret) == _SECRET_CHARACTERS and secret.startswith(_PREFIX):
            async with self._store.transaction() as transaction:
                holder = await transaction.key_holder(_hash(secret))
        if holder is None:
            raise UnauthenticatedError("The API key is not valid.", reason="INVALID_API_KEY")
        return holder

    def _secret(self, key_id: UUID, seed: bytes) -> str:
        random = hmac.digest(self._key, key_id.bytes + seed, "sha256")
        return _PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def _hash(secret: str) -> bytes:
    # 256 random bits need no slow hash.
    return hashlib.sha256(secret.encode()).digest()


def _violations(name: str, scopes: Sequence[str], expires_at: datetime | None) -> list[Violation]:
    violations = name_violations(name)
    violations += [
        Violation("UNKNOWN_SCOPE", f"must be one of {', '.join(SCOPES)}, not {scope[:32]!r}", "scopes")
        for scope in scopes
        if scope not in SCOPES
    ]
    if expires_at is not None and expires_at <= datetime.now(UTC):
        violations.append(Violation("IN_THE_PAST", "must be in the future", "expires_at"))
    return violations


def _not_found(key_id: UUID) -> NotFoundError:
    return NotFoundError(f"There is no API key with the id {key_id}.", reason="API_KEY_NOT_FOUND")
