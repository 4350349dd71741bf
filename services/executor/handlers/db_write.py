"""`db_write`: writes rows into a project's own table, or into an external PostgreSQL."""

from typing import Annotated, Any, Literal

import orjson
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import table_service_pb2
from pydantic import Field

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result, TerminalError
from services.executor.handlers.clients import Services
from services.executor.handlers.lists import one_or_more

MAX_ROWS = 1000
PROJECT = "project"
"""The target that is no credential's name: the project's own tables."""

_OPERATIONS = {
    "insert": table_service_pb2.WRITE_OPERATION_INSERT,
    "upsert": table_service_pb2.WRITE_OPERATION_UPSERT,
    "update": table_service_pb2.WRITE_OPERATION_UPDATE,
    "delete": table_service_pb2.WRITE_OPERATION_DELETE,
}


class DbWriteConfig(ConfigModel):
    """What to write where."""

    target: str = Field(
        PROJECT,
        min_length=1,
        title="Target",
        description='"project" for the project\'s own tables, or the name of a credential of type postgres.',
    )
    table: str = Field(min_length=1, title="Table", description="Name of a table; `schema.name` where outside.")
    operation: Literal["insert", "upsert", "update", "delete"] = Field(
        "insert", title="Operation", description="Update and delete find rows by their key."
    )
    rows: Annotated[list[dict[str, Any]], one_or_more(dict[str, Any])] = Field(
        title="Rows", max_length=MAX_ROWS, description="Objects by column; one alone is taken too. All or none."
    )
    key: Annotated[list[str], one_or_more(str)] = Field(
        default_factory=list, title="Key", description="Columns that identify a row. Empty = the table's own key."
    )


class DbWriteOutput(ConfigModel):
    """What was written."""

    rows_affected: int = Field(title="Rows affected", description="Rows inserted, changed or deleted.")
    rows: Annotated[list[dict[str, Any]], one_or_more(dict[str, Any])] = Field(
        title="Rows", description="The rows as they stand after the write; before it, for delete."
    )


async def db_write(context: Context, config: DbWriteConfig) -> Result:
    """Write once, however often it is tried: the key of the effect is kept in the same transaction."""
    services: Services = context.services
    if config.target == PROJECT:
        return Result(await _write_project(context, services, config))
    from services.executor.handlers import external_rows  # noqa: PLC0415 - asyncpg, which most workers never need

    credential = await services.credential(context, config.target)
    async with services.databases.transaction(context, credential) as connection:
        first = await external_rows.first_result(connection, context.idempotency_key)
        if first is not None:
            return Result(first)
        table = await external_rows.find_table(connection, config.table)
        result = await external_rows.write_rows(
            connection, table, operation=config.operation, rows=config.rows, key=config.key
        )
        await external_rows.keep_result(connection, context.idempotency_key, result)
    return Result(result)


async def _write_project(context: Context, services: Services, config: DbWriteConfig) -> dict[str, Any]:
    try:
        rows = orjson.dumps(config.rows)
    except (TypeError, ValueError) as error:
        raise TerminalError("INVALID_ROWS", f"`rows` cannot be written as JSON: {error}.") from error
    request = table_service_pb2.WriteRowsRequest(
        project_id=context.project_id,
        table=config.table,
        operation=_OPERATIONS[config.operation],
        rows=value_pb2.Json(utf8=rows),
        key=config.key,
        effect_key=context.idempotency_key,
    )
    answer = await services.call(context, services.tables.WriteRows, request)
    return {"rows_affected": answer.rows_affected, "rows": orjson.loads(answer.rows.utf8 or b"[]")}


DB_WRITE = NodeType(
    name="db_write",
    title="Write to table",
    help="Writes rows into a table of the project or of an external PostgreSQL, exactly once.",
    icon="database",
    category="data",
    config=DbWriteConfig,
    output=DbWriteOutput,
    handler=db_write,
    effect="idempotent",
)
