"""Workflows, their versions, and the idempotency keys of nodes and edges."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; `services/workflows/storage/tables.py` says what each column means."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    """
    CREATE TABLE workflows.workflows (
        id uuid CONSTRAINT workflows_pkey PRIMARY KEY,
        project_id uuid NOT NULL,
        name text NOT NULL,
        description text NOT NULL,
        revision bigint NOT NULL DEFAULT 1,
        draft text NOT NULL,
        latest_version integer NOT NULL DEFAULT 0,
        latest_version_id uuid,
        draft_version_id uuid,
        request_hash bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz
    )
    """,
    """
    CREATE UNIQUE INDEX workflows_project_id_name_key
        ON workflows.workflows (project_id, name) WHERE deleted_at IS NULL
    """,
    """
    CREATE INDEX workflows_project_id_created_at_id_idx
        ON workflows.workflows (project_id, created_at, id) WHERE deleted_at IS NULL
    """,
    """
    CREATE TABLE workflows.workflow_versions (
        id uuid CONSTRAINT workflow_versions_pkey PRIMARY KEY,
        workflow_id uuid NOT NULL
            CONSTRAINT workflow_versions_workflow_id_fkey REFERENCES workflows.workflows (id),
        project_id uuid NOT NULL,
        number integer,
        content_hash text NOT NULL,
        definition text NOT NULL,
        workflow_name text NOT NULL,
        note text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE UNIQUE INDEX workflow_versions_workflow_id_number_key
        ON workflows.workflow_versions (workflow_id, number)
    """,
    """
    CREATE UNIQUE INDEX workflow_versions_workflow_id_content_hash_key
        ON workflows.workflow_versions (workflow_id, content_hash) WHERE number IS NULL
    """,
    """
    CREATE TABLE workflows.element_requests (
        id uuid CONSTRAINT element_requests_pkey PRIMARY KEY,
        workflow_id uuid NOT NULL
            CONSTRAINT element_requests_workflow_id_fkey REFERENCES workflows.workflows (id),
        request_hash bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE INDEX element_requests_workflow_id_created_at_idx
        ON workflows.element_requests (workflow_id, created_at)
    """,
)
