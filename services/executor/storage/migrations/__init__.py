"""Revisions of the schemas `executor` and `project_tables`."""
