"""Collections, and searches in them. A path takes a collection's id or its name."""

from typing import Annotated

from fastapi import Path
from headrace.vector.v1 import vector_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Editor,
    ExpectedRevision,
    IdempotencyKey,
    PageSize,
    PageToken,
    Viewer,
    clients_of,
    etag,
    gateway_of,
)
from services.gateway.convert.collections import (
    METRICS,
    collection_to_json,
    index_to_proto,
    match_to_json,
    vector_to_proto,
)
from services.gateway.convert.common import json_to_proto, page_to_json
from services.gateway.routing import Json, new_router
from services.gateway.schemas.collections import (
    Collection,
    CollectionInput,
    CollectionPage,
    CollectionPatch,
    SearchInput,
    SearchResults,
)

router = new_router("/api/v1/collections", "collections")

CollectionId = Annotated[str, Path(description="Id or name.", max_length=128)]


@router.post("/{collection_id}/search", response_model=SearchResults)
async def search_collection(
    request: Request, access: Viewer, collection_id: CollectionId, body: SearchInput
) -> Response:
    """Find the nearest records. Every upsert that was answered before is seen."""
    gateway = gateway_of(request)
    asked = pb.SearchRequest(project_id=access.project_id, collection=collection_id, top_k=body.top_k)
    if body.text is not None:
        asked.text = body.text
    elif body.vector is not None:
        asked.vector = vector_to_proto(body.vector)
    if body.filter is not None:
        asked.filter.CopyFrom(json_to_proto(body.filter))
    if body.min_score is not None:
        asked.min_score = body.min_score
    clients = gateway.clients
    reply = await clients.call(clients.vector.Search, asked, timeout=gateway.settings.upload_timeout_seconds)
    return Json({"results": [match_to_json(match) for match in reply.matches]})


@router.post("", status_code=201, response_model=Collection)
async def create_collection(
    request: Request, access: Editor, body: CollectionInput, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a collection."""
    clients = clients_of(request)
    asked = pb.CreateCollectionRequest(
        project_id=access.project_id,
        name=body.name,
        embedding_model=body.embedding_model or "",
        dimension=body.dimension or 0,
        metric=METRICS[body.metric],
        index=index_to_proto(body.index) if body.index else None,
        request_id=idempotency_key or "",
    )
    # The first use of an embedding model loads it.
    timeout = gateway_of(request).settings.upload_timeout_seconds
    reply = await clients.call(clients.vector.CreateCollection, asked, timeout=timeout)
    headers = {**etag(reply.collection.revision), "Location": f"/api/v1/collections/{reply.collection.id}"}
    return Json(collection_to_json(reply.collection), status_code=201, headers=headers)


@router.get("", response_model=CollectionPage)
async def list_collections(
    request: Request, access: Viewer, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List collections, newest first."""
    clients = clients_of(request)
    asked = pb.ListCollectionsRequest(project_id=access.project_id, page_size=page_size, page_token=page_token)
    reply = await clients.call(clients.vector.ListCollections, asked)
    items = [collection_to_json(collection) for collection in reply.collections]
    return Json(page_to_json(items, reply.next_page_token))


@router.get("/{collection_id}", response_model=Collection)
async def get_collection(request: Request, access: Viewer, collection_id: CollectionId) -> Response:
    """Get a collection."""
    clients = clients_of(request)
    asked = pb.GetCollectionRequest(project_id=access.project_id, collection=collection_id)
    reply = await clients.call(clients.vector.GetCollection, asked)
    return Json(collection_to_json(reply.collection), headers=etag(reply.collection.revision))


@router.patch("/{collection_id}", response_model=Collection)
async def update_collection(
    request: Request, access: Editor, collection_id: CollectionId, body: CollectionPatch, revision: ExpectedRevision
) -> Response:
    """Change a collection's name or search parameters."""
    clients = clients_of(request)
    asked = pb.UpdateCollectionRequest(project_id=access.project_id, collection=collection_id, revision=revision)
    if "name" in body.model_fields_set:
        asked.name = body.name
    if "index" in body.model_fields_set and "ef_search" in body.index.model_fields_set:
        asked.ef_search = body.index.ef_search
    reply = await clients.call(clients.vector.UpdateCollection, asked)
    return Json(collection_to_json(reply.collection), headers=etag(reply.collection.revision))


@router.delete("/{collection_id}", status_code=204)
async def delete_collection(
    request: Request, access: Editor, collection_id: CollectionId, revision: ExpectedRevision
) -> Response:
    """Delete a collection with all its records."""
    clients = clients_of(request)
    asked = pb.DeleteCollectionRequest(project_id=access.project_id, collection=collection_id, revision=revision)
    await clients.call(clients.vector.DeleteCollection, asked)
    return Response(status_code=204)
