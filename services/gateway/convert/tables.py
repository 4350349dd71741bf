"""Tables between REST and proto."""

from typing import Any

from headrace.executor.v1 import table_service_pb2 as pb

from services.gateway.convert.common import time_to_json

COLUMN_TYPES = {
    name.removeprefix("COLUMN_TYPE_").lower(): number
    for name, number in pb.ColumnType.items()
    if number != pb.COLUMN_TYPE_UNSPECIFIED
}
_COLUMN_TYPE_NAMES = {number: name for name, number in COLUMN_TYPES.items()}


def table_to_json(table: pb.Table) -> dict[str, Any]:
    """A table."""
    return {
        "name": table.name,
        "columns": [
            {"name": column.name, "type": _COLUMN_TYPE_NAMES.get(column.type, "json"), "nullable": column.nullable}
            for column in table.columns
        ],
        "key": list(table.key),
        "created_at": time_to_json(table, "created_at"),
    }
