"""Calls of the workflows service as another service makes them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import uuid4

import orjson
from headrace.common.v1 import value_pb2
from headrace.workflows.v1 import definition_pb2 as d
from headrace.workflows.v1 import workflow_pb2
from headrace.workflows.v1 import workflow_service_pb2 as pb

from services.kit.grpc_client import Rpc


def node(key: str, node_type: str = "transform", /, config: Any = None, **fields: Any) -> d.Node:
    """A node; by default one without effect that has no issues."""
    if config is None:
        config = {"values": {"a": 1}} if node_type == "transform" else {}
    return d.Node(key=key, type=node_type, config=value_pb2.Json(utf8=orjson.dumps(config)), **fields)


def edge(source: str, target: str, **fields: Any) -> d.Edge:
    """An edge."""
    return d.Edge(source=source, target=target, **fields)


def sound(*keys: str) -> d.Definition:
    """A chain without issues."""
    keys = keys or ("a", "b")
    edges = [edge(one, other) for one, other in pairwise(keys)]
    return d.Definition(nodes=[node(key) for key in keys], edges=edges)


class Client:
    """One project's calls: `await client.GetNode(workflow, node_id=…)` answers the response."""

    def __init__(self, stub: Any, rpc: Rpc, project_id: str | None = None) -> None:
        self.stub = stub
        self.rpc = rpc
        self.project_id = project_id or str(uuid4())

    def __getattr__(self, method: str) -> Callable[..., Any]:
        request = getattr(pb, f"{method}Request")

        async def call(workflow: workflow_pb2.Workflow | str | None = None, **fields: Any) -> Any:
            if workflow is not None:
                fields["workflow_id"] = workflow if isinstance(workflow, str) else workflow.id
            message = request(project_id=self.project_id, **fields)
            return await self.rpc.call(getattr(self.stub, method), message, timeout=20)

        return call

    def other_project(self) -> Client:
        """The same for another project."""
        return Client(self.stub, self.rpc)

    async def workflow(self, definition: d.Definition | None = None, **fields: Any) -> workflow_pb2.Workflow:
        """A new workflow."""
        fields.setdefault("name", f"w-{uuid4()}")
        return (await self.CreateWorkflow(definition=definition, **fields)).workflow
