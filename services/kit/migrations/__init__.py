"""The one Alembic environment (`env.py`, run by Alembic, not imported). Revisions live with their services."""
