"""Answers to waits."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column; `services/executor/storage/tables.py` says what it means."""
    op.execute("ALTER TABLE executor.node_executions ADD COLUMN answer text")
