"""Headrace through its REST API, as one user."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

TERMINAL = ("succeeded", "failed", "cancelled")
PASSWORD = "a password that is long enough"


@dataclass(frozen=True)
class Event:
    """One server-sent event; `id` is empty on passing ones."""

    id: str
    type: str
    data: dict[str, Any]


class User:
    """A registered user, logged in."""

    def __init__(self, http: httpx.AsyncClient, email: str) -> None:
        self.http = http
        self.email = email
        self.tokens: dict[str, Any] = {}

    @classmethod
    async def register(cls, gateway: str) -> User:
        """A new user with a project of its own."""
        user = cls(
            httpx.AsyncClient(base_url=f"{gateway}/api/v1", timeout=60, trust_env=False), f"{uuid4().hex}@example.com"
        )
        await user.ask("POST", "/auth/register", {"email": user.email, "password": PASSWORD}, expect=201)
        await user.login()
        return user

    async def login(self) -> None:
        """Take a pair of tokens, and act by it from now on."""
        answer = await self.ask("POST", "/auth/login", {"username": self.email, "password": PASSWORD})
        self.tokens = answer
        self.http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    async def ask(self, method: str, path: str, body: Any = None, *, expect: int = 200, **headers: str) -> Any:
        """Call the API; the parsed answer, if its status is the expected one."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.http.request(method, path, json=body, headers=named)
        assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def workflow(self, *nodes: dict[str, Any], edges: list[str] | None = None, limit: float | None = None) -> str:
        """A published workflow; edges read `a>b`, or `a:port>b`. Its id."""
        definition = {"nodes": list(nodes), "edges": [_edge(text) for text in edges or ()], "timeout_seconds": limit}
        body = {"name": f"w-{uuid4().hex}", "definition": definition}
        made = await self.ask("POST", "/workflows", body, expect=201)
        await self.ask("POST", f"/workflows/{made['id']}/versions", {}, expect=201)
        return str(made["id"])

    async def start(self, workflow_id: str, run_input: Any = None, **headers: str) -> dict[str, Any]:
        """An accepted run."""
        body = {"input": run_input}
        run: dict[str, Any] = await self.ask("POST", f"/workflows/{workflow_id}/runs", body, expect=202, **headers)
        return run

    async def ended(self, run_id: str) -> dict[str, Any]:
        """The run, when it has ended."""
        async for _ in self.events(run_id):
            pass
        run: dict[str, Any] = await self.ask("GET", f"/runs/{run_id}")
        assert run["status"] in TERMINAL
        return run

    async def run(
        self, *nodes: dict[str, Any], edges: list[str] | None = None, run_input: Any = None
    ) -> dict[str, Any]:
        """A run of a new workflow, from start to end."""
        started = await self.start(await self.workflow(*nodes, edges=edges), run_input)
        return await self.ended(started["id"])

    async def nodes(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Node executions by key."""
        return {item["node_key"]: item for item in await self.node_list(run_id)}

    async def node_list(self, run_id: str) -> list[dict[str, Any]]:
        """Node executions, those inside containers included."""
        page = await self.ask("GET", f"/runs/{run_id}/nodes?page_size=200")
        items: list[dict[str, Any]] = page["items"]
        return items

    async def events(self, run_id: str, last_event_id: str = "") -> AsyncIterator[Event]:
        """The stream of a run's events, until the server ends it."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        async with self.http.stream("GET", f"/runs/{run_id}/events", headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "event" in fields:
                    yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                    fields = {}

    async def until_event(self, run_id: str, type: str, node: str = "") -> Event:
        """The first event of that type, of that node if one is given."""
        async with asyncio.timeout(60):
            async for event in self.events(run_id):
                if event.type == type and (not node or event.data["node_key"] == node):
                    return event
        raise AssertionError(f"run {run_id} ended without {type} {node}")


def node(key: str, type: str = "noop", config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A node of a definition."""
    return {"key": key, "type": type, "config": config or {}, **more}


def _edge(text: str) -> dict[str, str]:
    source, _, target = text.partition(">")
    key, _, port = source.partition(":")
    return {"source": key, "target": target} | ({"source_port": port} if port else {})
