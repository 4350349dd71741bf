"""Variables of projects, and of runs those of both kinds that they were accepted with."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table and the columns; `services/executor/storage/tables.py` says what they mean."""
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
)
