"""Records of collections."""

from typing import Annotated

from fastapi import Path, Query
from headrace.vector.v1 import vector_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.collections import CollectionId
from services.gateway.api.parameters import (
    Editor,
    FilterText,
    IdempotencyKey,
    PageSize,
    PageToken,
    Viewer,
    clients_of,
    filter_bytes,
    gateway_of,
)
from services.gateway.convert.collections import record_to_json, record_to_proto
from services.gateway.convert.common import json_to_proto, page_to_json
from services.gateway.routing import LARGE_BODY, Json, new_router
from services.gateway.schemas.collections import (
    Deleted,
    DeleteRecordsInput,
    RecordPage,
    RecordsInput,
    RecordWithVector,
    Upserted,
)
from services.kit.errors import InvalidArgumentError, NotFoundError, Violation

router = new_router("/api/v1/collections/{collection_id}/records", "records")

RecordId = Annotated[str, Path(max_length=256)]


@router.post("", response_model=Upserted, openapi_extra=LARGE_BODY)
async def upsert_records(
    request: Request,
    access: Editor,
    collection_id: CollectionId,
    body: RecordsInput,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Write records, all or none; durable and visible to searches when this is answered."""
    gateway = gateway_of(request)
    asked = pb.UpsertRecordsRequest(
        project_id=access.project_id,
        collection=collection_id,
        records=[record_to_proto(record) for record in body.records],
        request_id=idempotency_key or "",
    )
    clients = gateway.clients
    reply = await clients.call(clients.vector.UpsertRecords, asked, timeout=gateway.settings.upload_timeout_seconds)
    return Json({"ids": list(reply.ids), "upserted": len(reply.ids)})


@router.get("", response_model=RecordPage)
async def list_records(
    request: Request,
    access: Viewer,
    collection_id: CollectionId,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    filter_text: FilterText = None,
) -> Response:
    """List records by id, without vectors."""
    clients = clients_of(request)
    asked = pb.ListRecordsRequest(
        project_id=access.project_id, collection=collection_id, page_size=page_size, page_token=page_token
    )
    if (content := filter_bytes(filter_text)) is not None:
        asked.filter.utf8 = content
    reply = await clients.call(clients.vector.ListRecords, asked)
    return Json(page_to_json([record_to_json(record) for record in reply.records], reply.next_page_token))


@router.delete("", response_model=Deleted)
async def delete_listed_records(
    request: Request,
    access: Editor,
    collection_id: CollectionId,
    ids: Annotated[list[str] | None, Query(max_length=200, description="Ids; may be repeated.")] = None,
    filter_text: FilterText = None,
) -> Response:
    """Delete records by id, by filter, or those that fit both."""
    content = filter_bytes(filter_text)
    if not ids and content is None:
        message = "Say which records: `ids`, `filter` or both. To delete all, delete the collection."
        raise InvalidArgumentError(message, violations=(Violation("MISSING", "give ids or filter", "ids"),))
    asked = pb.DeleteRecordsRequest(project_id=access.project_id, collection=collection_id, ids=ids or ())
    if content is not None:
        asked.filter.utf8 = content
    return Json({"deleted": await _delete(request, asked)})


@router.post("/delete", response_model=Deleted)
async def delete_records(
    request: Request, access: Editor, collection_id: CollectionId, body: DeleteRecordsInput
) -> Response:
    """Delete records by id, by filter, or those that fit both. Repeating it changes nothing."""
    asked = pb.DeleteRecordsRequest(project_id=access.project_id, collection=collection_id, ids=body.ids or ())
    if body.filter is not None:
        asked.filter.CopyFrom(json_to_proto(body.filter))
    return Json({"deleted": await _delete(request, asked)})


@router.get("/{record_id}", response_model=RecordWithVector, response_model_exclude_unset=True)
async def get_record(
    request: Request,
    access: Viewer,
    collection_id: CollectionId,
    record_id: RecordId,
    include_vector: Annotated[bool, Query(description="Give the vector too.")] = False,
) -> Response:
    """Get a record."""
    clients = clients_of(request)
    asked = pb.GetRecordRequest(
        project_id=access.project_id, collection=collection_id, record_id=record_id, include_vector=include_vector
    )
    reply = await clients.call(clients.vector.GetRecord, asked)
    return Json(record_to_json(reply.record, with_vector=include_vector))


@router.delete("/{record_id}", status_code=204)
async def delete_record(request: Request, access: Editor, collection_id: CollectionId, record_id: RecordId) -> Response:
    """Delete a record."""
    asked = pb.DeleteRecordsRequest(project_id=access.project_id, collection=collection_id, ids=[record_id])
    if not await _delete(request, asked):
        raise NotFoundError("There is no record of that id in the collection.", reason="RECORD_NOT_FOUND")
    return Response(status_code=204)


async def _delete(request: Request, asked: pb.DeleteRecordsRequest) -> int:
    clients = clients_of(request)
    return (await clients.call(clients.vector.DeleteRecords, asked)).deleted
