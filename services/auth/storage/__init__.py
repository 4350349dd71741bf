"""Auth's state in PostgreSQL, schema `auth`."""
