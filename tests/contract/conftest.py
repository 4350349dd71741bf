"""The whole stack, and what the contract is tested on in it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import LocalStack, running_stack


@dataclass
class Inhabitant:
    """A user with one of everything."""

    client: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """Path parameter -> something that exists."""

    async def post(self, path: str, body: Any, **options: Any) -> Any:
        reply = await self.client.post(path, json=body, headers=self.headers, **options)
        assert reply.is_success, reply.text
        return reply.json()


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    home: Path = tmp_path_factory.mktemp("stack")
    async with running_stack(home) as running:
        yield running


@pytest.fixture(scope="module")
async def inhabitant(stack: LocalStack) -> AsyncIterator[Inhabitant]:
    async with httpx.AsyncClient(base_url=stack.gateway_url, timeout=60, trust_env=False) as client:
        yield await settle(client)


async def settle(client: httpx.AsyncClient) -> Inhabitant:
    """Register a user and make one of everything."""
    one = Inhabitant(client)
    email, password = f"{uuid.uuid4().hex}@example.com", uuid.uuid4().hex
    user = await one.post("/api/v1/auth/register", {"email": email, "password": password})
    tokens = await one.post("/api/v1/auth/login", {"username": email, "password": password})
    one.headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    nodes = [
        {"key": "a", "type": "transform", "config": {"values": {"x": "{{ 1 + 1 }}"}}},
        {"key": "b", "type": "output", "config": {"value": "{{ nodes.a.output.x }}"}},
    ]
    definition = {"nodes": nodes, "edges": [{"source": "a", "target": "b"}]}
    workflow = await one.post("/api/v1/workflows", {"name": "w", "definition": definition})
    path = f"/api/v1/workflows/{workflow['id']}"
    await one.post(f"{path}/versions", {})
    run = await one.post(f"{path}/runs", {}, params={"wait": 30})
    collection = await one.post("/api/v1/collections", {"name": "c", "dimension": 2})
    await one.post(f"/api/v1/collections/{collection['id']}/records", {"records": [{"id": "r", "vector": [0.5, 1]}]})
    table = {"name": "t", "columns": [{"name": "k", "type": "text"}, {"name": "v", "type": "json"}], "key": ["k"]}
    await one.post("/api/v1/tables", table)
    credential = await one.post(
        "/api/v1/credentials", {"name": "s", "type": "http_bearer", "data": {"token": "secret"}}
    )
    project = await one.post("/api/v1/projects", {"name": "p"})
    key = await one.post("/api/v1/auth/api-keys", {"name": "k"})
    one.ids = {
        "workflow_id": workflow["id"],
        "node_id": workflow["definition"]["nodes"][0]["id"],
        "edge_id": workflow["definition"]["edges"][0]["id"],
        "number": "1",
        "run_id": run["id"],
        "node_key": "a",
        "collection_id": collection["id"],
        "record_id": "r",
        "name": "t",
        "credential_id": credential["id"],
        "project_id": project["id"],
        "user_id": user["id"],
        "api_key_id": key["id"],
    }
    return one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each item an id of its own.

    Schemathesis names the items of a function by operation but leaves them all the function's node id, and
    pytest-xdist, which hands out node ids, would run one of them and leave out the rest.
    """
    for item in items:
        if item.parent is not None and "[" in item.name and not item.nodeid.endswith(item.name):
            item._id = item.parent.id.child(item.name)  # pytest has no other way to set it
