"""A project's own tables."""

from typing import Annotated

from fastapi import Path, Query
from headrace.executor.v1 import table_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Editor,
    FilterText,
    IdempotencyKey,
    PageSize,
    PageToken,
    Viewer,
    clients_of,
    filter_bytes,
)
from services.gateway.convert.common import json_from_proto, page_to_json
from services.gateway.convert.tables import COLUMN_TYPES, table_to_json
from services.gateway.routing import Json, new_router
from services.gateway.schemas.tables import RowPage, Table, TableInput, TablePage

router = new_router("/api/v1/tables", "tables")

TableName = Annotated[str, Path(max_length=256, examples=["answers"])]


@router.post("", status_code=201, response_model=Table)
async def create_table(
    request: Request, access: Editor, body: TableInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a table."""
    clients = clients_of(request)
    columns = [
        pb.Column(
            name=column.name,
            type=COLUMN_TYPES[column.type],
            nullable=column.name not in body.key if column.nullable is None else column.nullable,
        )
        for column in body.columns
    ]
    asked = pb.CreateTableRequest(
        project_id=access.project_id, name=body.name, columns=columns, key=body.key, request_id=idempotency_key or ""
    )
    reply = await clients.call(clients.tables.CreateTable, asked)
    headers = {"Location": f"/api/v1/tables/{reply.table.name}"}
    return Json(table_to_json(reply.table), status_code=201, headers=headers)


@router.get("", response_model=TablePage)
async def list_tables(
    request: Request, access: Viewer, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List tables by name."""
    clients = clients_of(request)
    asked = pb.ListTablesRequest(project_id=access.project_id, page_size=page_size, page_token=page_token)
    reply = await clients.call(clients.tables.ListTables, asked)
    return Json(page_to_json([table_to_json(table) for table in reply.tables], reply.next_page_token))


@router.get("/{name}", response_model=Table)
async def get_table(request: Request, access: Viewer, name: TableName) -> Response:
    """Get a table's columns."""
    clients = clients_of(request)
    asked = pb.GetTableRequest(project_id=access.project_id, name=name)
    return Json(table_to_json((await clients.call(clients.tables.GetTable, asked)).table))


@router.delete("/{name}", status_code=204)
async def delete_table(request: Request, access: Editor, name: TableName) -> Response:
    """Delete a table with its rows."""
    clients = clients_of(request)
    await clients.call(clients.tables.DeleteTable, pb.DeleteTableRequest(project_id=access.project_id, name=name))
    return Response(status_code=204)


@router.get("/{name}/rows", response_model=RowPage)
async def list_rows(
    request: Request,
    access: Viewer,
    name: TableName,
    filter_text: FilterText = None,
    order_by: Annotated[
        list[str] | None,
        Query(max_length=16, description="Columns, `-` before a name = descending; repeated or separated by commas."),
    ] = None,
    columns: Annotated[
        list[str] | None, Query(max_length=200, description="Only these; repeated or separated by commas.")
    ] = None,
    page_size: PageSize = 0,
    page_token: PageToken = "",
) -> Response:
    """Read rows; as inserted unless an order is given. At most 1,000 at once; 0 = 100."""
    clients = clients_of(request)
    asked = pb.QueryRowsRequest(
        project_id=access.project_id,
        table=name,
        columns=_split(columns),
        order_by=_split(order_by),
        page_size=page_size,
        page_token=page_token,
    )
    if (content := filter_bytes(filter_text)) is not None:
        asked.filter.utf8 = content
    reply = await clients.call(clients.tables.QueryRows, asked)
    return Json({"items": json_from_proto(reply.rows, absent=[]), "next_page_token": reply.next_page_token or None})


def _split(values: list[str] | None) -> list[str]:
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]
