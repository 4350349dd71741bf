"""Revisions of the schema `vector`; how they are written and run: `services.kit.migrate`."""
