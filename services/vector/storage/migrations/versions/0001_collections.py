"""Collections, their records, and the log of deletions."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; `services/vector/storage/tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    # Every write of records updates the collection's row: room in the page keeps those updates off the indexes.
    """
    CREATE TABLE vector.collections (
        id uuid CONSTRAINT collections_pkey PRIMARY KEY,
        project_id uuid NOT NULL,
        data_id uuid NOT NULL CONSTRAINT collections_data_id_key UNIQUE,
        name text NOT NULL,
        embedding_model text NOT NULL,
        dimension integer NOT NULL,
        metric text NOT NULL,
        index_type text NOT NULL,
        m integer NOT NULL,
        ef_construction integer NOT NULL,
        ef_search integer NOT NULL,
        sequence bigint NOT NULL DEFAULT 0,
        horizon bigint NOT NULL DEFAULT 0,
        next_ordinal bigint NOT NULL DEFAULT 0,
        record_count bigint NOT NULL DEFAULT 0,
        revision bigint NOT NULL DEFAULT 1,
        request_hash bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT collections_project_id_name_key UNIQUE (project_id, name)
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX collections_project_id_created_at_idx ON vector.collections (project_id, created_at, id)",
    """
    CREATE TABLE vector.records (
        data_id uuid NOT NULL,
        id text COLLATE "C" NOT NULL,
        project_id uuid NOT NULL,
        ordinal bigint NOT NULL,
        sequence bigint NOT NULL,
        text text NOT NULL,
        vector bytea NOT NULL,
        metadata jsonb NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT records_pkey PRIMARY KEY (data_id, id),
        CONSTRAINT records_data_id_ordinal_key UNIQUE (data_id, ordinal)
    )
    """,
    "CREATE INDEX records_data_id_sequence_idx ON vector.records (data_id, sequence, ordinal)",
    # Vectors do not compress; trying costs more than the insert.
    "ALTER TABLE vector.records ALTER COLUMN vector SET STORAGE EXTERNAL",
    """
    CREATE TABLE vector.deletions (
        data_id uuid NOT NULL,
        sequence bigint NOT NULL,
        ordinal bigint NOT NULL,
        project_id uuid NOT NULL,
        deleted_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT deletions_pkey PRIMARY KEY (data_id, sequence, ordinal)
    )
    """,
    "CREATE INDEX deletions_deleted_at_idx ON vector.deletions (deleted_at)",
    """
    CREATE TABLE vector.dropped_data (
        data_id uuid CONSTRAINT dropped_data_pkey PRIMARY KEY,
        project_id uuid NOT NULL,
        dropped_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)
