"""Rows of projects' tables: reading them by filter and order, writing them once per effect."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from services.executor.domain.project_tables import (
    MAX_EFFECT_KEY_LENGTH,
    Column,
    ColumnType,
    ProjectTable,
    ProjectTableStore,
    RowQuery,
    RowsWritten,
    WriteOperation,
)
from services.kit.errors import InvalidArgumentError, Violation
from services.kit.filters import And, Condition, Filter, Not, Operator, Or
from services.kit.paging import decode_page_token, encode_page_token, page_size, page_token_error

MAX_ROWS = 1000
"""Rows of one call."""
DEFAULT_ROWS = 100
MAX_ORDER_COLUMNS = 8
MAX_RESULT_BYTES = 1024 * 1024
"""Largest JSON of rows that a write returns: it becomes the output of a node."""
MAX_PAGE_BYTES = 8 * 1024 * 1024
"""Largest JSON of a page of rows: half of what a message may hold."""
_MAX_VIOLATIONS = 20
_INT64 = range(-(2**63), 2**63)
_EXACT_FLOAT = 2**53
_TYPE_WORDS = {
    ColumnType.TEXT: "text",
    ColumnType.INTEGER: "a whole number of 64 bits",
    ColumnType.NUMBER: "a number",
    ColumnType.BOOLEAN: "true or false",
    ColumnType.TIMESTAMP: "an RFC 3339 time with a zone, such as 2030-01-31T12:00:00Z",
    ColumnType.JSON: "any JSON",
}


class ProjectRows:
    """Use cases on rows."""

    def __init__(self, store: ProjectTableStore) -> None:
        self._store = store

    async def query(
        self,
        project_id: str,
        table_name: str,
        *,
        columns: Sequence[str],
        where: Filter | None,
        order_by: Sequence[str],
        size: int,
        page_token: str,
    ) -> tuple[bytes, str]:
        """A page of rows as the text of a JSON array, and the token of the next page.

        Without `order_by` rows come as inserted and pages are stable under writes; with it, pages count rows.
        """
        limit = page_size(size, default=DEFAULT_ROWS, maximum=MAX_ROWS)
        if len(order_by) > MAX_ORDER_COLUMNS:
            raise InvalidArgumentError(
                f"Rows are ordered by at most {MAX_ORDER_COLUMNS} columns.",
                violations=(Violation("OUT_OF_RANGE", f"at most {MAX_ORDER_COLUMNS}", "order_by"),),
            )
        start = _start(page_token)
        async with self._store.transaction() as transaction:
            table = await transaction.get(project_id, table_name)
            if where is not None:
                where = check_filter(table, where)
            query = RowQuery(
                columns=tuple(columns),
                where=where,
                order_by=tuple(order_by),
                limit=limit,
                offset=start if order_by else 0,
                after_row=None if order_by or not page_token else start,
            )
            read = await transaction.read_rows(table, query)
        _check_size(read.rows, MAX_PAGE_BYTES)
        if read.count < limit or read.last_row is None:
            return read.rows, ""
        return read.rows, encode_page_token([start + limit if order_by else read.last_row])

    async def write(
        self,
        project_id: str,
        table_name: str,
        *,
        operation: WriteOperation,
        rows: Any,
        key: Sequence[str],
        effect_key: str,
    ) -> RowsWritten:
        """Write rows, all or none. With an `effect_key` once: a repetition returns the first result."""
        if len(effect_key) > MAX_EFFECT_KEY_LENGTH:
            raise InvalidArgumentError(
                f"effect_key is longer than {MAX_EFFECT_KEY_LENGTH} characters.",
                violations=(Violation("OUT_OF_RANGE", "too long", "effect_key"),),
            )
        async with self._store.transaction() as transaction:
            if effect_key:
                # Before the table is looked for: what has happened has happened, even if the table is gone by now.
                first = await transaction.begin_effect(project_id, effect_key)
                if first is not None:
                    affected, _, kept = first.partition(b"\n")
                    return RowsWritten(int(affected), kept, repeated_effect=True)
            table = await transaction.get(project_id, table_name, for_write=True)
            key = key_for(table, operation, key)
            checked = check_rows(table, operation, rows, key)
            written = await transaction.write_rows(table, operation, checked, key)
            _check_size(written.rows, MAX_RESULT_BYTES)
            if effect_key:
                result = b"%d\n%b" % (written.rows_affected, written.rows)
                await transaction.finish_effect(project_id, effect_key, result)
        return written


def key_for(table: ProjectTable, operation: WriteOperation, key: Sequence[str]) -> tuple[str, ...]:
    """The columns that identify rows: those given, or the table's key. Empty for insert.

    Raises InvalidArgumentError with reason KEY_REQUIRED or COLUMN_NOT_FOUND.
    """
    if operation is WriteOperation.INSERT:
        return ()
    chosen = tuple(key) or table.key
    for position, name in enumerate(chosen):
        if table.column(name) is None:
            raise column_not_found(table, name, f"key[{position}]")
    if not chosen:
        raise _key_required(f"The table {table.name!r} has no key: say in `key` which columns identify a row.")
    if operation is WriteOperation.UPSERT and set(chosen) != set(table.key):
        have = ", ".join(table.key) or "none"
        raise _key_required(
            f"`upsert` needs the key of the table {table.name!r}, which is: {have}. "
            "Use that, or a table made with the key you want."
        )
    return chosen


def check_rows(table: ProjectTable, operation: WriteOperation, rows: Any, key: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with every value of its column's type. Raises InvalidArgumentError with all that is wrong (up to 20)."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidArgumentError(
            "`rows` must be a list of objects.", violations=(Violation("TYPE_MISMATCH", "not a list", "rows"),)
        )
    if len(rows) > MAX_ROWS:
        raise InvalidArgumentError(
            f"There are {len(rows)} rows; at most {MAX_ROWS} are written at once. Split them.",
            violations=(Violation("TOO_MANY_ROWS", f"at most {MAX_ROWS}", "rows"),),
        )
    columns = {column.name: column for column in table.columns}
    columns_of_insert = dict.fromkeys(columns) if operation is WriteOperation.INSERT else {}
    adds = operation in {WriteOperation.INSERT, WriteOperation.UPSERT}
    required = [column.name for column in table.columns if not column.nullable] if adds else list(key)
    violations: list[Violation] = []
    checked = [_check_row(columns, required, row, f"rows[{at}]", violations) for at, row in enumerate(rows)]
    if operation is WriteOperation.UPDATE and not violations:
        violations += [
            Violation("EMPTY_ROW", "Give at least one column besides the key.", f"rows[{at}]")
            for at, row in enumerate(rows)
            if row.keys() <= set(key)
        ]
    if violations:
        first = violations[0]
        raise InvalidArgumentError(
            f"{first.path}: {first.message}", reason=first.code, violations=tuple(violations[:_MAX_VIOLATIONS])
        )
    # An insert sets every column, so one statement serves all rows; the others leave alone what is not given.
    return [columns_of_insert | row for row in checked]


def _check_row(
    columns: dict[str, Column], required: list[str], row: dict[str, Any], path: str, violations: list[Violation]
) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in row.items():
        column = columns.get(name)
        if column is None:
            have = ", ".join(columns)
            message = f"There is no column {name[:64]!r}. The table has: {have}."
            violations.append(Violation("COLUMN_NOT_FOUND", message, f"{path}.{name[:64]}"))
        elif value is None:
            if not column.nullable:
                violations.append(Violation("TYPE_MISMATCH", f"Column {name!r} takes no null.", f"{path}.{name}"))
            checked[name] = None
        else:
            try:
                checked[name] = to_column_type(column, value)
            except ValueError:
                message = f"Column {name!r} takes {_TYPE_WORDS[column.type]}, not {_shown(value)}."
                violations.append(Violation("TYPE_MISMATCH", message, f"{path}.{name}"))
    if not row:
        violations.append(Violation("EMPTY_ROW", "The row names no column.", path))
    for name in required:
        if name not in row:
            violations.append(Violation("VALUE_REQUIRED", f"The row has no value for column {name!r}.", path))
    return checked


def to_column_type(column: Column, value: Any) -> Any:
    """A value as its column's type, for JSON. Raises ValueError when it does not fit.

    Whole floats count as integers, because CEL and models write `3.0`; nothing else is converted.
    """
    kind = column.type
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is ColumnType.JSON:
        return value
    if kind is ColumnType.TEXT and isinstance(value, str):
        return value
    if kind is ColumnType.BOOLEAN and isinstance(value, bool):
        return value
    if kind is ColumnType.NUMBER and is_number and math.isfinite(value):
        return value
    if kind is ColumnType.INTEGER and is_number:
        if isinstance(value, int) and value in _INT64:
            return value
        if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT:
            return int(value)
    if kind is ColumnType.TIMESTAMP and isinstance(value, str):
        return _utc(value)
    raise ValueError(column.name)


def check_filter(table: ProjectTable, tree: Filter) -> Filter:
    """The filter with values of the columns' types. Raises InvalidArgumentError: COLUMN_NOT_FOUND, INVALID_FILTER."""
    if isinstance(tree, And):
        return And(tuple(check_filter(table, item) for item in tree.items))
    if isinstance(tree, Or):
        return Or(tuple(check_filter(table, item) for item in tree.items))
    if isinstance(tree, Not):
        return Not(check_filter(table, tree.item))
    column = table.column(tree.field) or table.column(tree.field.partition(".")[0])
    if column is None or (column.name != tree.field and column.type is not ColumnType.JSON):
        raise column_not_found(table, tree.field, "filter")
    if tree.operator is Operator.EXISTS or column.type is ColumnType.JSON:
        return tree
    values = tree.value if tree.operator is Operator.IN else [tree.value]
    try:
        fitting = [None if value is None else _comparable(column, value) for value in values]
    except ValueError as error:
        message = f"Column {column.name!r} is compared with {_TYPE_WORDS[column.type]}."
        raise InvalidArgumentError(
            message, reason="INVALID_FILTER", violations=(Violation("TYPE_MISMATCH", message, "filter"),)
        ) from error
    return Condition(tree.field, tree.operator, fitting if tree.operator is Operator.IN else fitting[0])


def column_not_found(table: ProjectTable, name: str, path: str) -> InvalidArgumentError:
    """What naming an unknown column is refused with."""
    have = ", ".join(column.name for column in table.columns)
    message = f"The table {table.name!r} has no column {name[:64]!r}. It has: {have}."
    return InvalidArgumentError(
        message, reason="COLUMN_NOT_FOUND", violations=(Violation("COLUMN_NOT_FOUND", message, path),)
    )


def _comparable(column: Column, value: Any) -> Any:
    # An integer column may be compared with 2.5, and with numbers that it could not hold.
    number = Column(column.name, ColumnType.NUMBER) if column.type is ColumnType.INTEGER else column
    return to_column_type(number, value)


def _utc(value: str) -> str:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(value)
    try:
        return moment.astimezone(UTC).isoformat()
    except OverflowError as error:
        raise ValueError(value) from error


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:40] + "…"


def _check_size(rows: bytes, limit: int) -> None:
    if len(rows) > limit:
        raise InvalidArgumentError(
            f"The rows make {len(rows)} bytes of JSON; the limit is {limit}. Take fewer rows or columns at once.",
            reason="RESULT_TOO_LARGE",
        )


def _start(page_token: str) -> int:
    place = decode_page_token(page_token, length=1)
    if place is None:
        return 0
    if not isinstance(place[0], int) or isinstance(place[0], bool) or not 0 <= place[0] < 2**62:
        raise page_token_error()
    return place[0]


def _key_required(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="KEY_REQUIRED", violations=(Violation("KEY_REQUIRED", message, "key"),))
