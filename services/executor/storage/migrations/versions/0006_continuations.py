"""Runs that have more to do than one transition does are found by the sweep."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the time and its index; `services/executor/storage/tables.py` says what it means."""
    op.execute("ALTER TABLE executor.runs ADD COLUMN continue_at timestamptz")
    op.execute("CREATE INDEX runs_continue_at_idx ON executor.runs (continue_at) WHERE continue_at IS NOT NULL")
