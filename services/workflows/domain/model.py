"""Workflows and their versions, and the errors that this service raises."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.kit.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    Violation,
)
from services.workflows.domain.definition import Definition


class Selector(StrEnum):
    """How a run names its version."""

    NUMBER = "number"
    """A published one, by number."""
    LATEST = "latest"
    """The newest published one."""
    DRAFT = "draft"
    """The draft, frozen."""
    NEWEST = "newest"
    """The newest published one; while none is published, the draft."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """The named thing that people edit."""

    id: UUID
    project_id: UUID
    name: str
    description: str
    revision: int
    """Raised at every change of name, description or draft; publishing changes none of them."""
    latest_version: int
    """Number of the newest published version; 0 = none."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Draft:
    """A workflow with its draft as text (`dump_definition`)."""

    workflow: Workflow
    text: str


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable definition, without its content."""

    id: UUID
    workflow_id: UUID
    project_id: UUID
    number: int
    """From 1; 0 = unnamed, frozen from a draft by a run."""
    content_hash: str
    workflow_name: str
    """When it was made."""
    note: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class FullVersion:
    """A version with its content; None when the caller holds it."""

    version: Version
    definition: Definition | None


@dataclass(frozen=True, slots=True)
class Checked:
    """A workflow with its draft and what is wrong with it."""

    workflow: Workflow
    definition: Definition
    issues: tuple[Violation, ...]


class WorkflowNotFoundError(NotFoundError):
    """There is no such workflow in the project."""

    reason = "WORKFLOW_NOT_FOUND"

    def __init__(self, workflow_id: UUID | str) -> None:
        super().__init__(f"There is no workflow {workflow_id} in this project.")


class VersionNotFoundError(NotFoundError):
    """The workflow has no such version."""

    reason = "VERSION_NOT_FOUND"


class NodeNotFoundError(NotFoundError):
    """The draft has no such node."""

    reason = "NODE_NOT_FOUND"


class EdgeNotFoundError(NotFoundError):
    """The draft has no such edge."""

    reason = "EDGE_NOT_FOUND"


class WorkflowNameTakenError(AlreadyExistsError):
    """Another workflow of the project has the name."""

    reason = "WORKFLOW_NAME_TAKEN"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a workflow named `{name}` in this project already. Choose another name.")


class NodeKeyTakenError(AlreadyExistsError):
    """Another node of the draft has the key."""

    reason = "NODE_KEY_TAKEN"

    def __init__(self, key: str) -> None:
        super().__init__(f"There is a node with the key `{key}` in this workflow already. Choose another key.")


class EdgeExistsError(AlreadyExistsError):
    """The draft has an edge between these ports."""

    reason = "EDGE_EXISTS"


class InvalidDefinitionError(InvalidArgumentError):
    """The definition cannot be published or run; the violations are all its issues."""

    reason = "INVALID_DEFINITION"

    def __init__(self, issues: tuple[Violation, ...]) -> None:
        errors = [issue for issue in issues if issue.severity == "error"]
        many = "1 issue" if len(errors) == 1 else f"{len(errors)} issues"
        super().__init__(
            f"The definition has {many}; the first: {errors[0].message}" if errors else "The definition is not valid.",
            violations=issues,
        )
