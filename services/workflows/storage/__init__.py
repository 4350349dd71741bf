"""PostgreSQL: the schema `workflows`."""
