"""Versions in the form the engine runs: resolved by the workflows service once, kept here for their runs."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.executor.domain.model import Version, VersionSelector
from services.executor.domain.store import RunStore
from services.executor.engine.graph import Graph
from services.executor.engine.state import Linked
from services.kit.errors import FailedPreconditionError, NotFoundError

MAX_LINKS = 100
"""Versions that one run may call as sub-workflows."""
_CACHE_NODES = 500_000
"""Nodes of all cached graphs together; about 1 KB each."""
_OFTEN_SECONDS = 1.0
"""Whoever starts a workflow again within this time gets a lease."""
_MAX_ANSWERS = 10_000


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """What the workflows service says a selector means. `definition` is None when it is already known here."""

    id: UUID
    project_id: UUID
    workflow_id: UUID
    workflow_name: str
    number: int
    definition: bytes | None
    valid_seconds: float
    """How long the answer stays good, reckoned from before the question; 0 = it may be another one now."""


class Workflows(Protocol):
    """The workflows service."""

    async def find(self, project_id: UUID, name: str) -> UUID:
        """The id of the workflow with that name. Raises its error when there is none."""
        ...

    async def resolve(
        self, project_id: UUID, workflow_id: UUID, selector: VersionSelector, known: list[UUID], *, lease: bool
    ) -> ResolvedVersion:
        """The version to run; a draft is frozen first. Raises its errors: not found, invalid definition.

        With `lease` the service is asked to keep its answer good for a while.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a selector was said to mean; times by the monotonic clock."""

    version_id: UUID
    asked_at: float
    valid_until: float


class Versions:
    """Immutable versions by id, least recently used dropped first."""

    def __init__(self, store: RunStore, workflows: Workflows, make_graph: Callable[[bytes], Graph]) -> None:
        self._store = store
        self._workflows = workflows
        self._make_graph = make_graph
        self._cache: OrderedDict[UUID, Version] = OrderedDict()
        self._nodes = 0
        self._answers: OrderedDict[tuple[UUID, UUID, VersionSelector], _Answer] = OrderedDict()

    async def resolve(self, project_id: UUID, workflow_id: UUID, selector: VersionSelector) -> Version:
        """The version that a run shall use, stored here before the run is.

        Never older than what was published, edited or deleted before this was called: without a lease the service is
        asked, and while one lasts nothing is published or deleted.
        """
        key = (project_id, workflow_id, selector)
        # Not the event loop's time, which may be as old as the turn of the loop is long.
        now = time.monotonic()
        last = self._answers.get(key)
        if last is not None and now < last.valid_until and (version := self._cache.get(last.version_id)) is not None:
            return version
        # One start alone needs no lease, which costs a commit.
        lease = last is not None and now < last.asked_at + _OFTEN_SECONDS
        known = [version.id for version in self._cache.values() if version.workflow_id == workflow_id]
        resolved = await self._workflows.resolve(project_id, workflow_id, selector, known[-8:], lease=lease)
        version = self._cache.get(resolved.id)
        if version is None:
            version = await self._adopt(resolved)
        self._note(key, _Answer(version.id, now, now + resolved.valid_seconds))
        return version

    async def links(self, version: Version) -> dict[str, Linked]:
        """The versions that sub-workflows of this one call now, and those that they call in turn.

        Raises FailedPreconditionError for one that is not there or not published.
        """
        found: dict[str, Linked] = {}
        pending = [version.graph]
        for graph in pending:  # grows while it is walked
            for name, (workflow, number) in graph.links.items():
                if name in found:
                    continue
                if len(found) == MAX_LINKS:
                    message = (
                        f"The workflow calls more than {MAX_LINKS} different sub-workflows, directly or through others."
                    )
                    raise FailedPreconditionError(message, reason="TOO_MANY_SUB_WORKFLOWS")
                linked = await self._called(version.project_id, workflow, number)
                found[name] = Linked(linked.id, linked.graph)
                pending.append(linked.graph)
        return found

    async def _called(self, project_id: UUID, workflow: str, number: int | None) -> Version:
        selector = VersionSelector(number=number, latest=number is None)
        try:
            try:
                workflow_id = UUID(workflow)
            except ValueError:
                workflow_id = await self._workflows.find(project_id, workflow)
            return await self.resolve(project_id, workflow_id, selector)
        except NotFoundError as error:
            message = f"The sub-workflow {workflow!r} cannot be called: {error.message}"
            raise FailedPreconditionError(message, reason="SUB_WORKFLOW_NOT_FOUND") from error

    def _note(self, key: tuple[UUID, UUID, VersionSelector], answer: _Answer) -> None:
        present = self._answers.pop(key, answer)
        # Of several that were under way, the one that holds longest.
        self._answers[key] = max(answer, present, key=lambda each: each.valid_until)
        if len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)

    async def get(self, version_id: UUID) -> Version:
        """A version that some run uses. Raises NotFoundError for one that was never stored."""
        version = self._cache.get(version_id)
        if version is not None:
            self._cache.move_to_end(version_id)
            return version
        row = await self._store.find_version(version_id)
        if row is None:
            raise NotFoundError(f"There is no version {version_id}.", reason="VERSION_NOT_FOUND")
        graph = await asyncio.to_thread(self._make_graph, row["definition"])
        return self._remember(
            Version(
                id=version_id,
                project_id=row["project_id"],
                workflow_id=row["workflow_id"],
                workflow_name=row["workflow_name"],
                number=row["number"],
                definition=row["definition"],
                graph=graph,
            )
        )

    async def _adopt(self, resolved: ResolvedVersion) -> Version:
        if resolved.definition is None:
            return await self.get(resolved.id)
        version = Version(
            id=resolved.id,
            project_id=resolved.project_id,
            workflow_id=resolved.workflow_id,
            workflow_name=resolved.workflow_name,
            number=resolved.number,
            definition=resolved.definition,
            graph=await asyncio.to_thread(self._make_graph, resolved.definition),
        )
        await self._store.keep_version(version)
        return self._remember(version)

    def _remember(self, version: Version) -> Version:
        present = self._cache.get(version.id)
        if present is not None:
            return present
        self._cache[version.id] = version
        self._nodes += len(version.graph.nodes)
        while self._nodes > _CACHE_NODES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._nodes -= len(dropped.graph.nodes)
        return version
