"""Sub-workflows and reruns."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; `services/executor/storage/tables.py` says what each means."""
    op.execute("ALTER TABLE executor.runs ADD COLUMN links jsonb, ADD COLUMN rerun_of uuid, ADD COLUMN rerun bytea")
