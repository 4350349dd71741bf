"""Projects' tables in PostgreSQL: a registry in the schema `executor`, one physical table each in `project_tables`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.executor import row_sql
from services.executor.domain.project_rows import column_not_found
from services.executor.domain.project_tables import (
    Column,
    ColumnType,
    ProjectTable,
    RowQuery,
    RowsRead,
    RowsWritten,
    TableExistsError,
    TableNotFoundError,
    WriteOperation,
    too_many_tables,
)
from services.executor.row_sql import SqlTable, UnknownColumnError, quote
from services.executor.storage.tables import metadata
from services.kit.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    DomainError,
    InvalidArgumentError,
    UnavailableError,
    Violation,
)
from services.kit.postgres import constraint_of, transaction

SCHEMA = "project_tables"
_ROW_NUMBER = "_row"
_STATEMENT_TIMEOUT = "15s"
_LOCK_TIMEOUT = "5s"
_CREATE_LOCK = 7_263_010
"""Any fixed number: first key of the advisory lock under which a project's creates take turns."""

_SQL_TYPES = {
    ColumnType.TEXT: "text",
    ColumnType.INTEGER: "bigint",
    ColumnType.NUMBER: "double precision",
    ColumnType.BOOLEAN: "boolean",
    ColumnType.TIMESTAMP: "timestamptz",
    ColumnType.JSON: "jsonb",
}

project_tables = sa.Table(
    "project_tables",
    metadata,
    sa.Column("project_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("id", sa.Uuid, nullable=False),  # names the physical table
    sa.Column("columns", JSONB, nullable=False),  # [[name, type, nullable], …]
    sa.Column("key", JSONB, nullable=False),  # [name, …]
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.PrimaryKeyConstraint("project_id", "name", name="project_tables_pkey"),
    sa.UniqueConstraint("id", name="project_tables_id_key"),
)

# Effects that have happened, with their first result. Kept as long as a run may ask for them again
# (services/executor/domain/housekeeping.py).
effects = sa.Table(
    "effects",
    metadata,
    sa.Column("project_id", sa.Uuid, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("result", sa.LargeBinary),  # null only within the transaction that makes the effect
    sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.PrimaryKeyConstraint("project_id", "key", name="effects_pkey"),
    sa.Index("effects_created_at_idx", "created_at"),
)


class PostgresProjectTableStore:
    """`ProjectTableStore` on PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["PostgresProjectTableTransaction"]:
        """A transaction with limits on time."""
        try:
            async with transaction(self._engine) as connection:
                await connection.exec_driver_sql(
                    "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)",
                    (_STATEMENT_TIMEOUT, _LOCK_TIMEOUT),
                )
                yield PostgresProjectTableTransaction(connection)
        except DBAPIError as error:
            translated = _by_state(error)
            if translated is None:
                raise
            raise translated from error


class PostgresProjectTableTransaction:
    """`ProjectTableTransaction` on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self, table: ProjectTable, content_hash: bytes, *, limit: int
    ) -> tuple[ProjectTable, bytes | None]:
        """See the Protocol."""
        project = UUID(table.project_id)
        await self._connection.exec_driver_sql(
            "SELECT pg_advisory_xact_lock($1, hashtext($2))", (_CREATE_LOCK, table.project_id)
        )
        own = project_tables.c.project_id == project
        found = await self._connection.execute(sa.select(project_tables).where(own, project_tables.c.id == table.id))
        if (row := found.one_or_none()) is not None:
            return _from_row(row), row.request_hash
        names = await self._connection.execute(sa.select(project_tables.c.name).where(own))
        taken = set(names.scalars())
        if table.name in taken:
            raise TableExistsError(f"The project has a table {table.name!r} already. Choose another name.")
        if len(taken) >= limit:
            raise too_many_tables(limit)
        made = await self._connection.execute(
            sa.insert(project_tables)
            .values(
                project_id=project,
                name=table.name,
                id=table.id,
                columns=[[column.name, column.type.value, column.nullable] for column in table.columns],
                key=list(table.key),
                request_hash=content_hash,
            )
            .returning(project_tables)
        )
        await self._connection.exec_driver_sql(_create_statement(table))
        return _from_row(made.one()), content_hash

    async def get(self, project_id: str, name: str, *, for_write: bool = False) -> ProjectTable:
        """See the Protocol."""
        query = sa.select(project_tables).where(
            project_tables.c.project_id == UUID(project_id), project_tables.c.name == name
        )
        if for_write:
            query = query.with_for_update(key_share=True, read=True)
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            raise TableNotFoundError(name)
        return _from_row(row)

    async def list(self, project_id: str, *, after_name: str, limit: int) -> list[ProjectTable]:
        """See the Protocol."""
        rows = await self._connection.execute(
            sa.select(project_tables)
            .where(project_tables.c.project_id == UUID(project_id), project_tables.c.name.collate("C") > after_name)
            .order_by(project_tables.c.name.collate("C"))
            .limit(limit)
        )
        return [_from_row(row) for row in rows]

    async def delete(self, table: ProjectTable) -> None:
        """See the Protocol."""
        await self._connection.execute(sa.delete(project_tables).where(project_tables.c.id == table.id))
        await self._connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_sql_table(table).sql}")

    async def read_rows(self, table: ProjectTable, query: RowQuery) -> RowsRead:
        """See the Protocol."""
        try:
            statement = row_sql.select_rows(
                _sql_table(table),
                columns=query.columns,
                where=query.where,
                order_by=query.order_by,
                limit=query.limit,
                offset=query.offset,
                after_row=query.after_row,
            )
        except UnknownColumnError as error:
            raise column_not_found(table, error.name, error.path) from error
        row = await self._run(table, statement)
        return RowsRead(row.rows.encode(), row.count, row.last_row)

    async def write_rows(
        self, table: ProjectTable, operation: WriteOperation, rows: Sequence[dict[str, Any]], key: Sequence[str]
    ) -> RowsWritten:
        """See the Protocol."""
        target = _sql_table(table)
        affected, texts = 0, []
        cut = [list(rows)] if operation is WriteOperation.DELETE and rows else row_sql.runs_of_same_columns(rows)
        for run in cut:
            columns = list(run[0])
            match operation:
                case WriteOperation.INSERT:
                    statement = row_sql.insert_rows(target, run, columns)
                case WriteOperation.UPSERT:
                    statement = row_sql.upsert_rows(target, run, columns, key)
                case WriteOperation.UPDATE:
                    statement = row_sql.update_rows(target, run, columns, key)
                case WriteOperation.DELETE:
                    statement = row_sql.delete_rows(target, run, key)
            row = await self._run(table, statement)
            affected += row.affected
            texts.append(row.rows)
        return RowsWritten(affected, row_sql.joined_arrays(texts).encode())

    async def begin_effect(self, project_id: str, effect_key: str) -> bytes | None:
        """See the Protocol."""
        own = {"project_id": UUID(project_id), "key": effect_key}
        made = await self._connection.execute(
            pg_insert(effects).values(own).on_conflict_do_nothing().returning(effects.c.key)
        )
        if made.one_or_none() is not None:
            return None
        first = await self._connection.execute(
            sa.select(effects.c.result).where(effects.c.project_id == own["project_id"], effects.c.key == effect_key)
        )
        return first.scalar_one()  # type: ignore[no-any-return]  # committed rows have a result

    async def finish_effect(self, project_id: str, effect_key: str, result: bytes) -> None:
        """See the Protocol."""
        await self._connection.execute(
            sa.update(effects)
            .where(effects.c.project_id == UUID(project_id), effects.c.key == effect_key)
            .values(result=result)
        )

    async def _run(self, table: ProjectTable, statement: row_sql.Statement) -> Any:
        try:
            return (await self._connection.exec_driver_sql(statement.sql, tuple(statement.binds))).one()
        except DBAPIError as error:
            state = _state(error)
            if state == "42P01":
                raise TableNotFoundError(table.name) from error
            if state in {"23505", "21000"}:
                key = ", ".join(table.key) or "none"
                where = "the rows given" if state == "21000" else f"the table {table.name!r}"
                raise AlreadyExistsError(
                    f"There would be two rows with the same key ({key}) in {where}. Use `upsert` to replace a row.",
                    reason="DUPLICATE_KEY",
                    metadata={"constraint": constraint_of(error)},
                ) from error
            if state == "54000":
                raise _invalid("A key value is too long for the index; keep keys under 2,000 bytes.") from error
            if state.startswith("22"):
                raise _invalid("A value does not fit the type of its column.") from error
            raise


def _create_statement(table: ProjectTable) -> str:
    columns = [f"{quote(_ROW_NUMBER)} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"]
    for column in table.columns:
        null = "" if column.nullable else " NOT NULL"
        columns.append(f"{quote(column.name)} {_SQL_TYPES[column.type]}{null}")
    if table.key:
        columns.append(f"UNIQUE ({', '.join(map(quote, table.key))})")
    return f"CREATE TABLE {_sql_table(table).sql} ({', '.join(columns)})"


def _sql_table(table: ProjectTable) -> SqlTable:
    columns = {column.name: _SQL_TYPES[column.type] for column in table.columns}
    return SqlTable(SCHEMA, f"t_{table.id.hex}", columns, row_number=_ROW_NUMBER)


def _from_row(row: Any) -> ProjectTable:
    return ProjectTable(
        id=row.id,
        project_id=str(row.project_id),
        name=row.name,
        columns=tuple(Column(name, ColumnType(kind), nullable) for name, kind, nullable in row.columns),
        key=tuple(row.key),
        created_at=row.created_at,
    )


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        message, reason="TYPE_MISMATCH", violations=(Violation("TYPE_MISMATCH", message, "rows"),)
    )


def _state(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _by_state(error: DBAPIError) -> DomainError | None:
    """Errors of any statement: too slow, or in the way of another."""
    state = _state(error)
    if state == "57014":
        return DeadlineExceededError(
            f"The database needed longer than {_STATEMENT_TIMEOUT}. Read or write fewer rows, or filter by the key."
        )
    if state in {"55P03", "40P01", "40001"}:
        return UnavailableError("The table is in use by another write. Try again.", retry_after=0.5)
    return None
