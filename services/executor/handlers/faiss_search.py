"""`faiss_search`: finds the records of a collection that are nearest to a text or a vector."""

from typing import Any

import orjson
from headrace.common.v1 import value_pb2
from headrace.vector.v1 import vector_service_pb2
from pydantic import ConfigDict, Field, model_validator

from services.executor.handlers.base import ConfigModel, Context, NodeType, Result, TerminalError
from services.executor.handlers.clients import Services
from services.executor.handlers.vectors import pack_vector, shortest


class FaissSearchConfig(ConfigModel):
    """Where to search, for what."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["query"]}, {"required": ["vector"]}]})

    collection: str = Field(min_length=1, title="Collection", description="Name or id of a collection.")
    query: str | None = Field(None, title="Query", description="Text to search for. Instead of `vector`.")
    vector: list[float] | None = Field(None, title="Vector", description="Vector to search for. Instead of `query`.")
    top_k: int = Field(5, ge=1, le=100, title="Results", description="Most records to return.")
    filter: dict[str, Any] | None = Field(
        None,
        title="Filter",
        description='Only records with this metadata, such as {"field": "lang", "op": "eq", "value": "de"}.',
    )
    min_score: float | None = Field(None, title="Least score", description="Leave out records with a lower score.")

    @model_validator(mode="after")
    def _one_query(self) -> "FaissSearchConfig":
        if (self.query is None) == (self.vector is None):
            raise ValueError("give `query` or `vector`, and not both")
        return self


class SearchResult(ConfigModel):
    """A record that was found."""

    id: str = Field(title="Id")
    score: float = Field(title="Score", description="Higher is nearer.")
    text: str = Field(title="Text")
    metadata: dict[str, Any] = Field(title="Metadata")


class FaissSearchOutput(ConfigModel):
    """What was found."""

    results: list[SearchResult] = Field(title="Results", description="Nearest first.")


async def faiss_search(context: Context, config: FaissSearchConfig) -> Result:
    """Search."""
    services: Services = context.services
    request = vector_service_pb2.SearchRequest(
        project_id=context.project_id,
        collection=config.collection,
        top_k=config.top_k,
        min_score=config.min_score,
    )
    if config.query is not None:
        request.text = config.query
    else:
        try:
            request.vector = pack_vector(config.vector or [])
        except OverflowError as error:
            raise TerminalError("INVALID_VECTOR", "`vector` holds a number beyond the range of float32.") from error
    if config.filter is not None:
        request.filter.CopyFrom(value_pb2.Json(utf8=orjson.dumps(config.filter)))
    answer = await services.call(context, services.vector.Search, request)
    results = [
        {
            "id": match.record.id,
            "score": shortest(match.score),
            "text": match.record.text,
            "metadata": orjson.loads(match.record.metadata.utf8) if match.record.metadata.utf8 else {},
        }
        for match in answer.matches
    ]
    return Result({"results": results})


FAISS_SEARCH = NodeType(
    name="faiss_search",
    title="Search collection",
    help="Finds the records of a collection nearest to a text or a vector.",
    icon="search",
    category="data",
    config=FaissSearchConfig,
    output=FaissSearchOutput,
    handler=faiss_search,
    effect="read",
)
