"""SQL for rows as JSON, for tables whose columns are known only at run time. Pure: builds text and binds.

Identifiers come from a catalogue look-up and are quoted; every value is a bind that PostgreSQL casts to the column's
own type. Rows travel as one JSON document each way (`jsonb_to_recordset`, `json_agg`), so a statement's text depends on
the columns alone, is prepared once, and no value passes through a driver's type conversion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import orjson

from services.kit.filters import And, Condition, Filter, Not, Operator, Or

_COMPARISONS = {Operator.GT: ">", Operator.GTE: ">=", Operator.LT: "<", Operator.LTE: "<="}
_JSON_TYPES = frozenset({"json", "jsonb"})
_INTEGER_TYPES = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}


class UnknownColumnError(Exception):
    """A column that the table does not have. `path` says where it was named."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.name = name
        self.path = path


@dataclass(frozen=True, slots=True)
class SqlTable:
    """A table found in the catalogue."""

    schema: str
    name: str
    columns: Mapping[str, str]
    """Name to type as SQL, such as `bigint` or `character varying`, without length limits."""
    row_number: str = ""
    """Name of a hidden column that orders rows as they were inserted; empty = none."""

    @property
    def sql(self) -> str:
        """Qualified and quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    def type_of(self, column: str, path: str) -> str:
        """The type of a column. Raises UnknownColumnError."""
        if column not in self.columns:
            raise UnknownColumnError(column, path)
        return self.columns[column]


@dataclass(slots=True)
class Statement:
    """SQL text with `$1`, `$2`, … and what is bound to them: text or lists of text."""

    sql: str = ""
    binds: list[Any] = field(default_factory=list)

    def bind(self, value: Any, cast: str = "text") -> str:
        """A placeholder for a value."""
        self.binds.append(value)
        return f"${len(self.binds)}::{cast}"


def quote(identifier: str) -> str:
    """An identifier as SQL. Only for names from the catalogue or made by us."""
    return '"' + identifier.replace('"', '""') + '"'


def insert_rows(table: SqlTable, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Statement:
    """Insert rows in their order. All write statements return `rows` (JSON array as text) and `affected`."""
    names = ", ".join(map(quote, columns))
    statement = Statement()
    source = _source(statement, table, rows, columns)
    values = ", ".join(f"r.{quote(name)}" for name in columns)
    statement.sql = _collected(
        f"INSERT INTO {table.sql} AS t ({names}) SELECT {values} FROM {source} ORDER BY r.{_ordinal(table)} "  # noqa: S608 - quoted identifiers only
        f"RETURNING 0 AS n, {_row_of(table)} AS v"
    )
    return statement


def upsert_rows(
    table: SqlTable, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], key: Sequence[str]
) -> Statement:
    """Insert rows, or set the given columns of those with the same key."""
    statement = insert_rows(table, rows, columns)
    # Setting the key to itself makes RETURNING show a row that is there already.
    changed = [name for name in columns if name not in key] or [key[0]]
    changes = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in changed)
    target = ", ".join(map(quote, key))
    statement.sql = statement.sql.replace(
        " RETURNING 0 AS n", f" ON CONFLICT ({target}) DO UPDATE SET {changes} RETURNING 0 AS n", 1
    )
    return statement


def update_rows(
    table: SqlTable, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], key: Sequence[str]
) -> Statement:
    """Set the given columns of rows with the same key."""
    statement = Statement()
    source = _source(statement, table, rows, columns)
    changes = ", ".join(f"{quote(name)} = r.{quote(name)}" for name in columns if name not in key)
    statement.sql = _collected(
        f"UPDATE {table.sql} AS t SET {changes} FROM {source} WHERE {_same_key(key)} "  # noqa: S608 - quoted identifiers only
        f"RETURNING r.{_ordinal(table)} AS n, {_row_of(table)} AS v"
    )
    return statement


def delete_rows(table: SqlTable, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> Statement:
    """Delete rows with the same key; returns them as they were."""
    statement = Statement()
    source = _source(statement, table, rows, key)
    statement.sql = _collected(
        f"DELETE FROM {table.sql} AS t USING {source} WHERE {_same_key(key)} "  # noqa: S608 - quoted identifiers only
        f"RETURNING r.{_ordinal(table)} AS n, {_row_of(table)} AS v"
    )
    return statement


def select_rows(
    table: SqlTable,
    *,
    columns: Sequence[str],
    where: Filter | None,
    order_by: Sequence[str],
    limit: int,
    offset: int = 0,
    after_row: int | None = None,
) -> Statement:
    """Read rows: returns `rows` (JSON array as text), `count`, and `last_row`, the highest row number or null.

    `order_by` holds columns, `-` before a name = descending; nulls come last. Rows that compare equal come in the order
    in which they were inserted where the table has row numbers.
    """
    for position, name in enumerate(columns):
        table.type_of(name, f"columns[{position}]")
    wanted = list(columns) or list(table.columns)
    statement = Statement()
    conditions = [_condition_sql(table, statement, where)] if where is not None else []
    if after_row is not None:
        conditions.append(f"t.{quote(table.row_number)} > {statement.bind(str(after_row))}::bigint")
    orders = [_order(table, item, f"order_by[{position}]") for position, item in enumerate(order_by)]
    number = f"t.{quote(table.row_number)}" if table.row_number else "NULL::bigint"
    if table.row_number:
        orders.append(number)
    inner = (
        f"SELECT {_row_of(table, wanted)} AS v, {number} AS n FROM {table.sql} AS t"  # noqa: S608 - quoted identifiers only
        + (f" WHERE {' AND '.join(conditions)}" if conditions else "")
        + (f" ORDER BY {', '.join(orders)}" if orders else "")
        + f" LIMIT {limit:d} OFFSET {offset:d}"
    )
    statement.sql = (
        "SELECT coalesce(json_agg(s.v), '[]')::text AS rows, count(*) AS count, max(s.n) AS last_row "  # noqa: S608 - as above
        f"FROM ({inner}) AS s"
    )
    return statement


def runs_of_same_columns(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows in their order, cut where the columns that they name change: one statement each."""
    return [list(run) for _, run in groupby(rows, key=lambda row: row.keys())]


def joined_arrays(texts: Sequence[str]) -> str:
    """JSON arrays one after the other as one, without parsing them: no number loses digits."""
    parts = [text[1:-1].strip() for text in texts]
    return "[" + ",".join(part for part in parts if part) + "]"


def _collected(write: str) -> str:
    return (
        f"WITH written AS ({write}) "  # noqa: S608 - quoted identifiers only
        "SELECT coalesce(json_agg(w.v ORDER BY w.n), '[]')::text AS rows, count(*) AS affected FROM written AS w"
    )


def _source(statement: Statement, table: SqlTable, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    document = orjson.dumps([{name: row[name] for name in columns} for row in rows]).decode()
    declared = ", ".join(f"{quote(name)} {table.columns[name]}" for name in columns)
    names = ", ".join([*map(quote, columns), _ordinal(table)])
    given = statement.bind(document)
    return f"ROWS FROM (jsonb_to_recordset({given}::jsonb) AS ({declared})) WITH ORDINALITY AS r({names})"


def _ordinal(table: SqlTable) -> str:
    name = "_ordinal"
    while name in table.columns:
        name += "_"
    return quote(name)


def _row_of(table: SqlTable, columns: Sequence[str] = ()) -> str:
    shown = ", ".join(f"t.{quote(name)}" for name in columns or table.columns)
    return f"(SELECT row_to_json(x) FROM (SELECT {shown}) AS x)"  # noqa: S608 - quoted identifiers only


def _same_key(key: Sequence[str]) -> str:
    return " AND ".join(f"t.{quote(name)} = r.{quote(name)}" for name in key)


def _order(table: SqlTable, item: str, path: str) -> str:
    descending = item.startswith("-")
    name = item.removeprefix("-")
    table.type_of(name, path)
    return f"t.{quote(name)} {'DESC' if descending else 'ASC'} NULLS LAST"


def _condition_sql(table: SqlTable, statement: Statement, tree: Filter) -> str:
    if isinstance(tree, And):
        return "(" + (" AND ".join(_condition_sql(table, statement, item) for item in tree.items) or "true") + ")"
    if isinstance(tree, Or):
        return "(" + (" OR ".join(_condition_sql(table, statement, item) for item in tree.items) or "false") + ")"
    if isinstance(tree, Not):
        # What is unknown for want of a value is not true, so its opposite is.
        return f"(({_condition_sql(table, statement, tree.item)}) IS NOT TRUE)"
    return _comparison(table, statement, tree)


def _comparison(table: SqlTable, statement: Statement, condition: Condition) -> str:
    expression, kind = _operand(table, statement, condition.field)
    operator, value = condition.operator, condition.value
    is_json = kind in _JSON_TYPES
    if is_json:
        kind = "jsonb"
    if operator is Operator.EXISTS:
        return f"({expression} IS {'NOT ' if value else ''}NULL)"
    if operator is Operator.IN:
        given = [item for item in value if item is not None]
        texts = statement.bind([_text(item, is_json) for item in given], "text[]")
        kind = _cast_type(kind, given)
        empty = f" OR {_is_null(expression, is_json)}" if len(given) < len(value) else ""
        return f"({expression} = ANY ({texts}::{kind}[]){empty})"
    if value is None:
        return f"({'NOT ' if operator is Operator.NE else ''}{_is_null(expression, is_json)})"
    bound = f"{statement.bind(_text(value, is_json))}::{_cast_type(kind, [value])}"
    if operator is Operator.EQ:
        return f"({expression} = {bound})"
    if operator is Operator.NE:
        return f"({expression} IS DISTINCT FROM {bound})"
    same_kind = f"jsonb_typeof({expression}) = jsonb_typeof({bound}) AND " if is_json else ""
    return f"({same_kind}{expression} {_COMPARISONS[operator]} {bound})"


def _operand(table: SqlTable, statement: Statement, field_name: str) -> tuple[str, str]:
    """A column, or a place inside a JSON column when the name has dots."""
    head, dot, rest = field_name.partition(".")
    if field_name not in table.columns and dot and table.columns.get(head) in _JSON_TYPES:
        return f"(t.{quote(head)}::jsonb #> {statement.bind(rest.split('.'), 'text[]')})", "jsonb"
    kind = table.type_of(field_name, "filter")
    cast = "::jsonb" if kind == "json" else ""
    return f"t.{quote(field_name)}{cast}", kind


def _cast_type(kind: str, values: Sequence[Any]) -> str:
    """The column's type, or `numeric` where an integer column is compared with what it could not hold."""
    bound = _INTEGER_TYPES.get(kind)
    if bound is None or all(isinstance(value, int) and -bound <= value < bound for value in values):
        return kind
    return "numeric" if all(isinstance(value, int | float) for value in values) else kind


def _is_null(expression: str, is_json: bool) -> str:
    return f"({expression} IS NULL" + (f" OR {expression} = 'null'::jsonb)" if is_json else ")")


def _text(value: Any, is_json: bool) -> str:
    if is_json:
        return orjson.dumps(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)
