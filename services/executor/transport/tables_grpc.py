"""TableService over gRPC: messages in, use cases, messages out."""

from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import table_service_pb2 as pb
from headrace.executor.v1.table_service_pb2_grpc import (
    TableServiceServicer,
    add_TableServiceServicer_to_server,
)

from services.executor.domain.project_rows import ProjectRows
from services.executor.domain.project_tables import (
    Column,
    ColumnType,
    ProjectTable,
    ProjectTables,
    ProjectTableStore,
    TableNotFoundError,
    WriteOperation,
)
from services.kit import strict_json
from services.kit.errors import InvalidArgumentError, Violation
from services.kit.filters import Filter, parse_filter
from services.kit.grpc_client import MAX_MESSAGE_BYTES
from services.kit.ids import parse_id

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TableService"].full_name
GRANT_METHODS = (f"/{SERVICE_NAME}/QueryRows", f"/{SERVICE_NAME}/WriteRows")
"""What a worker may call."""
_MAX_FILTER_BYTES = 256 * 1024

Context = grpc.aio.ServicerContext[Any, Any]

_TYPES = {
    pb.COLUMN_TYPE_TEXT: ColumnType.TEXT,
    pb.COLUMN_TYPE_INTEGER: ColumnType.INTEGER,
    pb.COLUMN_TYPE_NUMBER: ColumnType.NUMBER,
    pb.COLUMN_TYPE_BOOLEAN: ColumnType.BOOLEAN,
    pb.COLUMN_TYPE_TIMESTAMP: ColumnType.TIMESTAMP,
    pb.COLUMN_TYPE_JSON: ColumnType.JSON,
}
_TYPE_NUMBERS = {kind: number for number, kind in _TYPES.items()}
_OPERATIONS = {
    pb.WRITE_OPERATION_INSERT: WriteOperation.INSERT,
    pb.WRITE_OPERATION_UPSERT: WriteOperation.UPSERT,
    pb.WRITE_OPERATION_UPDATE: WriteOperation.UPDATE,
    pb.WRITE_OPERATION_DELETE: WriteOperation.DELETE,
}


def add_table_service(server: grpc.aio.Server, store: ProjectTableStore) -> None:
    """Serve TableService. Pass SERVICE_NAME and GRANT_METHODS to the `GrpcServer`."""
    add_TableServiceServicer_to_server(TableServicer(store), server)


class TableServicer(TableServiceServicer):
    """`headrace.executor.v1.TableService`."""

    def __init__(self, store: ProjectTableStore) -> None:
        self._tables = ProjectTables(store)
        self._rows = ProjectRows(store)

    async def CreateTable(self, request: pb.CreateTableRequest, context: Context) -> pb.CreateTableResponse:
        table = await self._tables.create(
            _project(request.project_id),
            name=request.name,
            columns=[_column(item, position) for position, item in enumerate(request.columns)],
            key=list(request.key),
            request_id=request.request_id,
        )
        return pb.CreateTableResponse(table=_table_message(table))

    async def ListTables(self, request: pb.ListTablesRequest, context: Context) -> pb.ListTablesResponse:
        found, token = await self._tables.list(
            _project(request.project_id), size=request.page_size, page_token=request.page_token
        )
        return pb.ListTablesResponse(tables=map(_table_message, found), next_page_token=token)

    async def GetTable(self, request: pb.GetTableRequest, context: Context) -> pb.GetTableResponse:
        table = await self._tables.get(_project(request.project_id), _name(request.name))
        return pb.GetTableResponse(table=_table_message(table))

    async def DeleteTable(self, request: pb.DeleteTableRequest, context: Context) -> pb.DeleteTableResponse:
        await self._tables.delete(_project(request.project_id), _name(request.name))
        return pb.DeleteTableResponse()

    async def QueryRows(self, request: pb.QueryRowsRequest, context: Context) -> pb.QueryRowsResponse:
        rows, token = await self._rows.query(
            _project(request.project_id),
            _name(request.table),
            columns=list(request.columns),
            where=_filter(request),
            order_by=list(request.order_by),
            size=request.page_size,
            page_token=request.page_token,
        )
        return pb.QueryRowsResponse(rows=value_pb2.Json(utf8=rows), next_page_token=token)

    async def WriteRows(self, request: pb.WriteRowsRequest, context: Context) -> pb.WriteRowsResponse:
        operation = _OPERATIONS.get(request.operation)
        if operation is None:
            raise _unspecified("operation", "insert, upsert, update or delete")
        written = await self._rows.write(
            _project(request.project_id),
            _name(request.table),
            operation=operation,
            rows=strict_json.loads(request.rows.utf8, max_bytes=MAX_MESSAGE_BYTES),
            key=list(request.key),
            effect_key=request.effect_key,
        )
        return pb.WriteRowsResponse(
            rows_affected=written.rows_affected,
            rows=value_pb2.Json(utf8=written.rows),
            repeated_effect=written.repeated_effect,
        )


def _project(text: str) -> str:
    return str(parse_id(text, resource="project"))


def _name(text: str) -> str:
    if "\x00" in text:
        raise TableNotFoundError(text)
    return text


def _filter(request: pb.QueryRowsRequest) -> Filter | None:
    if not request.HasField("filter") or not request.filter.utf8:
        return None
    return parse_filter(strict_json.loads(request.filter.utf8, max_bytes=_MAX_FILTER_BYTES))


def _column(item: pb.Column, position: int) -> Column:
    kind = _TYPES.get(item.type)
    if kind is None:
        raise _unspecified(f"columns[{position}].type", ", ".join(ColumnType))
    return Column(item.name, kind, item.nullable)


def _unspecified(path: str, choices: str) -> InvalidArgumentError:
    message = f"`{path}` must be one of: {choices}."
    return InvalidArgumentError(message, violations=(Violation("REQUIRED", message, path),))


def _table_message(table: ProjectTable) -> pb.Table:
    return pb.Table(
        name=table.name,
        columns=[
            pb.Column(name=item.name, type=_TYPE_NUMBERS[item.type], nullable=item.nullable) for item in table.columns
        ],
        key=table.key,
        created_at=_timestamp(table.created_at),
    )


def _timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message
