"""Use cases over single nodes and edges of a draft. Each change is one transaction under the workflow's lock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import orjson

from services.kit.ids import derived_id, new_id, request_hash, require_same_request
from services.workflows.domain import drafts
from services.workflows.domain.checks import off_loop, require_revision
from services.workflows.domain.definition import Definition, Edge, Node
from services.workflows.domain.definition_json import dump_definition, edge_to_json, load_definition, node_to_json
from services.workflows.domain.drafts import require_storable
from services.workflows.domain.model import Workflow
from services.workflows.domain.store import WorkflowStore, WorkflowTransaction


@dataclass(slots=True)
class _Edit:
    """A draft being changed: set `definition`, read `revision` when the change is committed."""

    transaction: WorkflowTransaction
    workflow: Workflow
    definition: Definition

    @property
    def revision(self) -> int:
        """Of the workflow: before the change while inside, after it when left."""
        return self.workflow.revision

    async def claim(self, kind: str, request_id: str, content: bytes) -> tuple[str, bool]:
        """The id for what a create call makes, and whether it is the call's first time."""
        if not request_id:
            return str(new_id()), True
        scope = f"{self.workflow.project_id}/{self.workflow.id}"
        new = derived_id(scope, kind, request_id)
        digest = request_hash(content)
        stored = await self.transaction.claim_request(new, self.workflow.id, digest)
        if stored is not None:
            require_same_request(stored, digest)
        return str(new), stored is None


class Elements:
    """Nodes and edges of drafts."""

    def __init__(self, store: WorkflowStore) -> None:
        self._store = store

    async def read(self, project_id: UUID, workflow_id: UUID) -> tuple[Definition, int]:
        """The draft and its revision. Raises WorkflowNotFoundError."""
        draft = await self._store.get_draft(project_id, workflow_id)
        definition = await off_loop(len(draft.text), load_definition, draft.text)
        return definition, draft.workflow.revision

    async def get_node(self, project_id: UUID, workflow_id: UUID, node_id: str) -> tuple[Node, int]:
        """A node of the draft and the revision. Raises WorkflowNotFoundError, NodeNotFoundError."""
        definition, revision = await self.read(project_id, workflow_id)
        return drafts.find_node(definition, node_id), revision

    async def create_node(
        self, project_id: UUID, workflow_id: UUID, *, revision: int, node: Node, request_id: str
    ) -> tuple[Node, int]:
        """Add a node, or return the one that this request made before; with the revision.

        Raises NodeKeyTakenError, InvalidArgumentError for a key that is none, RevisionMismatchError,
        IdempotencyKeyReusedError, and NodeNotFoundError when the node that the request made is gone.
        """
        node = replace(node, id="")
        content = orjson.dumps(node_to_json(node))
        async with self._edit(project_id, workflow_id) as edit:
            node_id, is_new = await edit.claim("node", request_id, content)
            if not is_new:
                return drafts.find_node(edit.definition, node_id), edit.revision
            require_revision(edit.workflow, revision)
            edit.definition, node = drafts.add_node(edit.definition, replace(node, id=node_id))
        return node, edit.revision

    async def update_node(
        self, project_id: UUID, workflow_id: UUID, node_id: str, *, revision: int, patch: Any
    ) -> tuple[Node, int]:
        """Apply a JSON merge patch to a node; a new key follows into edges. Raises as `drafts.patch_node`."""
        async with self._edit(project_id, workflow_id, revision) as edit:
            edit.definition, node = drafts.patch_node(edit.definition, node_id, patch)
        return node, edit.revision

    async def delete_node(self, project_id: UUID, workflow_id: UUID, node_id: str, *, revision: int) -> int:
        """Remove a node and its edges; returns the revision. Raises NodeNotFoundError, RevisionMismatchError."""
        async with self._edit(project_id, workflow_id, revision) as edit:
            edit.definition = drafts.remove_node(edit.definition, node_id)
        return edit.revision

    async def create_edge(
        self, project_id: UUID, workflow_id: UUID, *, revision: int, edge: Edge, request_id: str
    ) -> tuple[Edge, int]:
        """Add an edge, or return the one that this request made before; with the revision.

        Raises NodeNotFoundError for its ends, EdgeExistsError, RevisionMismatchError, IdempotencyKeyReusedError, and
        EdgeNotFoundError when the edge that the request made is gone.
        """
        content = orjson.dumps(edge_to_json(replace(edge, id="")))
        async with self._edit(project_id, workflow_id) as edit:
            edge_id, is_new = await edit.claim("edge", request_id, content)
            if not is_new:
                return drafts.find_edge(edit.definition, edge_id), edit.revision
            require_revision(edit.workflow, revision)
            edge = replace(edge, id=edge_id)
            edit.definition = drafts.add_edge(edit.definition, edge)
        return edge, edit.revision

    async def delete_edge(self, project_id: UUID, workflow_id: UUID, edge_id: str, *, revision: int) -> int:
        """Remove an edge; returns the revision. Raises EdgeNotFoundError, RevisionMismatchError."""
        async with self._edit(project_id, workflow_id, revision) as edit:
            edit.definition = drafts.remove_edge(edit.definition, edge_id)
        return edit.revision

    @asynccontextmanager
    async def _edit(self, project_id: UUID, workflow_id: UUID, revision: int = 0) -> AsyncIterator[_Edit]:
        """The draft under the workflow's lock; saved on leaving if it was changed."""
        async with self._store.transaction() as transaction:
            draft = await transaction.get_draft(project_id, workflow_id, lock=True)
            require_revision(draft.workflow, revision)
            before = await off_loop(len(draft.text), load_definition, draft.text)
            edit = _Edit(transaction, draft.workflow, before)
            yield edit
            after = edit.definition
            if after != before:
                await off_loop(len(draft.text), require_storable, after)
                text = await off_loop(len(draft.text), dump_definition, after)
                edit.workflow = await transaction.update_workflow(workflow_id, draft=text.decode())
