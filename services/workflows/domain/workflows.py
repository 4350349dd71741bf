"""Use cases over workflows and their drafts as a whole."""

import unicodedata
from dataclasses import replace
from uuid import UUID

from services.kit.errors import InvalidArgumentError, Violation
from services.kit.ids import id_for_create, new_id, request_hash, require_same_request
from services.workflows.domain.checks import Checks, off_loop, require_revision
from services.workflows.domain.definition import Definition
from services.workflows.domain.definition_json import dump_definition, has_all_fields, load_definition
from services.workflows.domain.drafts import require_storable, with_ids
from services.workflows.domain.model import Checked, Draft, Workflow
from services.workflows.domain.store import ListPlace, NewWorkflow, WorkflowStore

MAX_NAME = 128
MAX_DESCRIPTION = 4096
# Characters that no one sees make one name look like another. The joiner U+200D stays: emoji are built with it.
_HIDDEN = frozenset({"Cc", "Cf", "Cs"})


class Workflows:
    """Workflows of all projects; every method is told whose."""

    def __init__(self, store: WorkflowStore, checks: Checks) -> None:
        self._store = store
        self._checks = checks

    async def create(
        self, project_id: UUID, *, name: str, description: str, definition: Definition, request_id: str
    ) -> Checked:
        """Make a workflow, or return the one that this request made before.

        Raises WorkflowNameTakenError, IdempotencyKeyReusedError, and InvalidArgumentError for a draft that cannot be
        stored.
        """
        self._checks.require_types()
        name = _checked_name(name)
        _check_description(description)
        offered = await off_loop(_weight(definition), _storable_text, definition)
        digest = request_hash(name, description, offered) if request_id else None
        draft = await off_loop(len(offered), with_ids, definition, Definition(), _element_id)
        new = NewWorkflow(
            id=id_for_create(project_id, "workflow", request_id),
            project_id=project_id,
            name=name,
            description=description,
            draft=dump_definition(draft).decode(),
            request_hash=digest,
        )
        async with self._store.transaction() as transaction:
            workflow = await transaction.insert_workflow(new)
            if workflow is None:
                present = await transaction.created_workflow(new.id)
                if present is None:
                    raise AssertionError("an id that is taken belongs to a row")
                existing, stored = present
                require_same_request(stored, digest or b"")
                workflow, draft = existing.workflow, load_definition(existing.text)
        return Checked(workflow, draft, await self._checks.issues(draft))

    async def get(self, project_id: UUID, workflow_id: UUID) -> tuple[Workflow, Definition]:
        """A workflow with its draft. Raises WorkflowNotFoundError."""
        draft = await self._store.get_draft(project_id, workflow_id)
        return draft.workflow, await _load(draft)

    async def get_text(self, project_id: UUID, workflow_id: UUID) -> Draft:
        """A workflow with its draft as it is stored: JSON in the REST form. Raises WorkflowNotFoundError."""
        draft = await self._store.get_draft(project_id, workflow_id)
        if has_all_fields(draft.text):
            return draft
        definition = await _load(draft)
        text = (await off_loop(len(draft.text), dump_definition, definition)).decode()
        return replace(draft, text=text)

    async def list_page(self, project_id: UUID, *, name: str, after: ListPlace | None, limit: int) -> list[Workflow]:
        """Newest first, after a place. `name` picks one exactly; empty = all."""
        async with self._store.transaction() as transaction:
            return await transaction.list_workflows(project_id, name=name, after=after, limit=limit)

    async def update(
        self,
        project_id: UUID,
        workflow_id: UUID,
        *,
        revision: int,
        name: str | None = None,
        description: str | None = None,
        definition: Definition | None = None,
    ) -> Checked:
        """Change what is given, from the expected revision (0 = any). What changes nothing raises no revision.

        Raises WorkflowNotFoundError, RevisionMismatchError, WorkflowNameTakenError, InvalidArgumentError.
        """
        self._checks.require_types()
        if name is not None:
            name = _checked_name(name)
        if description is not None:
            _check_description(description)
        if definition is not None:
            await off_loop(_weight(definition), require_storable, definition)
        async with self._store.transaction() as transaction:
            present = await transaction.get_draft(project_id, workflow_id, lock=True)
            require_revision(present.workflow, revision)
            draft = await _load(present)
            text = None
            if definition is not None:
                draft = await off_loop(len(present.text), with_ids, definition, draft, _element_id)
                text = (await off_loop(_weight(draft), dump_definition, draft)).decode()
            workflow = present.workflow
            changes = {
                "name": None if name == workflow.name else name,
                "description": None if description == workflow.description else description,
                "draft": None if text == present.text else text,
            }
            if any(value is not None for value in changes.values()):
                workflow = await transaction.update_workflow(workflow_id, **changes)
        return Checked(workflow, draft, await self._checks.issues(draft))

    async def delete(self, project_id: UUID, workflow_id: UUID, *, revision: int) -> None:
        """Hide a workflow; versions stay for runs. Raises WorkflowNotFoundError, RevisionMismatchError."""
        async with self._store.transaction() as transaction:
            workflow = await transaction.lock_workflow(project_id, workflow_id)
            require_revision(workflow, revision)
            await transaction.outlast_leases(workflow_id)
            await transaction.delete_workflow(workflow_id)

    async def validate(
        self, project_id: UUID, workflow_id: UUID, definition: Definition | None
    ) -> tuple[Violation, ...]:
        """All issues of the draft, or of a definition in its place. Raises WorkflowNotFoundError."""
        draft = await self._store.get_draft(project_id, workflow_id)
        return await self._checks.issues(await _load(draft) if definition is None else definition)


async def _load(draft: Draft) -> Definition:
    return await off_loop(len(draft.text), load_definition, draft.text)


def _weight(definition: Definition) -> int:
    """A rough size in bytes; configs are not counted, for counting them is most of the work."""
    return 200 * len(definition.nodes) + 100 * len(definition.edges)


def _storable_text(definition: Definition) -> bytes:
    require_storable(definition)
    return dump_definition(definition)


def _element_id() -> str:
    return str(new_id())


def _checked_name(name: str) -> str:
    name = name.strip()
    if not name:
        raise _refused("REQUIRED", "The name must not be empty.", "name")
    if len(name) > MAX_NAME:
        message = f"The name has {len(name)} characters; the limit is {MAX_NAME}."
        raise _refused("TOO_LONG", message, "name")
    if any(unicodedata.category(character) in _HIDDEN and character != "\u200d" for character in name):
        raise _refused("INVISIBLE_CHARACTER", "The name must not hold control or invisible characters.", "name")
    return name


def _check_description(description: str) -> None:
    if len(description) > MAX_DESCRIPTION:
        message = f"The description has {len(description)} characters; the limit is {MAX_DESCRIPTION}."
        raise _refused("TOO_LONG", message, "description")
    if "\x00" in description:
        raise _refused("NUL_CHARACTER", "The description must not hold the NUL character.", "description")


def _refused(code: str, message: str, path: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, violations=(Violation(code, message, path),))
