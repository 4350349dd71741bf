"""`vector_upsert`: writes records into a collection."""

from typing import Annotated, Any

import orjson
from headrace.common.v1 import value_pb2
from headrace.vector.v1 import vector_pb2, vector_service_pb2
from pydantic import ConfigDict, Field, model_validator

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result, TerminalError
from services.executor.handlers.clients import Services
from services.executor.handlers.lists import one_or_more
from services.executor.handlers.vectors import pack_vector
from services.kit.ids import derived_id

_BATCH = 1000
"""What VectorService.UpsertRecords takes at once; each batch is all or nothing."""


class RecordConfig(ConfigModel):
    """One record."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["text"]}, {"required": ["vector"]}]})

    id: str | None = Field(
        None, min_length=1, max_length=256, title="Id", description="Replaces the record with this id. Absent = new."
    )
    text: str | None = Field(None, title="Text", description="Embedded with the collection's model.")
    vector: list[float] | None = Field(None, title="Vector", description="Taken as it is, instead of embedding.")
    metadata: dict[str, Any] = Field(default_factory=dict, title="Metadata", description="Found by filters.")

    @model_validator(mode="after")
    def _has_content(self) -> "RecordConfig":
        if self.text is None and self.vector is None:
            raise ValueError("a record needs `text` or `vector`")
        return self


class VectorUpsertConfig(ConfigModel):
    """Where to write what."""

    collection: str = Field(min_length=1, title="Collection", description="Name or id of a collection.")
    records: Annotated[list[RecordConfig], one_or_more(RecordConfig)] = Field(
        title="Records", description="Records to write; one alone is taken too."
    )


class VectorUpsertOutput(ConfigModel):
    """What was written."""

    upserted: int = Field(title="Written", description="Number of records.")


async def vector_upsert(context: Context, config: VectorUpsertConfig) -> Result:
    """Write in batches. Ids made here are the same at every attempt, so a repetition changes nothing."""
    services: Services = context.services
    records = [_record(context, index, record) for index, record in enumerate(config.records)]
    upserted = 0
    for batch, start in enumerate(range(0, len(records), _BATCH)):
        request = vector_service_pb2.UpsertRecordsRequest(
            project_id=context.project_id,
            collection=config.collection,
            records=records[start : start + _BATCH],
            request_id=f"{context.idempotency_key}:{batch}",
        )
        answer = await services.call(context, services.vector.UpsertRecords, request)
        upserted += len(answer.ids)
    return Result({"upserted": upserted})


def _record(context: Context, index: int, record: RecordConfig) -> vector_pb2.Record:
    made = str(derived_id(context.project_id, "record", f"{context.idempotency_key}:{index}"))
    try:
        vector = pack_vector(record.vector) if record.vector else b""
    except OverflowError as error:
        raise TerminalError(
            "INVALID_VECTOR", f"`records[{index}].vector` holds a number beyond the range of float32."
        ) from error
    return vector_pb2.Record(
        id=record.id or made,
        text=record.text or "",
        vector=vector,
        metadata=value_pb2.Json(utf8=orjson.dumps(record.metadata)),
    )


VECTOR_UPSERT = NodeType(
    name="vector_upsert",
    title="Write to collection",
    help="Writes records into a collection, embedding their texts.",
    icon="database-zap",
    category="data",
    config=VectorUpsertConfig,
    output=VectorUpsertOutput,
    handler=vector_upsert,
    default_timeout_seconds=120.0,
    effect="idempotent",
)
