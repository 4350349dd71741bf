"""Tables of the schema `workflows`, as the queries see them. The revisions in `migrations/` make them."""

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
)

metadata = MetaData(
    schema="workflows",
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
    },
)


def _now(name: str) -> Column[object]:
    return Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=func.now())


workflows = Table(
    "workflows",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("project_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default="1"),
    # The draft as JSON text, whole: drafts are read and written whole, and text keeps the author's order of keys, which
    # jsonb would not.
    Column("draft", Text, nullable=False),
    # 0 = nothing published.
    Column("latest_version", Integer, nullable=False, server_default="0"),
    # The versions that a run resolves to without looking further. The draft's is NULL until a run freezes it, and again
    # after each change. No foreign keys: versions refer to workflows already.
    Column("latest_version_id", Uuid),
    Column("draft_version_id", Uuid),
    # Until when executors may start runs of published versions without asking; NULL = nobody ever asked for that.
    Column("leased_until", TIMESTAMP(timezone=True)),
    # Of the create call, to tell a repetition from a reuse; NULL without an idempotency key.
    Column("request_hash", LargeBinary),
    _now("created_at"),
    _now("updated_at"),
    Column("deleted_at", TIMESTAMP(timezone=True)),
)
Index(
    "workflows_project_id_name_key",
    workflows.c.project_id,
    workflows.c.name,
    unique=True,
    postgresql_where=workflows.c.deleted_at.is_(None),
)
Index(
    "workflows_project_id_created_at_id_idx",
    workflows.c.project_id,
    workflows.c.created_at,
    workflows.c.id,
    postgresql_where=workflows.c.deleted_at.is_(None),
)

# Immutable: rows are inserted and read, never changed.
workflow_versions = Table(
    "workflow_versions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("workflow_id", Uuid, ForeignKey(workflows.c.id), nullable=False),
    Column("project_id", Uuid, nullable=False),
    # NULL = unnamed: a draft that a run has frozen.
    Column("number", Integer),
    # Hex (domain/definition_json.py).
    Column("content_hash", Text, nullable=False),
    Column("definition", Text, nullable=False),
    Column("workflow_name", Text, nullable=False),
    Column("note", Text, nullable=False),
    _now("created_at"),
)
Index(
    "workflow_versions_workflow_id_number_key", workflow_versions.c.workflow_id, workflow_versions.c.number, unique=True
)
Index(
    "workflow_versions_workflow_id_content_hash_key",
    workflow_versions.c.workflow_id,
    workflow_versions.c.content_hash,
    unique=True,
    postgresql_where=workflow_versions.c.number.is_(None),
)

# Idempotency keys of calls that made a node or edge; the id is that of the node or edge.
element_requests = Table(
    "element_requests",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("workflow_id", Uuid, ForeignKey(workflows.c.id), nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    _now("created_at"),
)
Index("element_requests_workflow_id_created_at_idx", element_requests.c.workflow_id, element_requests.c.created_at)
