"""Rows of projects and memberships."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from services.auth.domain.model import Member, Place, Project, Role
from services.auth.storage.rows import Rows, newest_first, oldest_first
from services.auth.storage.tables import api_keys, memberships, projects, users


class ProjectRows(Rows):
    """Projects as their members see them, and the members."""

    async def insert_project(
        self, *, project_id: UUID, user_id: UUID, name: str, request_hash: bytes | None
    ) -> Project | None:
        statement = (
            insert(projects)
            .values(id=project_id, name=name, request_hash=request_hash)
            .on_conflict_do_nothing()
            .returning(projects)
        )
        row = (await self._connection.execute(statement)).one_or_none()
        if row is None:
            return None
        owner = insert(memberships).values(project_id=project_id, user_id=user_id, role=int(Role.OWNER))
        await self._connection.execute(owner)
        return _project(row, Role.OWNER)

    async def project(self, user_id: UUID, project_id: UUID, *, lock: bool = False) -> Project | None:
        if lock:
            # A statement of its own: the next one then sees the memberships as they are once the lock is held.
            await self._connection.execute(select(projects.c.id).where(projects.c.id == project_id).with_for_update())
        row = (await self._connection.execute(_seen_by(user_id).where(projects.c.id == project_id))).one_or_none()
        return _project(row, Role(row.role)) if row else None

    async def projects(self, user_id: UUID, *, after: Place | None, limit: int) -> list[Project]:
        page = newest_first(_seen_by(user_id), projects.c.created_at, projects.c.id, after=after, limit=limit)
        return [_project(row, Role(row.role)) for row in await self._connection.execute(page)]

    async def rename_project(self, project_id: UUID, name: str) -> None:
        statement = update(projects).where(projects.c.id == project_id)
        await self._connection.execute(statement.values(name=name, revision=projects.c.revision + 1))

    async def delete_project(self, project_id: UUID) -> None:
        await self._connection.execute(delete(projects).where(projects.c.id == project_id))

    async def members(self, project_id: UUID, *, after: Place | None, limit: int) -> list[Member]:
        page = oldest_first(
            _members_of(project_id), memberships.c.created_at, memberships.c.user_id, after=after, limit=limit
        )
        return [_member(row) for row in await self._connection.execute(page)]

    async def member(self, project_id: UUID, user_id: UUID) -> Member | None:
        statement = _members_of(project_id).where(memberships.c.user_id == user_id)
        row = (await self._connection.execute(statement)).one_or_none()
        return _member(row) if row else None

    async def count_owners(self, project_id: UUID) -> int:
        statement = (
            select(func.count())
            .select_from(memberships)
            .where(memberships.c.project_id == project_id, memberships.c.role == int(Role.OWNER))
        )
        return int((await self._connection.execute(statement)).scalar_one())

    async def put_member(self, project_id: UUID, user_id: UUID, role: Role) -> bool:
        known = select(literal(project_id), users.c.id, literal(int(role))).where(users.c.id == user_id)
        statement = insert(memberships).from_select(["project_id", "user_id", "role"], known)
        statement = statement.on_conflict_do_update(
            index_elements=[memberships.c.project_id, memberships.c.user_id], set_={"role": statement.excluded.role}
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def delete_member(self, project_id: UUID, user_id: UUID) -> None:
        for table in (api_keys, memberships):
            await self._connection.execute(
                delete(table).where(table.c.project_id == project_id, table.c.user_id == user_id)
            )


def _seen_by(user_id: UUID) -> Select[Any]:
    return (
        select(projects, memberships.c.role)
        .join(memberships, memberships.c.project_id == projects.c.id)
        .where(memberships.c.user_id == user_id)
    )


def _members_of(project_id: UUID) -> Select[Any]:
    return (
        select(memberships.c.user_id, users.c.email, users.c.name, memberships.c.role, memberships.c.created_at)
        .join(users, users.c.id == memberships.c.user_id)
        .where(memberships.c.project_id == project_id)
    )


def _project(row: Row[Any], role: Role) -> Project:
    return Project(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        revision=row.revision,
        role=role,
        personal_user_id=row.personal_user_id,
        request_hash=row.request_hash,
    )


def _member(row: Row[Any]) -> Member:
    return Member(user_id=row.user_id, email=row.email, name=row.name, role=Role(row.role), created_at=row.created_at)
