"""Large values once by content, retention by project, and the lists' indexes."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the tables; `services/executor/storage/tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    """
    CREATE TABLE executor.payloads (
        project_id uuid NOT NULL,
        hash bytea NOT NULL,
        data bytea NOT NULL,
        used_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT payloads_pkey PRIMARY KEY (project_id, hash)
    ) WITH (toast_tuple_target = 128)
    """,
    # Five times as fast as pglz; a server that was built without it keeps the default.
    """
    DO $$ BEGIN
        ALTER TABLE executor.payloads ALTER COLUMN data SET COMPRESSION lz4;
    EXCEPTION WHEN feature_not_supported THEN
        RAISE NOTICE 'this server has no lz4: payloads are compressed by its default method';
    END $$
    """,
    "CREATE INDEX payloads_used_at_idx ON executor.payloads (used_at)",
    """
    CREATE TABLE executor.run_payloads (
        run_id uuid NOT NULL,
        project_id uuid NOT NULL,
        hash bytea NOT NULL,
        CONSTRAINT run_payloads_pkey PRIMARY KEY (run_id, hash)
    )
    """,
    "CREATE INDEX run_payloads_hash_idx ON executor.run_payloads (hash, project_id)",
    """
    CREATE TABLE executor.retentions (
        project_id uuid CONSTRAINT retentions_pkey PRIMARY KEY,
        days integer NOT NULL CONSTRAINT retentions_days_check CHECK (days BETWEEN 1 AND 36500)
    )
    """,
    # What retention removes is cleared away in small pieces, too.
    "ALTER TABLE executor.run_events SET (autovacuum_vacuum_scale_factor = 0.05)",
    "ALTER TABLE executor.run_payloads SET (autovacuum_vacuum_scale_factor = 0.05)",
    "CREATE INDEX runs_rerun_of_idx ON executor.runs (rerun_of) WHERE rerun_of IS NOT NULL",
    "CREATE INDEX runs_status_idx ON executor.runs (project_id, status, created_at, id) WHERE status <> 4",
)
