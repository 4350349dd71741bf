"""Rows in PostgreSQL, schema `vector`; indexes in memory; their files."""
