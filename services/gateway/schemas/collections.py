"""Bodies of collections and their records."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from services.gateway.schemas.common import INT64_MAX, Input, JsonObject, Name, Output, Page, optional

FLOAT32_MAX = 3.4028234663852886e38

Metric = Literal["cosine", "l2", "ip"]
Number = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
Vector = Annotated[list[Number], Field(min_length=1, max_length=4096)]
RecordId = Annotated[str, Field(min_length=1, max_length=256)]
EXAMPLE_FILTER: JsonValue = {"and": [{"field": "lang", "op": "eq", "value": "de"}]}


class IndexInput(Input):
    """How a collection is searched."""

    type: Literal["flat", "hnsw"] = Field("flat", description="flat = exact; hnsw = approximate, for many records.")
    m: int | None = Field(None, ge=4, le=64, description="HNSW: neighbours per vector; null = 32.")
    ef_construction: int | None = Field(None, ge=16, le=500, description="HNSW: breadth while building; null = 200.")
    ef_search: int | None = Field(None, ge=16, le=1000, description="HNSW: breadth while searching; null = 64.")


class CollectionInput(Input):
    """A new collection."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "docs", "metric": "cosine"}})
    name: Name
    embedding_model: str | None = Field(
        None, max_length=256, description="Embeds texts. null without a dimension = the default model."
    )
    dimension: int | None = Field(
        None, ge=1, le=4096, description="Length of the vectors; alone = a collection that takes vectors only."
    )
    metric: Metric = "cosine"
    index: IndexInput | None = Field(None, description="null = flat.")


class IndexPatch(Input):
    """What can be changed of an index."""

    ef_search: int = optional("HNSW: breadth while searching.", ge=16, le=1000)


class CollectionPatch(Input):
    """What to change of a collection."""

    model_config = ConfigDict(json_schema_extra={"example": {"index": {"ef_search": 128}}})
    name: Name = optional("New name.")
    index: IndexPatch = optional("New search parameters.")


class Index(Output):
    """How a collection is searched."""

    type: Literal["flat", "hnsw"]
    m: int | None
    ef_construction: int | None
    ef_search: int | None


class Collection(Output):
    """Records that are searched together."""

    id: str
    name: str
    embedding_model: str | None
    dimension: int
    metric: Metric
    index: Index
    record_count: int
    status: Literal["ready", "loading"]
    revision: int
    created_at: str
    updated_at: str


class CollectionPage(Page):
    """A page of collections, newest first."""

    items: list[Collection]


class RecordInput(Input):
    """A record to write."""

    id: RecordId | None = Field(None, description="null = one is made.")
    text: str | None = Field(None, max_length=1_000_000, description="Embedded unless a vector is given.")
    vector: Vector | None = None
    metadata: JsonObject = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.text is None and self.vector is None:
            raise ValueError("a record needs a text or a vector")
        return self


class RecordsInput(Input):
    """Records to write: those with a known id are replaced."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"records": [{"id": "intro", "text": "Headrace runs workflows.", "metadata": {"lang": "en"}}]}
        }
    )
    records: list[RecordInput] = Field(min_length=1, max_length=1000)


class Upserted(Output):
    """What was written; searchable now."""

    ids: list[str] = Field(description="In the order of the request.")
    upserted: int


class DeleteRecordsInput(Input):
    """Which records to delete: those that fit all that is given."""

    model_config = ConfigDict(json_schema_extra={"example": {"ids": ["intro"]}})
    ids: list[RecordId] | None = Field(None, max_length=1000)
    filter: JsonObject | None = Field(None, examples=[EXAMPLE_FILTER])

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        if not self.ids and self.filter is None:
            raise ValueError("give ids, a filter or both")
        return self


class Deleted(Output):
    """How many were deleted."""

    deleted: int = Field(le=INT64_MAX)


class SearchInput(Input):
    """A query."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"text": "What runs workflows?", "top_k": 3, "filter": EXAMPLE_FILTER}}
    )
    text: str | None = Field(None, min_length=1, max_length=100_000, description="Embedded by the collection's model.")
    vector: Vector | None = None
    top_k: int = Field(10, ge=1, le=100)
    filter: JsonObject | None = None
    min_score: Number | None = Field(None, description="Leave out lower scores.")

    @model_validator(mode="after")
    def _has_one_query(self) -> Self:
        if (self.text is None) == (self.vector is None):
            raise ValueError("give either text or vector")
        return self


class Match(Output):
    """A record found."""

    id: str
    score: float = Field(description="Higher is nearer, whatever the metric.")
    text: str
    metadata: JsonObject


class SearchResults(Output):
    """What was found, nearest first."""

    results: list[Match]


class Record(Output):
    """A record."""

    id: str
    text: str
    metadata: JsonObject
    updated_at: str


class RecordWithVector(Record):
    """A record with its vector, where that was asked for."""

    vector: list[float] | None = None


class RecordPage(Page):
    """A page of records, by id."""

    items: list[Record]
