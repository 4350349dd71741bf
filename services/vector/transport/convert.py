"""Messages of the contract <-> the domain's nouns, and the checks of form that need no row."""

from datetime import datetime
from uuid import UUID

import orjson
from google.protobuf.timestamp_pb2 import Timestamp
from headrace.common.v1.value_pb2 import Json
from headrace.vector.v1 import vector_pb2 as messages
from headrace.vector.v1 import vector_service_pb2 as requests

from services.kit import strict_json
from services.kit.errors import InvalidArgumentError, Violation
from services.kit.filters import Filter, parse_filter
from services.kit.paging import decode_page_token, encode_page_token, page_token_error
from services.vector.domain.model import (
    MAX_FILTER_BYTES,
    MAX_METADATA_BYTES,
    Collection,
    IndexConfig,
    IndexType,
    Match,
    Metric,
    Record,
)
from services.vector.domain.search import Query

_METRICS = {
    messages.METRIC_UNSPECIFIED: Metric.COSINE,
    messages.METRIC_COSINE: Metric.COSINE,
    messages.METRIC_L2: Metric.L2,
    messages.METRIC_IP: Metric.IP,
}
_METRICS_OUT = {metric: number for number, metric in _METRICS.items()}
_TYPES = {
    messages.INDEX_TYPE_UNSPECIFIED: IndexType.FLAT,
    messages.INDEX_TYPE_FLAT: IndexType.FLAT,
    messages.INDEX_TYPE_HNSW: IndexType.HNSW,
}
_TYPES_OUT = {kind: number for number, kind in _TYPES.items()}


def metric_from_proto(value: messages.Metric.ValueType) -> Metric:
    """The metric; cosine when unspecified. Raises InvalidArgumentError for a number of a later contract."""
    if value not in _METRICS:
        raise _unknown("metric", "cosine, l2 or ip")
    return _METRICS[value]


def index_from_proto(message: messages.IndexConfig) -> IndexConfig:
    """The index, with the zeros that stand for defaults. Raises InvalidArgumentError for an unknown type."""
    if message.type not in _TYPES:
        raise _unknown("index.type", "flat or hnsw")
    return IndexConfig(_TYPES[message.type], message.m, message.ef_construction, message.ef_search)


def collection_to_proto(collection: Collection, *, is_loading: bool) -> messages.Collection:
    """The collection and whether searches of it wait for its index here."""
    index = collection.index
    is_graph = index.type is IndexType.HNSW
    return messages.Collection(
        id=str(collection.id),
        project_id=str(collection.project_id),
        name=collection.name,
        embedding_model=collection.embedding_model,
        dimension=collection.dimension,
        metric=_METRICS_OUT[collection.metric],
        index=messages.IndexConfig(
            type=_TYPES_OUT[index.type],
            m=index.m if is_graph else 0,
            ef_construction=index.ef_construction if is_graph else 0,
            ef_search=index.ef_search if is_graph else 0,
        ),
        record_count=collection.record_count,
        status=messages.COLLECTION_STATUS_LOADING if is_loading else messages.COLLECTION_STATUS_READY,
        revision=collection.revision,
        created_at=_time(collection.created_at),
        updated_at=_time(collection.updated_at),
    )


def records_from_proto(items: "list[messages.Record]") -> list[Record]:
    """Records to write. Raises InvalidArgumentError for metadata that is no object or too large, all at once."""
    records: list[Record] = []
    violations: list[Violation] = []
    for number, item in enumerate(items):
        metadata = b"{}"
        if item.metadata.utf8:
            try:
                metadata = _metadata(item.metadata.utf8)
            except InvalidArgumentError as error:
                violations.append(Violation("INVALID_METADATA", error.message, f"records[{number}].metadata"))
        records.append(Record(id=item.id, text=item.text, vector=item.vector, metadata=metadata))
    if violations:
        first = violations[0]
        raise InvalidArgumentError(f"`{first.path}`: {first.message}", violations=tuple(violations[:100]))
    return records


def record_to_proto(record: Record, *, include_vector: bool = False) -> messages.Record:
    """A record that was read."""
    message = messages.Record(
        id=record.id,
        text=record.text,
        vector=record.vector if include_vector else b"",
        metadata=Json(utf8=record.metadata),
    )
    if record.updated_at is not None:
        message.updated_at.FromDatetime(record.updated_at)
    return message


def match_to_proto(match: Match) -> messages.Match:
    """A match, without its vector."""
    return messages.Match(record=record_to_proto(match.record), score=match.score)


def query_from_proto(request: requests.SearchRequest) -> Query:
    """What to search for. Raises InvalidArgumentError for a filter that cannot be read."""
    kind = request.WhichOneof("query")
    return Query(
        text=request.text if kind == "text" else None,
        vector=request.vector if kind == "vector" else None,
        top_k=request.top_k,
        only=filter_from_proto(request.filter),
        min_score=request.min_score if request.HasField("min_score") else None,
    )


def filter_from_proto(message: Json) -> Filter | None:
    """The filter; None when it is absent. Raises InvalidArgumentError."""
    if not message.utf8:
        return None
    return parse_filter(strict_json.loads(message.utf8, max_bytes=MAX_FILTER_BYTES))


def collections_place(token: str) -> tuple[datetime, UUID] | None:
    """Where a page of collections starts. Raises InvalidArgumentError."""
    place = decode_page_token(token, length=2)
    if place is None:
        return None
    try:
        created_at, collection_id = datetime.fromisoformat(place[0]), UUID(place[1])
    except (TypeError, ValueError, AttributeError) as error:
        raise page_token_error() from error
    if created_at.tzinfo is None:
        raise page_token_error()
    return created_at, collection_id


def collections_token(last: Collection) -> str:
    """The token of the page after a collection."""
    return encode_page_token([last.created_at.isoformat(), str(last.id)])


def records_place(token: str) -> str | None:
    """The id after which a page of records starts. Raises InvalidArgumentError."""
    place = decode_page_token(token, length=1)
    if place is None:
        return None
    if not isinstance(place[0], str) or "\0" in place[0]:
        raise page_token_error()
    return place[0]


def records_token(last: Record) -> str:
    """The token of the page after a record."""
    return encode_page_token([last.id])


def _metadata(utf8: bytes) -> bytes:
    value = strict_json.loads(utf8, max_bytes=MAX_METADATA_BYTES)
    if not isinstance(value, dict):
        raise InvalidArgumentError("Metadata is a JSON object.")
    # Written anew: what is kept is what was checked.
    return orjson.dumps(value)


def _time(value: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(value)
    return message


def _unknown(path: str, known: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"`{path}` must be {known}.", violations=(Violation("UNKNOWN_VALUE", f"must be {known}", path),)
    )
