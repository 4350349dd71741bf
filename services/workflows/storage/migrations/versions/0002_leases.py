"""How long executors may rely on a workflow's published versions."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; a NULL is no lease, which is what rows have so far."""
    op.execute("ALTER TABLE workflows.workflows ADD COLUMN leased_until timestamptz")
