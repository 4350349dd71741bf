"""Deterministic simulation of the execution code. See README.md."""
