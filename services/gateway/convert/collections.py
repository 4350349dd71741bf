"""Collections, records and matches between REST and proto."""

import sys
from array import array
from collections.abc import Sequence
from typing import Any

from headrace.vector.v1 import vector_pb2

from services.gateway.convert.common import json_from_proto, json_to_proto, time_to_json
from services.gateway.schemas.collections import IndexInput, RecordInput

METRICS = {"cosine": vector_pb2.METRIC_COSINE, "l2": vector_pb2.METRIC_L2, "ip": vector_pb2.METRIC_IP}
_METRIC_NAMES = {number: name for name, number in METRICS.items()}
_INDEX_TYPES = {"flat": vector_pb2.INDEX_TYPE_FLAT, "hnsw": vector_pb2.INDEX_TYPE_HNSW}
_EMPTY: dict[str, Any] = {}


def vector_to_proto(numbers: Sequence[float]) -> bytes:
    """float32, little-endian."""
    packed = array("f", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def vector_from_proto(data: bytes) -> list[float]:
    """Numbers from float32, little-endian."""
    packed = array("f")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def index_to_proto(index: IndexInput) -> vector_pb2.IndexConfig:
    """An index; what is left out is 0, the service's default."""
    return vector_pb2.IndexConfig(
        type=_INDEX_TYPES[index.type],
        m=index.m or 0,
        ef_construction=index.ef_construction or 0,
        ef_search=index.ef_search or 0,
    )


def record_to_proto(record: RecordInput) -> vector_pb2.Record:
    """A record to write."""
    return vector_pb2.Record(
        id=record.id or "",
        text=record.text or "",
        vector=vector_to_proto(record.vector) if record.vector else b"",
        metadata=json_to_proto(record.metadata),
    )


def collection_to_json(collection: vector_pb2.Collection) -> dict[str, Any]:
    """A collection."""
    index = collection.index
    is_hnsw = index.type == vector_pb2.INDEX_TYPE_HNSW
    return {
        "id": collection.id,
        "name": collection.name,
        "embedding_model": collection.embedding_model or None,
        "dimension": collection.dimension,
        "metric": _METRIC_NAMES.get(collection.metric, "cosine"),
        "index": {
            "type": "hnsw" if is_hnsw else "flat",
            "m": (index.m or 32) if is_hnsw else None,
            "ef_construction": (index.ef_construction or 200) if is_hnsw else None,
            "ef_search": (index.ef_search or 64) if is_hnsw else None,
        },
        "record_count": collection.record_count,
        "status": "loading" if collection.status == vector_pb2.COLLECTION_STATUS_LOADING else "ready",
        "revision": collection.revision,
        "created_at": time_to_json(collection, "created_at"),
        "updated_at": time_to_json(collection, "updated_at"),
    }


def record_to_json(record: vector_pb2.Record, *, with_vector: bool = False) -> dict[str, Any]:
    """A record; its vector only where asked for."""
    body = {
        "id": record.id,
        "text": record.text,
        "metadata": json_from_proto(record.metadata, absent=_EMPTY),
        "updated_at": time_to_json(record, "updated_at"),
    }
    if with_vector:
        body["vector"] = vector_from_proto(record.vector)
    return body


def match_to_json(match: vector_pb2.Match) -> dict[str, Any]:
    """A record found."""
    return {
        "id": match.record.id,
        "score": match.score,
        "text": match.record.text,
        "metadata": json_from_proto(match.record.metadata, absent=_EMPTY),
    }
