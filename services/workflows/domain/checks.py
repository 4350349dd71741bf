"""Validation as the use cases call it: with the newest catalogue, and off the event loop."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from services.kit.errors import ConflictError, RevisionMismatchError, Violation
from services.workflows.domain.catalogue import NodeTypeCatalogue
from services.workflows.domain.definition import Definition
from services.workflows.domain.model import Workflow
from services.workflows.domain.validation import validate

ResultT = TypeVar("ResultT")

_LARGE_BYTES = 64 * 1024
"""A text of this size takes about a millisecond to read or write."""


async def off_loop(size: int, work: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Do work on a document of `size` bytes: small ones at once, large ones in a thread, so that other calls go on."""
    return work(*arguments) if size < _LARGE_BYTES else await asyncio.to_thread(work, *arguments)


def require_revision(workflow: Workflow, expected: int) -> None:
    """Raise RevisionMismatchError unless the revision is the expected one; 0 = any."""
    if expected and expected != workflow.revision:
        raise RevisionMismatchError(expected=expected, actual=workflow.revision)


def moved_on() -> ConflictError:
    """What to raise when a workflow changed again and again while it was being checked."""
    return ConflictError("The workflow was changed at the same time. Try again.")


class Checks:
    """Finds the issues of definitions."""

    def __init__(self, catalogue: NodeTypeCatalogue) -> None:
        self._catalogue = catalogue

    def require_types(self) -> None:
        """Raise UnavailableError while the node types were never read: to be asked before a change, not after it."""
        self._catalogue.node_types()

    async def issues(self, definition: Definition) -> tuple[Violation, ...]:
        """All issues. Raises UnavailableError while the node types were never read."""
        types = self._catalogue.node_types()
        issues = await asyncio.to_thread(validate, definition, types)
        if any(issue.code == "UNKNOWN_NODE_TYPE" for issue in issues):
            await self._catalogue.refresh()
            newer = self._catalogue.node_types()
            if newer is not types:
                issues = await asyncio.to_thread(validate, definition, newer)
        return tuple(issues)
