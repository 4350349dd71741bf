"""Rows of API keys, data keys and credentials."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from services.auth.domain.model import (
    ApiKey,
    Credential,
    KeyHolder,
    NewApiKey,
    Place,
    Role,
    SealedCredential,
    WrappedKey,
)
from services.auth.storage.rows import Rows, newest_first
from services.auth.storage.tables import api_keys, credentials, data_keys, memberships
from services.kit.errors import AlreadyExistsError, NotFoundError
from services.kit.postgres import constraint_of

_LAST_USED_ACCURACY = timedelta(minutes=1)
_WITHOUT_DATA = [column for column in credentials.c if column.name != "ciphertext"]


class SecretRows(Rows):
    """API keys and credentials."""

    async def insert_api_key(self, key: NewApiKey) -> ApiKey | None:
        statement = (
            insert(api_keys)
            .values(
                id=key.id,
                project_id=key.project_id,
                user_id=key.user_id,
                name=key.name,
                prefix=key.prefix,
                seed=key.seed,
                secret_hash=key.secret_hash,
                scopes=list(key.scopes),
                request_hash=key.request_hash,
                expires_at=key.expires_at,
            )
            .on_conflict_do_nothing()
            .returning(api_keys)
        )
        row = (await self._connection.execute(statement)).one_or_none()
        return _api_key(row) if row else None

    async def api_key(self, project_id: UUID, user_id: UUID, key_id: UUID) -> ApiKey | None:
        statement = select(api_keys).where(_owned(project_id, user_id), api_keys.c.id == key_id)
        row = (await self._connection.execute(statement)).one_or_none()
        return _api_key(row) if row else None

    async def api_keys(self, project_id: UUID, user_id: UUID, *, after: Place | None, limit: int) -> list[ApiKey]:
        query = select(api_keys).where(_owned(project_id, user_id))
        page = newest_first(query, api_keys.c.created_at, api_keys.c.id, after=after, limit=limit)
        return [_api_key(row) for row in await self._connection.execute(page)]

    async def delete_api_key(self, project_id: UUID, user_id: UUID, key_id: UUID) -> bool:
        statement = delete(api_keys).where(_owned(project_id, user_id), api_keys.c.id == key_id)
        return (await self._connection.execute(statement)).rowcount == 1

    async def key_holder(self, secret_hash: bytes) -> KeyHolder | None:
        used = api_keys.c.last_used_at
        is_due = or_(used.is_(None), used < func.now() - _LAST_USED_ACCURACY)
        statement = (
            select(api_keys, memberships.c.role, is_due.label("is_due"))
            .join(
                memberships,
                and_(memberships.c.project_id == api_keys.c.project_id, memberships.c.user_id == api_keys.c.user_id),
            )
            .where(
                api_keys.c.secret_hash == secret_hash,
                or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > func.now()),
            )
        )
        row = (await self._connection.execute(statement)).one_or_none()
        if row is None:
            return None
        if row.is_due:
            mine = and_(_owned(row.project_id, row.user_id), api_keys.c.id == row.id)
            await self._connection.execute(update(api_keys).where(mine, is_due).values(last_used_at=func.now()))
        return KeyHolder(key=_api_key(row), role=Role(row.role))

    async def data_key(self, project_id: UUID) -> WrappedKey | None:
        statement = select(data_keys).where(data_keys.c.project_id == project_id)
        row = (await self._connection.execute(statement)).one_or_none()
        return WrappedKey(row.wrapped_by, row.wrapped_key) if row else None

    async def projects_wrapped_otherwise(self, present: str, *, limit: int) -> list[UUID]:
        statement = select(data_keys.c.project_id).where(data_keys.c.wrapped_by != present).limit(limit)
        return list((await self._connection.scalars(statement)).all())

    async def insert_data_key(self, project_id: UUID, key: WrappedKey) -> WrappedKey:
        statement = (
            insert(data_keys)
            .values(project_id=project_id, wrapped_by=key.wrapped_by, wrapped_key=key.wrapped_key)
            .on_conflict_do_nothing()
        )
        try:
            await self._connection.execute(statement)
        except IntegrityError as error:
            if constraint_of(error) != "data_keys_project_id_fkey":
                raise
            raise NotFoundError(f"There is no project with the id {project_id}.", reason="PROJECT_NOT_FOUND") from error
        stored = await self.data_key(project_id)
        if stored is None:
            raise NotFoundError(f"There is no project with the id {project_id}.", reason="PROJECT_NOT_FOUND")
        return stored

    async def rewrap_data_key(self, project_id: UUID, *, seen: WrappedKey, new: WrappedKey) -> None:
        statement = (
            update(data_keys)
            .where(data_keys.c.project_id == project_id, data_keys.c.wrapped_key == seen.wrapped_key)
            .values(wrapped_by=new.wrapped_by, wrapped_key=new.wrapped_key)
        )
        await self._connection.execute(statement)

    async def insert_credential(
        self,
        *,
        credential_id: UUID,
        project_id: UUID,
        name: str,
        kind: str,
        ciphertext: bytes,
        request_hash: bytes | None,
    ) -> Credential | None:
        statement = (
            insert(credentials)
            .values(
                id=credential_id,
                project_id=project_id,
                name=name,
                type=kind,
                ciphertext=ciphertext,
                request_hash=request_hash,
            )
            .on_conflict_do_nothing()
            .returning(*_WITHOUT_DATA)
        )
        row = (await self._connection.execute(statement)).one_or_none()
        if row is not None:
            return _credential(row)
        if await self.credential(project_id, credential_id) is None:
            raise _name_taken(name)
        return None

    async def credential(self, project_id: UUID, credential_id: UUID, *, lock: bool = False) -> SealedCredential | None:
        statement = select(credentials).where(_is_credential(project_id, credential_id))
        if lock:
            statement = statement.with_for_update()
        row = (await self._connection.execute(statement)).one_or_none()
        return _sealed(row) if row else None

    async def credential_by_name(self, project_id: UUID, name: str) -> SealedCredential | None:
        statement = select(credentials).where(credentials.c.project_id == project_id, credentials.c.name == name)
        row = (await self._connection.execute(statement)).one_or_none()
        return _sealed(row) if row else None

    async def credentials(self, project_id: UUID, *, after: Place | None, limit: int) -> list[Credential]:
        query = select(*_WITHOUT_DATA).where(credentials.c.project_id == project_id)
        page = newest_first(query, credentials.c.created_at, credentials.c.id, after=after, limit=limit)
        return [_credential(row) for row in await self._connection.execute(page)]

    async def update_credential(
        self, project_id: UUID, credential_id: UUID, *, name: str, ciphertext: bytes, data_version: int
    ) -> Credential:
        statement = (
            update(credentials)
            .where(_is_credential(project_id, credential_id))
            .values(
                name=name,
                ciphertext=ciphertext,
                data_version=data_version,
                updated_at=func.now(),
                revision=credentials.c.revision + 1,
            )
            .returning(*_WITHOUT_DATA)
        )
        try:
            row = (await self._connection.execute(statement)).one()
        except IntegrityError as error:
            if constraint_of(error) != "credentials_project_id_name_key":
                raise
            raise _name_taken(name) from error
        return _credential(row)

    async def delete_credential(self, project_id: UUID, credential_id: UUID) -> None:
        await self._connection.execute(delete(credentials).where(_is_credential(project_id, credential_id)))


def _owned(project_id: UUID, user_id: UUID) -> Any:
    return and_(api_keys.c.project_id == project_id, api_keys.c.user_id == user_id)


def _is_credential(project_id: UUID, credential_id: UUID) -> Any:
    return and_(credentials.c.project_id == project_id, credentials.c.id == credential_id)


def _name_taken(name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"There is a credential named {name!r} in the project already. Choose another name, or change that one.",
        reason="CREDENTIAL_EXISTS",
    )


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        project_id=row.project_id,
        user_id=row.user_id,
        name=row.name,
        prefix=row.prefix,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        seed=row.seed,
        request_hash=row.request_hash,
    )


def _credential(row: Row[Any]) -> Credential:
    return Credential(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        type=row.type,
        created_at=row.created_at,
        updated_at=row.updated_at,
        revision=row.revision,
    )


def _sealed(row: Row[Any]) -> SealedCredential:
    return SealedCredential(
        credential=_credential(row),
        ciphertext=row.ciphertext,
        data_version=row.data_version,
        request_hash=row.request_hash,
    )
