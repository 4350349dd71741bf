"""Credentials: secrets of a project that nodes name, kept encrypted. Whoever may call is settled before."""

import hmac
from typing import Any
from uuid import UUID

import orjson
import structlog

from services.auth.domain import envelope
from services.auth.domain.credential_types import MAX_DATA_BYTES, checked_data
from services.auth.domain.envelope import KeyRing
from services.auth.domain.model import Credential, Place, SealedCredential
from services.auth.domain.names import checked_name
from services.auth.domain.store import Secrets, Store
from services.kit import strict_json
from services.kit.errors import ConflictError, InvalidArgumentError, NotFoundError, RevisionMismatchError
from services.kit.ids import id_for_create, request_hash, require_same_request

log = structlog.get_logger(__name__)

_BATCH = 100


class Credentials:
    """The use cases about credentials."""

    def __init__(self, store: Store, *, ring: KeyRing, hash_key: bytes) -> None:
        """`hash_key` keys the hashes of create calls: a plain hash of a short password could be guessed."""
        self._store = store
        self._ring = ring
        self._hash_key = hash_key

    async def create(self, project_id: UUID, *, name: str, kind: str, data: bytes, request_id: str) -> Credential:
        """Store a secret; `data` is JSON text. The same again for the same request id.

        Raises InvalidArgumentError (INVALID_CREDENTIAL_DATA), AlreadyExistsError (CREDENTIAL_EXISTS), NotFoundError
        (PROJECT_NOT_FOUND).
        """
        name = checked_name(name)
        content = orjson.dumps(checked_data(kind, _parsed(data)), option=orjson.OPT_SORT_KEYS)
        credential_id = id_for_create(project_id, "credential", request_id)
        request = hmac.digest(self._hash_key, request_hash(name, kind, content), "sha256")
        async with self._store.transaction() as transaction:
            key = await self._data_key(transaction, project_id)
            stored = await transaction.insert_credential(
                credential_id=credential_id,
                project_id=project_id,
                name=name,
                kind=kind,
                ciphertext=envelope.seal(key, content, project_id=project_id, credential_id=credential_id, version=1),
                request_hash=request if request_id else None,
            )
            if stored is not None:
                return stored
            earlier = await transaction.credential(project_id, credential_id)
        if earlier is None:
            raise ConflictError("The credential was deleted at the same time. Try again.")
        require_same_request(earlier.request_hash, request)
        return earlier.credential

    async def page(self, project_id: UUID, *, after: Place | None, limit: int) -> list[Credential]:
        """A project's credentials without their data, newest first."""
        async with self._store.transaction() as transaction:
            return await transaction.credentials(project_id, after=after, limit=limit)

    async def update(
        self, project_id: UUID, credential_id: UUID, *, name: str | None, data: bytes, revision: int
    ) -> Credential:
        """Replace what is given ("" = the data stays).

        Raises NotFoundError (CREDENTIAL_NOT_FOUND), RevisionMismatchError, InvalidArgumentError, AlreadyExistsError.
        """
        async with self._store.transaction() as transaction:
            present = await transaction.credential(project_id, credential_id, lock=True)
            present = _expected(present, str(credential_id), revision)
            credential = present.credential
            if name is None and not data:
                return credential
            ciphertext, version = present.ciphertext, present.data_version
            if data:
                content = orjson.dumps(checked_data(credential.type, _parsed(data)), option=orjson.OPT_SORT_KEYS)
                version += 1
                key = await self._data_key(transaction, project_id)
                ciphertext = envelope.seal(
                    key, content, project_id=project_id, credential_id=credential_id, version=version
                )
            return await transaction.update_credential(
                project_id,
                credential_id,
                name=credential.name if name is None else checked_name(name),
                ciphertext=ciphertext,
                data_version=version,
            )

    async def delete(self, project_id: UUID, credential_id: UUID, *, revision: int) -> None:
        """Delete a credential. Raises NotFoundError (CREDENTIAL_NOT_FOUND), RevisionMismatchError."""
        async with self._store.transaction() as transaction:
            present = await transaction.credential(project_id, credential_id, lock=True)
            _expected(present, str(credential_id), revision)
            await transaction.delete_credential(project_id, credential_id)

    async def resolve(self, project_id: UUID, name: str) -> tuple[str, bytes]:
        """Type and decrypted data (JSON text) of the credential of this name. Raises CREDENTIAL_NOT_FOUND."""
        async with self._store.transaction() as transaction:
            sealed = _expected(await transaction.credential_by_name(project_id, name), name)
            key = await self._data_key(transaction, project_id)
        credential = sealed.credential
        log.info("credential_resolved", project_id=str(project_id), credential_id=str(credential.id))
        return credential.type, envelope.unseal(
            key,
            sealed.ciphertext,
            project_id=project_id,
            credential_id=credential.id,
            version=sealed.data_version,
        )

    async def rewrap_all(self) -> int:
        """Wrap the data keys of all projects by the present key; how many were not. Safe beside running services."""
        done = 0
        while True:
            async with self._store.transaction() as transaction:
                found = await transaction.projects_wrapped_otherwise(self._ring.present, limit=_BATCH)
                for project_id in found:
                    await self._data_key(transaction, project_id)
            done += len(found)
            if len(found) < _BATCH:
                return done

    async def _data_key(self, transaction: Secrets, project_id: UUID) -> bytes:
        """The project's data key, made when there is none, wrapped anew when an earlier key wrapped it."""
        wrapped = await transaction.data_key(project_id)
        if wrapped is None:
            _, fresh = self._ring.make(project_id)
            wrapped = await transaction.insert_data_key(project_id, fresh)
        key = self._ring.unwrap(project_id, wrapped)
        if self._ring.is_outdated(wrapped):
            await transaction.rewrap_data_key(project_id, seen=wrapped, new=self._ring.wrap(project_id, key))
        return key


def _parsed(data: bytes) -> Any:
    if not data:
        return None
    try:
        return strict_json.loads(data, max_bytes=MAX_DATA_BYTES)
    except InvalidArgumentError as error:
        error.reason = "INVALID_CREDENTIAL_DATA"
        raise


def _expected(sealed: SealedCredential | None, name: str, revision: int = 0) -> SealedCredential:
    if sealed is None:
        raise NotFoundError(f"There is no credential {name[:128]!r} in the project.", reason="CREDENTIAL_NOT_FOUND")
    if revision and revision != sealed.credential.revision:
        raise RevisionMismatchError(expected=revision, actual=sealed.credential.revision)
    return sealed
