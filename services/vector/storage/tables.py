"""Tables of the schema `vector`, as declared for the test that revisions agree with them. The queries are plain SQL."""

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="vector")


def _now(name: str) -> Column[object]:
    return Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=func.now())


def _number(name: str, default: int) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=str(default))


collections = Table(
    "collections",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", Uuid, nullable=False),
    # Of the records, the index in memory and its file: random, so that a collection made again under the id of a
    # deleted one (ids may come from an idempotency key) never meets what was the other's.
    Column("data_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    # Empty = takes vectors only.
    Column("embedding_model", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("metric", Text, nullable=False),
    Column("index_type", Text, nullable=False),
    Column("m", Integer, nullable=False),
    Column("ef_construction", Integer, nullable=False),
    Column("ef_search", Integer, nullable=False),
    # Number of the last change of records. Raised under the row's lock, so changes are committed in this order.
    _number("sequence", 0),
    # Deletions up to this change are no longer listed: an index that is older is rebuilt.
    _number("horizon", 0),
    # The next record made gets this or a higher number.
    _number("next_ordinal", 0),
    _number("record_count", 0),
    _number("revision", 1),
    Column("request_hash", LargeBinary),
    _now("created_at"),
    _now("updated_at"),
    UniqueConstraint("project_id", "name", name="collections_project_id_name_key"),
    UniqueConstraint("data_id", name="collections_data_id_key"),
    Index("collections_project_id_created_at_idx", "project_id", "created_at", "id"),
)

records = Table(
    "records",
    metadata,
    # No foreign key: the records of a deleted collection go in small steps, after the answer.
    Column("data_id", Uuid, primary_key=True),
    # Compared by bytes, whatever the language of the database.
    Column("id", Text(collation="C"), primary_key=True),
    Column("project_id", Uuid, nullable=False),
    # The record's number in the index; stays the same while the record lives, never used again.
    Column("ordinal", BigInteger, nullable=False),
    # The change that wrote it last.
    Column("sequence", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    # float32, little-endian, as given.
    Column("vector", LargeBinary, nullable=False),
    Column("metadata", JSONB, nullable=False),
    _now("updated_at"),
    UniqueConstraint("data_id", "ordinal", name="records_data_id_ordinal_key"),
    Index("records_data_id_sequence_idx", "data_id", "sequence", "ordinal"),
)

# What an index that was current at an earlier change has to forget.
deletions = Table(
    "deletions",
    metadata,
    Column("data_id", Uuid, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True),
    Column("project_id", Uuid, nullable=False),
    _now("deleted_at"),
    Index("deletions_deleted_at_idx", "deleted_at"),
)

# Deleted collections whose records and files are still to be removed.
dropped_data = Table(
    "dropped_data",
    metadata,
    Column("data_id", Uuid, primary_key=True),
    Column("project_id", Uuid, nullable=False),
    _now("dropped_at"),
)
