"""An index to find the effects that are old enough to be removed."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the index."""
    op.execute("CREATE INDEX effects_created_at_idx ON executor.effects (created_at)")
