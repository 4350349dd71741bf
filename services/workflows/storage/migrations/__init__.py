"""Revisions of the schema `workflows`."""
