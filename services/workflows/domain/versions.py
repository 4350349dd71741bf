"""Use cases over versions: publishing, freezing drafts, and finding what a run shall use."""

from collections import OrderedDict
from collections.abc import Collection
from uuid import UUID

from services.kit.errors import InvalidArgumentError, Violation
from services.kit.ids import new_id
from services.workflows.domain.checks import Checks, moved_on, off_loop, require_revision
from services.workflows.domain.definition import Definition
from services.workflows.domain.definition_json import content_hash, load_definition
from services.workflows.domain.model import (
    FullVersion,
    InvalidDefinitionError,
    Selector,
    Version,
    VersionNotFoundError,
    WorkflowNotFoundError,
)
from services.workflows.domain.store import NewVersion, WorkflowStore
from services.workflows.domain.validation import is_valid

MAX_NOTE = 1024
_TRIES = 5
"""How often a draft that changes while it is checked is checked again."""
_LEASE_SECONDS = 0.5
"""How long an answer to who starts runs in a row stays good, and how long publishing and deleting then may wait."""
_CACHED_NODES = 20_000
"""Nodes of all cached definitions together; a node takes about 1 KB."""


class Versions:
    """Versions of all projects; every method is told whose."""

    def __init__(self, store: WorkflowStore, checks: Checks) -> None:
        self._store = store
        self._checks = checks
        self._cache: OrderedDict[UUID, Definition] = OrderedDict()
        self._cached_nodes = 0

    async def publish(self, project_id: UUID, workflow_id: UUID, *, revision: int, note: str) -> FullVersion:
        """Freeze the draft under the next number; an unchanged draft is the newest version already.

        Raises WorkflowNotFoundError, RevisionMismatchError, InvalidDefinitionError with all issues, ConflictError.
        """
        if len(note) > MAX_NOTE or "\x00" in note:
            message = f"The note must have at most {MAX_NOTE} characters and no NUL."
            raise InvalidArgumentError(message, violations=(Violation("INVALID_VALUE", message, "note"),))
        return await self._freeze(project_id, workflow_id, revision=revision, note=note, publish=True)

    async def list_page(self, project_id: UUID, workflow_id: UUID, *, before: int | None, limit: int) -> list[Version]:
        """Published versions, newest first, with numbers below `before`. Raises WorkflowNotFoundError."""
        async with self._store.transaction() as transaction:
            await transaction.get_draft(project_id, workflow_id)
            return await transaction.list_versions(workflow_id, before=before, limit=limit)

    async def get(self, project_id: UUID, workflow_id: UUID, number: int) -> FullVersion:
        """A published version. Raises WorkflowNotFoundError, VersionNotFoundError."""
        return await self.resolve(project_id, workflow_id, Selector.NUMBER, number=number)

    async def get_by_id(self, project_id: UUID, version_id: UUID) -> FullVersion:
        """A version, also of a deleted workflow. Raises VersionNotFoundError."""
        found = await self._store.get_version(project_id, version_id)
        if found is None:
            raise VersionNotFoundError(f"There is no version with the id {version_id}.")
        version, text = found
        return FullVersion(version, await self._load(version.id, text))

    async def find(self, project_id: UUID, name: str) -> UUID:
        """The id of the workflow with that name. Raises WorkflowNotFoundError."""
        workflow_id = await self._store.find_workflow(project_id, name)
        if workflow_id is None:
            raise WorkflowNotFoundError(name)
        return workflow_id

    async def lease(self, project_id: UUID, workflow_id: UUID) -> float:
        """Hold off publishing and deleting; for how many seconds, 0 = not at all.

        What `resolve` then says of published versions stays true for so long.
        """
        leased = await self._store.lease(project_id, workflow_id, _LEASE_SECONDS)
        return _LEASE_SECONDS if leased else 0.0

    async def resolve(
        self,
        project_id: UUID,
        workflow_id: UUID,
        selector: Selector,
        *,
        number: int = 0,
        known: Collection[str] = (),
    ) -> FullVersion:
        """What a run shall use; without content if its id is among the `known` ones.

        A draft is frozen first, if it is not: the same content is the same version. Raises WorkflowNotFoundError,
        VersionNotFoundError, InvalidDefinitionError with all issues.
        """
        version = await self._store.resolve(project_id, workflow_id, selector, number)
        if version is None:
            if selector is Selector.NUMBER:
                raise VersionNotFoundError(f"The workflow has no published version {number}.")
            if selector is Selector.LATEST:
                raise VersionNotFoundError("The workflow has no published version. Publish it, or run its draft.")
            frozen = await self._freeze(project_id, workflow_id)
            return FullVersion(frozen.version, None) if str(frozen.version.id) in known else frozen
        if str(version.id) in known:
            return FullVersion(version, None)
        return FullVersion(version, await self._content(project_id, version))

    async def _freeze(
        self, project_id: UUID, workflow_id: UUID, *, revision: int = 0, note: str = "", publish: bool = False
    ) -> FullVersion:
        """Check the draft without holding the workflow, then store it if it is still the same."""
        for _ in range(_TRIES):
            async with self._store.transaction() as transaction:
                draft = await transaction.get_draft(project_id, workflow_id)
            require_revision(draft.workflow, revision)
            definition = await off_loop(len(draft.text), load_definition, draft.text)
            issues = await self._checks.issues(definition)
            if not is_valid(list(issues)):
                raise InvalidDefinitionError(issues)
            digest = await off_loop(len(draft.text), content_hash, definition)
            async with self._store.transaction() as transaction:
                workflow = await transaction.lock_workflow(project_id, workflow_id)
                if workflow.revision != draft.workflow.revision:
                    require_revision(workflow, revision)
                    continue
                if publish and workflow.latest_version:
                    newest = (await transaction.list_versions(workflow_id, before=None, limit=1))[0]
                    if newest.content_hash == digest:
                        return FullVersion(newest, await self._content(project_id, newest))
                if publish:
                    await transaction.outlast_leases(workflow_id)
                version = await transaction.insert_version(
                    NewVersion(
                        id=new_id(),
                        workflow_id=workflow_id,
                        project_id=project_id,
                        number=workflow.latest_version + 1 if publish else 0,
                        content_hash=digest,
                        definition=draft.text,
                        workflow_name=workflow.name,
                        note=note,
                    )
                )
            return FullVersion(version, await self._content(project_id, version))
        raise moved_on()

    async def _content(self, project_id: UUID, version: Version) -> Definition:
        cached = self._cache.get(version.id)
        if cached is not None:
            self._cache.move_to_end(version.id)
            return cached
        found = await self._store.get_version(project_id, version.id)
        if found is None:
            raise AssertionError("versions are never deleted")
        return await self._load(version.id, found[1])

    async def _load(self, version_id: UUID, text: str) -> Definition:
        definition = self._cache.get(version_id)
        if definition is None:
            definition = await off_loop(len(text), load_definition, text)
            self._cached_nodes += 0 if version_id in self._cache else len(definition.nodes)
            self._cache[version_id] = definition
            while self._cached_nodes > _CACHED_NODES and self._cache:
                _, dropped = self._cache.popitem(last=False)
                self._cached_nodes -= len(dropped.nodes)
        return definition
