"""What the use cases need from storage."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.workflows.domain.model import Draft, Selector, Version, Workflow


@dataclass(frozen=True, slots=True)
class NewWorkflow:
    """A workflow to insert, at revision 1."""

    id: UUID
    project_id: UUID
    name: str
    description: str
    draft: str
    request_hash: bytes | None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to insert."""

    id: UUID
    workflow_id: UUID
    project_id: UUID
    number: int
    """0 = unnamed."""
    content_hash: str
    definition: str
    workflow_name: str
    note: str


@dataclass(frozen=True, slots=True)
class ListPlace:
    """Where a page ends: the creation time and id of its last item."""

    created_at: datetime
    id: UUID


class WorkflowTransaction(Protocol):
    """Reads and writes that commit together. Deleted workflows do not exist here, but for their versions by id."""

    async def insert_workflow(self, new: NewWorkflow) -> Workflow | None:
        """Insert; None when the id exists, deleted or not. Raises WorkflowNameTakenError."""
        ...

    async def created_workflow(self, workflow_id: UUID) -> tuple[Draft, bytes | None] | None:
        """A workflow with the hash of the request that made it, also a deleted one."""
        ...

    async def get_draft(self, project_id: UUID, workflow_id: UUID, *, lock: bool = False) -> Draft:
        """A workflow with its draft. `lock` holds off other changes until the end. Raises WorkflowNotFoundError."""
        ...

    async def lock_workflow(self, project_id: UUID, workflow_id: UUID) -> Workflow:
        """A workflow, with other changes held off until the end. Raises WorkflowNotFoundError."""
        ...

    async def list_workflows(
        self, project_id: UUID, *, name: str, after: ListPlace | None, limit: int
    ) -> list[Workflow]:
        """Newest first, after a place; `name` picks one exactly, empty all."""
        ...

    async def update_workflow(
        self, workflow_id: UUID, *, name: str | None = None, description: str | None = None, draft: str | None = None
    ) -> Workflow:
        """Change what is given and raise the revision. Call on a locked workflow. Raises WorkflowNameTakenError."""
        ...

    async def delete_workflow(self, workflow_id: UUID) -> None:
        """Hide a locked workflow; its name becomes free."""
        ...

    async def outlast_leases(self, workflow_id: UUID) -> None:
        """Wait until no lease on a locked workflow is left. There will be no further one before the end."""
        ...

    async def claim_request(self, request_id: UUID, workflow_id: UUID, request_hash: bytes) -> bytes | None:
        """Note the request that makes a node or edge under this id; the hash already noted when it came before.

        Forgotten after a day.
        """
        ...

    async def insert_version(self, new: NewVersion) -> Version:
        """Insert and make it the workflow's newest, or the frozen form of its draft when unnamed.

        An unnamed version of the same content is returned in place of a second one. Call on a locked workflow.
        """
        ...

    async def list_versions(self, workflow_id: UUID, *, before: int | None, limit: int) -> list[Version]:
        """Published versions, newest first, with numbers below `before`."""
        ...


class WorkflowStore(Protocol):
    """Workflows and versions."""

    def transaction(self) -> AbstractAsyncContextManager[WorkflowTransaction]:
        """A transaction. Raises UnavailableError when the database does not answer."""
        ...

    async def resolve(self, project_id: UUID, workflow_id: UUID, selector: Selector, number: int = 0) -> Version | None:
        """What a run shall use, in one round trip; None when it is not published, or the draft not frozen.

        Raises WorkflowNotFoundError.
        """
        ...

    async def find_workflow(self, project_id: UUID, name: str) -> UUID | None:
        """The id of the workflow with that name."""
        ...

    async def get_draft(self, project_id: UUID, workflow_id: UUID) -> Draft:
        """A workflow with its draft, in one round trip. Raises WorkflowNotFoundError."""
        ...

    async def lease(self, project_id: UUID, workflow_id: UUID, seconds: float) -> bool:
        """Promise that, for so long, no version is published and the workflow is not deleted.

        False when the workflow is being changed at the moment, has no published version, or does not exist.
        """
        ...

    async def get_version(self, project_id: UUID, version_id: UUID) -> tuple[Version, str] | None:
        """A version with its content, also of a deleted workflow."""
        ...
