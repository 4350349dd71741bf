"""Rows of an external PostgreSQL: tables looked up in its catalogue, effects that happen once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from services.executor import row_sql
from services.executor.handlers.base import TerminalError
from services.executor.handlers.external_postgres import Connection
from services.executor.row_sql import SqlTable, Statement, UnknownColumnError
from services.kit.filters import Filter

MAX_RESULT_BYTES = 1024 * 1024
"""Largest JSON of rows that comes back; what is more would not fit into an output."""

# By name, byte for byte; a name without a schema means what the role's search path finds. Types without their limits:
# an explicit cast to varchar(3) would cut values silently, assignment to the column refuses them.
_FIND_COLUMNS = """
SELECT n.nspname::text AS schema, c.relname::text AS name, a.attname::text AS column,
       pg_catalog.format_type(a.atttypid, -1) AS type,
       a.attnum = ANY (coalesce(i.indkey::int2[], '{}')) AS in_key
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname::text = $2::text
  AND CASE WHEN $1::text = '' THEN pg_catalog.pg_table_is_visible(c.oid) ELSE n.nspname::text = $1::text END
  AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY a.attnum
"""
# Never cleared from here: docs/architecture/execution-engine.md says why, and how its owner does.
_EFFECTS_TABLE = """
CREATE TABLE IF NOT EXISTS headrace_effects (
    key text PRIMARY KEY,
    result jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
_EFFECTS_LOCK = 7_263_011
"""Any fixed number: one worker at a time makes the table."""


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """A table and the columns of its primary key."""

    sql: SqlTable
    key: tuple[str, ...]


async def find_table(connection: Connection, name: str) -> ExternalTable:
    """Look a table up by `name` or `schema.name`. Raises TerminalError TABLE_NOT_FOUND."""
    rows = await connection.fetch(_FIND_COLUMNS, "", name)
    schema, dot, rest = name.partition(".")
    if not rows and dot:
        rows = await connection.fetch(_FIND_COLUMNS, schema, rest)
    if not rows or rows[0]["name"] == "headrace_effects":
        raise TerminalError(
            "TABLE_NOT_FOUND",
            f"The database has no table {name!r} that the credential's role can see. Write it as `name` or "
            "`schema.name`, in the same letters.",
        )
    columns = {row["column"]: row["type"] for row in rows}
    key = tuple(row["column"] for row in rows if row["in_key"])
    return ExternalTable(SqlTable(rows[0]["schema"], rows[0]["name"], columns), key)


async def first_result(connection: Connection, effect_key: str) -> dict[str, Any] | None:
    """Claim an effect within the transaction: None when it is new, else the result of the first time."""
    if await connection.fetchval("SELECT to_regclass('headrace_effects') IS NULL"):
        await _make_effects_table(connection)
    claimed = await connection.fetchval(
        "INSERT INTO headrace_effects (key) VALUES ($1::text) ON CONFLICT DO NOTHING RETURNING true", effect_key
    )
    if claimed:
        return None
    result = await connection.fetchval("SELECT result::text FROM headrace_effects WHERE key = $1::text", effect_key)
    kept: dict[str, Any] = orjson.loads(result or b'{"rows_affected": 0, "rows": []}')
    return kept


async def keep_result(connection: Connection, effect_key: str, result: Mapping[str, Any]) -> None:
    """Keep the result of an effect that this transaction has claimed."""
    await connection.execute(
        "UPDATE headrace_effects SET result = $2::text::jsonb WHERE key = $1::text",
        effect_key,
        orjson.dumps(result).decode(),
    )


async def write_rows(
    connection: Connection,
    table: ExternalTable,
    *,
    operation: str,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str],
) -> dict[str, Any]:
    """Write rows; returns `rows_affected` and `rows`. Raises TerminalError, asyncpg.PostgresError."""
    chosen = tuple(key) or table.key
    if operation != "insert" and not chosen:
        raise TerminalError(
            "KEY_REQUIRED", f"{table.sql.name!r} has no primary key: say in `key` which columns identify a row."
        )
    _check_columns(table.sql, rows, chosen if operation != "insert" else ())
    affected, texts = 0, []
    for run in row_sql.runs_of_same_columns(rows):
        row = await connection.fetchrow(*_arguments(_statement(table.sql, operation, run, chosen)))
        assert row is not None  # noqa: S101 - an aggregate always returns a row
        affected += row["affected"]
        texts.append(row["rows"])
    return {"rows_affected": affected, "rows": _parsed(row_sql.joined_arrays(texts))}


async def read_rows(
    connection: Connection,
    table: ExternalTable,
    *,
    columns: Sequence[str],
    where: Filter | None,
    order_by: Sequence[str],
    limit: int,
) -> list[Any]:
    """Read rows. Raises TerminalError, asyncpg.PostgresError."""
    try:
        statement = row_sql.select_rows(table.sql, columns=columns, where=where, order_by=order_by, limit=limit)
    except UnknownColumnError as error:
        raise _column_not_found(table.sql, error.name, error.path) from error
    row = await connection.fetchrow(*_arguments(statement))
    assert row is not None  # noqa: S101 - an aggregate always returns a row
    return _parsed(row["rows"])


def _statement(table: SqlTable, operation: str, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> Statement:
    columns = list(rows[0])
    match operation:
        case "insert":
            return row_sql.insert_rows(table, rows, columns)
        case "upsert":
            return row_sql.upsert_rows(table, rows, columns, key)
        case "update":
            return row_sql.update_rows(table, rows, columns, key)
        case _:
            return row_sql.delete_rows(table, rows, key)


def _arguments(statement: Statement) -> tuple[Any, ...]:
    return (statement.sql, *statement.binds)


def _check_columns(table: SqlTable, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> None:
    for position, name in enumerate(key):
        if name not in table.columns:
            raise _column_not_found(table, name, f"key[{position}]")
    for position, row in enumerate(rows):
        if not row:
            raise TerminalError("EMPTY_ROW", f"rows[{position}] names no column.")
        for name in row:
            if name not in table.columns:
                raise _column_not_found(table, name, f"rows[{position}]")
        for name in key:
            if row.get(name) is None:
                raise TerminalError("VALUE_REQUIRED", f"rows[{position}] has no value for its key column {name!r}.")


def _column_not_found(table: SqlTable, name: str, path: str) -> TerminalError:
    have = ", ".join(list(table.columns)[:50])
    return TerminalError(
        "COLUMN_NOT_FOUND", f"{path}: the table {table.name!r} has no column {name[:64]!r}. It has: {have}."
    )


def _parsed(rows: str) -> list[Any]:
    size = len(rows)
    if size > MAX_RESULT_BYTES:
        raise TerminalError(
            "RESULT_TOO_LARGE",
            f"The rows make {size} characters of JSON; the limit is {MAX_RESULT_BYTES}. Take fewer rows or columns.",
        )
    parsed: list[Any] = orjson.loads(rows)
    return parsed


async def _make_effects_table(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_xact_lock($1::bigint)", _EFFECTS_LOCK)
    try:
        async with connection.transaction():
            await connection.execute(_EFFECTS_TABLE)
    except asyncpg.InsufficientPrivilegeError as error:
        raise TerminalError(
            "EFFECTS_TABLE_MISSING",
            "The table headrace_effects, which keeps a write from happening twice, cannot be made: the credential's "
            f"role may not create tables. Make it once: {' '.join(_EFFECTS_TABLE.split())}; and grant SELECT, INSERT "
            "and UPDATE on it.",
        ) from error
