"""Revisions of the schema `auth`; how they are written and run: `services.kit.migrate`."""
