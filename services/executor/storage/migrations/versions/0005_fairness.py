"""Priorities, limits of projects and workflows, places for what runs, and who takes part: executors, workers' slots."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Change the tables; `services/executor/storage/tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    "ALTER TABLE executor.runs ADD COLUMN priority smallint NOT NULL DEFAULT 0, ADD COLUMN concurrency_key text",
    """
    ALTER TABLE executor.node_executions
        ADD COLUMN project_id uuid, ADD COLUMN priority smallint NOT NULL DEFAULT 0
    """,
    """
    UPDATE executor.node_executions AS n SET project_id = r.project_id FROM executor.runs r
    WHERE r.id = n.run_id AND r.status < 4 AND n.status IN (1, 2, 3, 4)
    """,
    """
    CREATE INDEX node_executions_ready_idx
        ON executor.node_executions (project_id, queue, priority DESC, queued_at) WHERE status = 2
    """,
    "DROP INDEX executor.node_executions_open_idx",
    "CREATE INDEX node_executions_open_idx ON executor.node_executions (status, due_at) WHERE status IN (3, 4)",
    "CREATE INDEX runs_open_idx ON executor.runs (project_id) WHERE status < 4",
    """
    CREATE INDEX runs_pending_idx ON executor.runs (workflow_id, concurrency_key, created_at) WHERE status = 1
    """,
    """
    CREATE TABLE executor.project_limits (
        project_id uuid CONSTRAINT project_limits_pkey PRIMARY KEY,
        weight smallint NOT NULL DEFAULT 1,
        own jsonb NOT NULL DEFAULT '{}',
        ceilings jsonb NOT NULL DEFAULT '{}'
    )
    """,
    """
    CREATE TABLE executor.places (
        run_id uuid NOT NULL,
        node_key text NOT NULL,
        item_path text NOT NULL,
        scope text NOT NULL,
        taken_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT places_pkey PRIMARY KEY (run_id, node_key, item_path, scope)
    )
    """,
    "CREATE INDEX places_scope_idx ON executor.places (scope)",
    """
    CREATE TABLE executor.executors (
        id text CONSTRAINT executors_pkey PRIMARY KEY,
        lease_until timestamptz NOT NULL
    )
    """,
    """
    ALTER TABLE executor.workers
        ADD COLUMN slots integer NOT NULL DEFAULT 0, ADD COLUMN queues text[] NOT NULL DEFAULT '{}'
    """,
)
