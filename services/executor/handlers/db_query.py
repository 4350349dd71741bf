"""`db_query`: reads rows of a project's own table, or of an external PostgreSQL."""

from typing import Annotated, Any

import orjson
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import table_service_pb2
from pydantic import Field

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result
from services.executor.handlers.clients import Services
from services.executor.handlers.db_write import MAX_ROWS, PROJECT
from services.executor.handlers.failures import failure_of_call
from services.executor.handlers.lists import one_or_more
from services.kit.errors import InvalidArgumentError
from services.kit.filters import parse_filter


class DbQueryConfig(ConfigModel):
    """What to read from where."""

    target: str = Field(
        PROJECT,
        min_length=1,
        title="Target",
        description='"project" for the project\'s own tables, or the name of a credential of type postgres.',
    )
    table: str = Field(min_length=1, title="Table", description="Name of a table; `schema.name` where outside.")
    columns: Annotated[list[str], one_or_more(str)] = Field(
        default_factory=list, title="Columns", description="Columns to read. Empty = all."
    )
    filter: dict[str, Any] | None = Field(
        None, title="Filter", description='Only these rows, such as {"field": "lang", "op": "eq", "value": "de"}.'
    )
    order_by: Annotated[list[str], one_or_more(str)] = Field(
        default_factory=list, max_length=8, title="Order", description="Columns to sort by; `-` before = descending."
    )
    limit: int = Field(100, ge=1, le=MAX_ROWS, title="Limit", description="Most rows to read.")


class DbQueryOutput(ConfigModel):
    """What was read."""

    rows: list[dict[str, Any]] = Field(title="Rows", description="Objects by column.")


async def db_query(context: Context, config: DbQueryConfig) -> Result:
    """Read."""
    services: Services = context.services
    if config.target == PROJECT:
        return Result({"rows": await _read_project(context, services, config)})
    from services.executor.handlers import external_rows  # noqa: PLC0415 - asyncpg, which most workers never need

    try:
        where = None if config.filter is None else parse_filter(config.filter)
    except InvalidArgumentError as error:
        raise failure_of_call(error) from error
    credential = await services.credential(context, config.target)
    async with services.databases.transaction(context, credential, read_only=True) as connection:
        table = await external_rows.find_table(connection, config.table)
        rows = await external_rows.read_rows(
            connection,
            table,
            columns=config.columns,
            where=where,
            order_by=config.order_by,
            limit=config.limit,
        )
    return Result({"rows": rows})


async def _read_project(context: Context, services: Services, config: DbQueryConfig) -> list[Any]:
    request = table_service_pb2.QueryRowsRequest(
        project_id=context.project_id,
        table=config.table,
        columns=config.columns,
        order_by=config.order_by,
        page_size=config.limit,
    )
    if config.filter is not None:
        request.filter.CopyFrom(value_pb2.Json(utf8=orjson.dumps(config.filter)))
    answer = await services.call(context, services.tables.QueryRows, request)
    rows: list[Any] = orjson.loads(answer.rows.utf8 or b"[]")
    return rows


DB_QUERY = NodeType(
    name="db_query",
    title="Read table",
    help="Reads rows of a table of the project or of an external PostgreSQL.",
    icon="table",
    category="data",
    config=DbQueryConfig,
    output=DbQueryOutput,
    handler=db_query,
    effect="read",
)
