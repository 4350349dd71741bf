"""Versions, runs, node executions, events and workers."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; `services/executor/storage/tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


# A queue table lives on vacuum: it starts after 2% of changes and is not slowed down.
_QUEUE_STORAGE = "fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 2000"

_STATEMENTS = (
    """
    CREATE TABLE executor.versions (
        id uuid CONSTRAINT versions_pkey PRIMARY KEY,
        project_id uuid NOT NULL,
        workflow_id uuid NOT NULL,
        workflow_name text NOT NULL,
        number integer NOT NULL,
        definition bytea NOT NULL
    )
    """,
    f"""
    CREATE TABLE executor.runs (
        id uuid CONSTRAINT runs_pkey PRIMARY KEY,
        project_id uuid NOT NULL,
        workflow_id uuid NOT NULL,
        version_id uuid NOT NULL,
        version_number integer NOT NULL,
        workflow_name text NOT NULL,
        status smallint NOT NULL,
        version bigint NOT NULL,
        sequence bigint NOT NULL,
        input bytea NOT NULL,
        output bytea,
        error bytea,
        prompt_tokens bigint NOT NULL,
        completion_tokens bigint NOT NULL,
        model_calls integer NOT NULL,
        request_hash bytea,
        started_by uuid,
        traceparent text NOT NULL,
        timeout_seconds integer NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        deadline_at timestamptz NOT NULL,
        started_at timestamptz,
        finished_at timestamptz
    ) WITH ({_QUEUE_STORAGE})
    """,
    "CREATE INDEX runs_project_id_created_at_idx ON executor.runs (project_id, created_at, id)",
    "CREATE INDEX runs_workflow_id_created_at_idx ON executor.runs (workflow_id, created_at, id)",
    "CREATE INDEX runs_deadline_at_idx ON executor.runs (deadline_at) WHERE status < 4",
    f"""
    CREATE TABLE executor.node_executions (
        run_id uuid NOT NULL,
        node_key text NOT NULL,
        item_path text NOT NULL,
        type text NOT NULL,
        queue text NOT NULL,
        status smallint NOT NULL,
        epoch bigint NOT NULL,
        failures integer NOT NULL,
        claims integer NOT NULL,
        publications smallint NOT NULL,
        worker text NOT NULL,
        claim_id text NOT NULL,
        port text NOT NULL,
        input bytea,
        output bytea,
        error bytea,
        prompt_tokens bigint NOT NULL,
        completion_tokens bigint NOT NULL,
        model_calls integer NOT NULL,
        handler_seconds double precision,
        due_at timestamptz,
        queued_at timestamptz,
        started_at timestamptz,
        finished_at timestamptz,
        CONSTRAINT node_executions_pkey PRIMARY KEY (run_id, node_key, item_path)
    ) WITH ({_QUEUE_STORAGE})
    """,
    "CREATE INDEX node_executions_open_idx ON executor.node_executions (status, due_at) WHERE status IN (2, 3, 4)",
    """
    CREATE TABLE executor.run_events (
        run_id uuid NOT NULL,
        first_sequence bigint NOT NULL,
        events bytea NOT NULL,
        at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT run_events_pkey PRIMARY KEY (run_id, first_sequence)
    )
    """,
    """
    CREATE TABLE executor.workers (
        id text CONSTRAINT workers_pkey PRIMARY KEY,
        host text NOT NULL,
        draining smallint NOT NULL,
        started_at timestamptz NOT NULL,
        lease_until timestamptz NOT NULL
    )
    """,
)
