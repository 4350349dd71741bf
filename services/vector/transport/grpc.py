"""The VectorService of the contract, headrace.vector.v1: each method converts, calls the domain, converts."""

from collections.abc import Callable
from uuid import UUID

from headrace.vector.v1 import vector_service_pb2 as pb
from headrace.vector.v1.vector_pb2 import Collection as CollectionMessage
from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceServicer

from services.kit.grpc_server import Context
from services.kit.ids import parse_id, request_hash
from services.kit.paging import page_size
from services.vector.domain.collections import Collections
from services.vector.domain.model import Collection
from services.vector.domain.records import Records
from services.vector.domain.search import Search
from services.vector.transport import convert

SERVICE = "headrace.vector.v1.VectorService"
GRANT_METHODS = (f"/{SERVICE}/Search", f"/{SERVICE}/UpsertRecords")
"""What a worker may call with the grant of its claim."""

# Calls further on end a little before the caller gives up, so that it learns which part was slow.
_DEADLINE_SHARE = 0.95


class VectorServicer(VectorServiceServicer):
    """Answers the calls."""

    def __init__(
        self, collections: Collections, records: Records, search: Search, is_loading: Callable[[UUID], bool]
    ) -> None:
        self._collections = collections
        self._records = records
        self._search = search
        self._is_loading = is_loading

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        content = pb.CreateCollectionRequest()
        content.CopyFrom(request)
        content.request_id = ""
        collection = await self._collections.create(
            _project(request.project_id),
            name=request.name,
            embedding_model=request.embedding_model,
            dimension=request.dimension,
            metric=convert.metric_from_proto(request.metric),
            index=convert.index_from_proto(request.index),
            request_id=request.request_id,
            request_hash=request_hash(content.SerializeToString(deterministic=True)),
            timeout_seconds=_timeout(context),
        )
        return pb.CreateCollectionResponse(collection=self._message(collection))

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        collection = await self._collections.get(_project(request.project_id), request.collection)
        return pb.GetCollectionResponse(collection=self._message(collection))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        size = page_size(request.page_size)
        before = convert.collections_place(request.page_token)
        found = await self._collections.list(_project(request.project_id), size=size + 1, before=before)
        return pb.ListCollectionsResponse(
            collections=[self._message(collection) for collection in found[:size]],
            next_page_token=convert.collections_token(found[size - 1]) if len(found) > size else "",
        )

    async def UpdateCollection(
        self, request: pb.UpdateCollectionRequest, context: Context
    ) -> pb.UpdateCollectionResponse:
        collection = await self._collections.update(
            _project(request.project_id),
            request.collection,
            revision=request.revision,
            name=request.name if request.HasField("name") else None,
            ef_search=request.ef_search if request.HasField("ef_search") else None,
        )
        return pb.UpdateCollectionResponse(collection=self._message(collection))

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        await self._collections.delete(_project(request.project_id), request.collection, revision=request.revision)
        return pb.DeleteCollectionResponse()

    async def UpsertRecords(self, request: pb.UpsertRecordsRequest, context: Context) -> pb.UpsertRecordsResponse:
        ids = await self._records.upsert(
            _project(request.project_id),
            request.collection,
            convert.records_from_proto(list(request.records)),
            request_id=request.request_id,
            timeout_seconds=_timeout(context),
        )
        return pb.UpsertRecordsResponse(ids=ids)

    async def GetRecord(self, request: pb.GetRecordRequest, context: Context) -> pb.GetRecordResponse:
        record = await self._records.get(_project(request.project_id), request.collection, request.record_id)
        return pb.GetRecordResponse(record=convert.record_to_proto(record, include_vector=request.include_vector))

    async def ListRecords(self, request: pb.ListRecordsRequest, context: Context) -> pb.ListRecordsResponse:
        size = page_size(request.page_size)
        found = await self._records.list(
            _project(request.project_id),
            request.collection,
            size=size + 1,
            after=convert.records_place(request.page_token),
            only=convert.filter_from_proto(request.filter),
        )
        return pb.ListRecordsResponse(
            records=[convert.record_to_proto(record) for record in found[:size]],
            next_page_token=convert.records_token(found[size - 1]) if len(found) > size else "",
        )

    async def DeleteRecords(self, request: pb.DeleteRecordsRequest, context: Context) -> pb.DeleteRecordsResponse:
        deleted = await self._records.delete(
            _project(request.project_id),
            request.collection,
            ids=list(request.ids),
            only=convert.filter_from_proto(request.filter),
        )
        return pb.DeleteRecordsResponse(deleted=deleted)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        matches = await self._search.search(
            _project(request.project_id),
            request.collection,
            convert.query_from_proto(request),
            timeout_seconds=_timeout(context),
        )
        return pb.SearchResponse(matches=[convert.match_to_proto(match) for match in matches])

    def _message(self, collection: Collection) -> CollectionMessage:
        return convert.collection_to_proto(collection, is_loading=self._is_loading(collection.data_id))


def _project(text: str) -> UUID:
    return parse_id(text, resource="project")


def _timeout(context: Context) -> float:
    """Seconds that calls to other services may take: most of what the caller waits."""
    return (context.time_remaining() or 0.0) * _DEADLINE_SHARE
