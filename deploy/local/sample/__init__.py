"""The sample: real documents, a workflow that answers questions about them, and its runs, through the REST API."""

from deploy.local.sample.sample import run

__all__ = ["run"]
