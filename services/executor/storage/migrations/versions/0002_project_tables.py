"""Projects' own tables, and the effects that have happened to them."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables; `services/executor/storage/project_tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    # Created only where it is missing, because that needs a right that the role may not have.
    """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'project_tables') THEN
            CREATE SCHEMA project_tables;
        END IF;
    END $$
    """,
    """
    CREATE TABLE executor.project_tables (
        project_id uuid NOT NULL,
        name text NOT NULL,
        id uuid NOT NULL CONSTRAINT project_tables_id_key UNIQUE,
        columns jsonb NOT NULL,
        key jsonb NOT NULL,
        request_hash bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT project_tables_pkey PRIMARY KEY (project_id, name)
    )
    """,
    """
    CREATE TABLE executor.effects (
        project_id uuid NOT NULL,
        key text NOT NULL,
        result bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT effects_pkey PRIMARY KEY (project_id, key)
    )
    """,
)
