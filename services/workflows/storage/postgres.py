"""The store on PostgreSQL: SQLAlchemy Core, and prepared statements for what every start of a run asks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import func, literal, null, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.kit.pool import Connection, Pool
from services.kit.postgres import constraint_of, is_connection_loss, lost_connection, transaction
from services.workflows.domain.model import (
    Draft,
    Selector,
    Version,
    Workflow,
    WorkflowNameTakenError,
    WorkflowNotFoundError,
)
from services.workflows.domain.store import ListPlace, NewVersion, NewWorkflow
from services.workflows.storage.tables import element_requests, workflow_versions, workflows

_NAME_KEY = "workflows_project_id_name_key"
_WORKFLOW: tuple[Any, ...] = (
    workflows.c.id,
    workflows.c.project_id,
    workflows.c.name,
    workflows.c.description,
    workflows.c.revision,
    workflows.c.latest_version,
    workflows.c.created_at,
    workflows.c.updated_at,
)
_VERSION: tuple[Any, ...] = tuple(column for column in workflow_versions.c if column.name != "definition")

_VERSION_COLUMNS = "v.id, v.workflow_id, v.project_id, v.number, v.content_hash, v.workflow_name, v.note, v.created_at"
_RESOLVE = {
    selector: f"""
        SELECT {_VERSION_COLUMNS} FROM workflows.workflows w LEFT JOIN workflows.workflow_versions v ON {condition}
         WHERE w.id = $1 AND w.project_id = $2 AND w.deleted_at IS NULL
        """  # noqa: S608 - built from the constants here
    for selector, condition in (
        (Selector.NUMBER, "v.workflow_id = w.id AND v.number = $3"),
        (Selector.LATEST, "v.id = w.latest_version_id"),
        (Selector.DRAFT, "v.id = w.draft_version_id"),
        (Selector.NEWEST, "v.id = coalesce(w.latest_version_id, w.draft_version_id)"),
    )
}
_FIND_WORKFLOW = "SELECT id FROM workflows.workflows WHERE project_id = $1 AND name = $2 AND deleted_at IS NULL"
_GET_DRAFT = """
    SELECT id, project_id, name, description, revision, latest_version, created_at, updated_at, draft
      FROM workflows.workflows WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL
    """
_GET_VERSION = f"""
    SELECT {_VERSION_COLUMNS}, v.definition FROM workflows.workflow_versions v WHERE v.id = $1 AND v.project_id = $2
    """  # noqa: S608 - built from the constants here
# A workflow that is being changed is passed over: its change waits for the leases that there are, not for further ones.
_LEASE = """
    UPDATE workflows.workflows SET leased_until = clock_timestamp() + make_interval(secs => $3)
     WHERE id = (
        SELECT id FROM workflows.workflows
         WHERE id = $1 AND project_id = $2 AND deleted_at IS NULL AND latest_version > 0
           FOR NO KEY UPDATE SKIP LOCKED)
    """
_OUTLAST_LEASES = text(
    "SELECT pg_sleep(extract(epoch FROM leased_until - clock_timestamp())) FROM workflows.workflows"
    " WHERE id = :workflow_id AND leased_until > clock_timestamp()"
)
_FORGET_REQUESTS = text(
    "DELETE FROM workflows.element_requests WHERE workflow_id = :workflow_id AND created_at < now() - interval '1 day'"
)


class PostgresTransaction:
    """All rows of the schema on one connection; `domain/store.py` says what each method promises."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert_workflow(self, new: NewWorkflow) -> Workflow | None:
        statement = (
            insert(workflows)
            .values(
                id=new.id,
                project_id=new.project_id,
                name=new.name,
                description=new.description,
                draft=new.draft,
                request_hash=new.request_hash,
            )
            .on_conflict_do_nothing(index_elements=[workflows.c.id])
            .returning(*_WORKFLOW)
        )
        row = (await self._run(statement, new.name)).one_or_none()
        return _workflow(row) if row else None

    async def created_workflow(self, workflow_id: UUID) -> tuple[Draft, bytes | None] | None:
        statement = select(*_WORKFLOW, workflows.c.draft, workflows.c.request_hash).where(workflows.c.id == workflow_id)
        row = (await self._connection.execute(statement)).one_or_none()
        return (Draft(_workflow(row), row.draft), row.request_hash) if row else None

    async def get_draft(self, project_id: UUID, workflow_id: UUID, *, lock: bool = False) -> Draft:
        statement = select(*_WORKFLOW, workflows.c.draft).where(*_live(project_id, workflow_id))
        row = (await self._connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
        if row is None:
            raise WorkflowNotFoundError(workflow_id)
        return Draft(_workflow(row), row.draft)

    async def lock_workflow(self, project_id: UUID, workflow_id: UUID) -> Workflow:
        statement = select(*_WORKFLOW).where(*_live(project_id, workflow_id)).with_for_update()
        row = (await self._connection.execute(statement)).one_or_none()
        if row is None:
            raise WorkflowNotFoundError(workflow_id)
        return _workflow(row)

    async def list_workflows(
        self, project_id: UUID, *, name: str, after: ListPlace | None, limit: int
    ) -> list[Workflow]:
        order = tuple_(workflows.c.created_at, workflows.c.id)
        statement = select(*_WORKFLOW).where(workflows.c.project_id == project_id, workflows.c.deleted_at.is_(None))
        if name:
            statement = statement.where(workflows.c.name == name)
        if after is not None:
            statement = statement.where(order < tuple_(literal(after.created_at), literal(after.id)))
        statement = statement.order_by(workflows.c.created_at.desc(), workflows.c.id.desc()).limit(limit)
        return [_workflow(row) for row in await self._connection.execute(statement)]

    async def update_workflow(
        self, workflow_id: UUID, *, name: str | None = None, description: str | None = None, draft: str | None = None
    ) -> Workflow:
        changes: dict[str, Any] = {"revision": workflows.c.revision + 1, "updated_at": func.now()}
        changes |= {} if name is None else {"name": name}
        changes |= {} if description is None else {"description": description}
        changes |= {} if draft is None else {"draft": draft, "draft_version_id": null()}
        statement = update(workflows).where(workflows.c.id == workflow_id).values(changes).returning(*_WORKFLOW)
        return _workflow((await self._run(statement, name or "")).one())

    async def delete_workflow(self, workflow_id: UUID) -> None:
        await self._connection.execute(
            update(workflows).where(workflows.c.id == workflow_id).values(deleted_at=func.now())
        )

    async def outlast_leases(self, workflow_id: UUID) -> None:
        await self._connection.execute(_OUTLAST_LEASES, {"workflow_id": workflow_id})

    async def claim_request(self, request_id: UUID, workflow_id: UUID, request_hash: bytes) -> bytes | None:
        await self._connection.execute(_FORGET_REQUESTS, {"workflow_id": workflow_id})
        statement = insert(element_requests).values(id=request_id, workflow_id=workflow_id, request_hash=request_hash)
        result = await self._connection.execute(statement.on_conflict_do_nothing().returning(element_requests.c.id))
        if result.one_or_none():
            return None
        present = select(element_requests.c.request_hash).where(element_requests.c.id == request_id)
        return bytes((await self._connection.execute(present)).scalar_one())

    async def insert_version(self, new: NewVersion) -> Version:
        same = (
            workflow_versions.c.workflow_id == new.workflow_id,
            workflow_versions.c.content_hash == new.content_hash,
            workflow_versions.c.number.is_(None),
        )
        row = None
        if not new.number:
            row = (await self._connection.execute(select(*_VERSION).where(*same))).one_or_none()
        if row is None:
            values = {
                "id": new.id,
                "workflow_id": new.workflow_id,
                "project_id": new.project_id,
                "number": new.number or None,
                "content_hash": new.content_hash,
                "definition": new.definition,
                "workflow_name": new.workflow_name,
                "note": new.note,
            }
            row = (await self._connection.execute(insert(workflow_versions).values(values).returning(*_VERSION))).one()
        pointer = (
            {"latest_version": new.number, "latest_version_id": row.id} if new.number else {"draft_version_id": row.id}
        )
        await self._connection.execute(update(workflows).where(workflows.c.id == new.workflow_id).values(pointer))
        return _version(row)

    async def list_versions(self, workflow_id: UUID, *, before: int | None, limit: int) -> list[Version]:
        number = workflow_versions.c.number
        statement = select(*_VERSION).where(workflow_versions.c.workflow_id == workflow_id, number.is_not(None))
        if before is not None:
            statement = statement.where(number < before)
        rows = await self._connection.execute(statement.order_by(number.desc()).limit(limit))
        return [_version(row) for row in rows]

    async def _run(self, statement: Any, name: str) -> Any:
        try:
            return await self._connection.execute(statement)
        except IntegrityError as error:
            if constraint_of(error) == _NAME_KEY:
                raise WorkflowNameTakenError(name) from error
            raise


class PostgresStore:
    """Workflows and versions in PostgreSQL."""

    def __init__(self, engine: AsyncEngine, pool: Pool) -> None:
        self._engine = engine
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """A transaction at READ COMMITTED: each statement sees what was committed before it began."""
        async with transaction(self._engine) as connection:
            yield PostgresTransaction(connection)

    async def resolve(self, project_id: UUID, workflow_id: UUID, selector: Selector, number: int = 0) -> Version | None:
        arguments = (workflow_id, project_id, number) if selector is Selector.NUMBER else (workflow_id, project_id)
        row = await self._fetch(_RESOLVE[selector], *arguments)
        if row is None:
            raise WorkflowNotFoundError(workflow_id)
        return _version_of_record(row) if row["id"] is not None else None

    async def find_workflow(self, project_id: UUID, name: str) -> UUID | None:
        row = await self._fetch(_FIND_WORKFLOW, project_id, name)
        return row["id"] if row is not None else None

    async def get_draft(self, project_id: UUID, workflow_id: UUID) -> Draft:
        row = await self._fetch(_GET_DRAFT, workflow_id, project_id)
        if row is None:
            raise WorkflowNotFoundError(workflow_id)
        *workflow, text = row
        return Draft(Workflow(*workflow), text)

    async def lease(self, project_id: UUID, workflow_id: UUID, seconds: float) -> bool:
        async with self._connection() as connection:
            return await connection.execute(_LEASE, workflow_id, project_id, seconds) == "UPDATE 1"

    async def get_version(self, project_id: UUID, version_id: UUID) -> tuple[Version, str] | None:
        row = await self._fetch(_GET_VERSION, version_id, project_id)
        return (_version_of_record(row), row["definition"]) if row is not None else None

    async def _fetch(self, statement: str, *arguments: object) -> "asyncpg.Record | None":
        async with self._connection() as connection:
            return await connection.fetchrow(statement, *arguments)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._pool.acquire() as connection:
                yield connection
        except Exception as error:
            if is_connection_loss(error):
                raise lost_connection() from error
            raise


def _live(project_id: UUID, workflow_id: UUID) -> tuple[Any, ...]:
    return workflows.c.id == workflow_id, workflows.c.project_id == project_id, workflows.c.deleted_at.is_(None)


def _workflow(row: Any) -> Workflow:
    return Workflow(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        description=row.description,
        revision=row.revision,
        latest_version=row.latest_version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _version(row: Any) -> Version:
    return Version(
        id=row.id,
        workflow_id=row.workflow_id,
        project_id=row.project_id,
        number=row.number or 0,
        content_hash=row.content_hash,
        workflow_name=row.workflow_name,
        note=row.note,
        created_at=row.created_at,
    )


def _version_of_record(row: "asyncpg.Record") -> Version:
    return Version(
        id=row["id"],
        workflow_id=row["workflow_id"],
        project_id=row["project_id"],
        number=row["number"] or 0,
        content_hash=row["content_hash"],
        workflow_name=row["workflow_name"],
        note=row["note"],
        created_at=row["created_at"],
    )
