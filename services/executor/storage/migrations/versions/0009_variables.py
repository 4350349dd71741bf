"""Variables of projects, and of runs those of both kinds that they were accepted with; an index of waits by run."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table, the columns and the index; `services/executor/storage/tables.py` says what they mean."""
    for statement in _STATEMENTS:
        op.execute(statement)


_STATEMENTS = (
    """
    CREATE TABLE executor.project_variables (
        project_id uuid CONSTRAINT project_variables_pkey PRIMARY KEY,
        revision bigint NOT NULL DEFAULT 1,
        variables bytea NOT NULL
    )
    """,
    "ALTER TABLE executor.runs ADD COLUMN vars bytea, ADD COLUMN project_vars bytea",
    """
    CREATE INDEX node_executions_waits_idx ON executor.node_executions (run_id, node_key, item_path)
    WHERE status = 4 AND type IN ('approval', 'wait_for_event')
    """,
)
