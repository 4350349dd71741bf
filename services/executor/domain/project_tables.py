"""Tables that projects define for themselves: what they are, and making, finding and deleting them."""

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

import orjson

from services.kit.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    Violation,
)
from services.kit.filters import Filter
from services.kit.ids import id_for_create, request_hash, require_same_request
from services.kit.paging import decode_page_token, encode_page_token, page_size, page_token_error

MAX_TABLES = 200
"""Tables of one project."""
MAX_COLUMNS = 200
MAX_KEY_COLUMNS = 16
MAX_EFFECT_KEY_LENGTH = 256

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)


class ColumnType(StrEnum):
    """What a column holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    JSON = "json"


class WriteOperation(StrEnum):
    """What a write does. Update and delete find rows by their key."""

    INSERT = "insert"
    UPSERT = "upsert"
    UPDATE = "update"
    DELETE = "delete"


class TableNotFoundError(NotFoundError):
    """The project has no such table."""

    reason = "TABLE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no table {name[:64]!r} in this project. Create it with POST /api/v1/tables.",
            metadata={"table": name[:64]},
        )


class TableExistsError(AlreadyExistsError):
    """The project has a table of that name."""

    reason = "TABLE_EXISTS"


@dataclass(frozen=True, slots=True)
class Column:
    """A typed column."""

    name: str
    type: ColumnType
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class ProjectTable:
    """A project's table. Columns never change after its creation."""

    id: UUID
    project_id: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Columns of the unique key, never null; empty = none."""
    created_at: datetime

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class RowQuery:
    """Which rows to read. Names are checked against the table by the store."""

    columns: tuple[str, ...]
    where: Filter | None
    order_by: tuple[str, ...]
    limit: int
    offset: int = 0
    after_row: int | None = None
    """Row number to start after; only without order_by."""


@dataclass(frozen=True, slots=True)
class RowsRead:
    """Rows as the text of a JSON array; `last_row` is the row number of the last of them."""

    rows: bytes
    count: int
    last_row: int | None


@dataclass(frozen=True, slots=True)
class RowsWritten:
    """What a write did: rows as they stand after it (before it, for delete), as the text of a JSON array."""

    rows_affected: int
    rows: bytes
    repeated_effect: bool = False


class ProjectTableStore(Protocol):
    """Keeps definitions and rows. Every method takes the project and sees nothing of others."""

    def transaction(self) -> AbstractAsyncContextManager["ProjectTableTransaction"]:
        """A transaction, committed on leaving and rolled back on an exception."""
        ...


class ProjectTableTransaction(Protocol):
    """One transaction on definitions and rows."""

    async def create(
        self, table: ProjectTable, content_hash: bytes, *, limit: int
    ) -> tuple[ProjectTable, bytes | None]:
        """Make a table, or return the one with this id and its content hash.

        Creates of one project take turns. Raises TableExistsError, ResourceExhaustedError beyond `limit` tables.
        """
        ...

    async def get(self, project_id: str, name: str, *, for_write: bool = False) -> ProjectTable:
        """The table. `for_write` keeps it from being deleted until the transaction ends. Raises TableNotFoundError."""
        ...

    async def list(self, project_id: str, *, after_name: str, limit: int) -> list[ProjectTable]:
        """Tables by name, those after `after_name`."""
        ...

    async def delete(self, table: ProjectTable) -> None:
        """Delete definition and rows; waits for writes under way."""
        ...

    async def read_rows(self, table: ProjectTable, query: RowQuery) -> RowsRead:
        """Read rows. Raises InvalidArgumentError for unknown columns or values that do not fit, TableNotFoundError."""
        ...

    async def write_rows(
        self, table: ProjectTable, operation: WriteOperation, rows: Sequence[dict[str, object]], key: Sequence[str]
    ) -> RowsWritten:
        """Write checked rows. Raises AlreadyExistsError with reason DUPLICATE_KEY."""
        ...

    async def begin_effect(self, project_id: str, effect_key: str) -> bytes | None:
        """Claim an effect: None when it is new, else the first result. Waits for a transaction that has claimed it."""
        ...

    async def finish_effect(self, project_id: str, effect_key: str, result: bytes) -> None:
        """Keep the result of an effect that this transaction has claimed."""
        ...


class ProjectTables:
    """Use cases on definitions."""

    def __init__(self, store: ProjectTableStore) -> None:
        self._store = store

    async def create(
        self, project_id: str, *, name: str, columns: Sequence[Column], key: Sequence[str], request_id: str
    ) -> ProjectTable:
        """Make a table. Idempotent by `request_id`. Raises InvalidArgumentError, TableExistsError."""
        violations = _violations(name, columns, key)
        if violations:
            raise InvalidArgumentError(
                f"The table cannot be made: {violations[0].message}", violations=tuple(violations)
            )
        # Columns of a key are never null: rows without a key could not be found again.
        columns = tuple(
            Column(column.name, column.type, column.nullable and column.name not in key) for column in columns
        )
        content = request_hash(
            name, orjson.dumps([[column.name, column.type, column.nullable] for column in columns]), orjson.dumps(key)
        )
        table = ProjectTable(
            id=id_for_create(project_id, "table", request_id),
            project_id=project_id,
            name=name,
            columns=columns,
            key=tuple(key),
            created_at=datetime.now(UTC),
        )
        async with self._store.transaction() as transaction:
            made, stored = await transaction.create(table, content, limit=MAX_TABLES)
        require_same_request(stored, content)
        return made

    async def get(self, project_id: str, name: str) -> ProjectTable:
        """The table. Raises TableNotFoundError."""
        async with self._store.transaction() as transaction:
            return await transaction.get(project_id, name)

    async def list(self, project_id: str, *, size: int, page_token: str) -> tuple[list[ProjectTable], str]:
        """A page of tables by name, and the token of the next."""
        limit = page_size(size)
        place = decode_page_token(page_token, length=1)
        after = place[0] if place else ""
        if not isinstance(after, str):
            raise page_token_error()
        async with self._store.transaction() as transaction:
            found = await transaction.list(project_id, after_name=after, limit=limit + 1)
        more = len(found) > limit
        return found[:limit], encode_page_token([found[limit - 1].name]) if more else ""

    async def delete(self, project_id: str, name: str) -> None:
        """Delete a table and its rows. Raises TableNotFoundError."""
        async with self._store.transaction() as transaction:
            await transaction.delete(await transaction.get(project_id, name))


def too_many_tables(limit: int) -> ResourceExhaustedError:
    """What a create beyond the limit is refused with."""
    return ResourceExhaustedError(
        f"The project has {limit} tables, which is the limit. Delete one first.", reason="TOO_MANY_TABLES"
    )


def _violations(name: str, columns: Sequence[Column], key: Sequence[str]) -> list[Violation]:
    rule = "a small letter, then small letters, digits and underscores, at most 63 characters"
    found = []
    if not _NAME.fullmatch(name):
        found.append(Violation("INVALID_NAME", f"A table's name is {rule}.", "name"))
    if not 1 <= len(columns) <= MAX_COLUMNS:
        found.append(Violation("OUT_OF_RANGE", f"A table has 1 to {MAX_COLUMNS} columns.", "columns"))
    types: dict[str, ColumnType] = {}
    for position, column in enumerate(columns[:MAX_COLUMNS]):
        if not _NAME.fullmatch(column.name):
            found.append(Violation("INVALID_NAME", f"A column's name is {rule}.", f"columns[{position}].name"))
        elif column.name in types:
            message = f"The column {column.name!r} is given twice."
            found.append(Violation("DUPLICATE_COLUMN", message, f"columns[{position}].name"))
        types[column.name] = column.type
    if len(key) > MAX_KEY_COLUMNS or len(set(key)) != len(key):
        found.append(Violation("INVALID_KEY", f"A key is at most {MAX_KEY_COLUMNS} different columns.", "key"))
    for position, part in enumerate(key[:MAX_KEY_COLUMNS]):
        if part not in types:
            message = f"The key names {part[:64]!r}, which is not a column of the table."
            found.append(Violation("COLUMN_NOT_FOUND", message, f"key[{position}]"))
        elif types[part] is ColumnType.JSON:
            message = f"The column {part!r} holds JSON and cannot be part of a key."
            found.append(Violation("INVALID_KEY", message, f"key[{position}]"))
    return found
