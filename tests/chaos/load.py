"""Runs that flow while things are killed: submitted through REST, repeated under the same key until answered.

A workflow comes as its definition and the names under which its effects must be in the ledger, once each.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.support.stack import LocalStack

CLIENTS = 16
_RETRY = {"max_attempts": 10, "initial_interval": 0.1, "backoff": 1.5, "max_interval": 1}
_TERMINAL = ("succeeded", "failed", "cancelled")


Workflow = tuple[dict[str, Any], list[str]]


def post(key: str, ledger: str, mode: str = "", *, name: str = "") -> dict[str, Any]:
    """A node that has an effect at the ledger, under its key or a name."""
    config = {"method": "POST", "url": ledger + mode, "json": {"run": "{{ run.id }}", "node": name or key}}
    return {"key": key, "type": "http_request", "config": config, "retry": _RETRY}


def chain(ledger: str) -> Workflow:
    """Five effects, one after the other: plain, slow, answered by 500, unanswered, plain."""
    modes = {"a": "", "b": "/slow", "c": "/error", "d": "/close", "e": ""}
    nodes = [post(key, ledger, mode) for key, mode in modes.items()]
    keys = list(modes)
    return {"nodes": nodes, "edges": [{"source": one, "target": other} for one, other in pairwise(keys)]}, keys


def diamond(ledger: str) -> Workflow:
    """One effect, two beside each other, and one that waits for both."""
    nodes = [post("top", ledger), post("left", ledger, "/slow"), post("right", ledger), post("bottom", ledger)]
    edges = [("top", "left"), ("top", "right"), ("left", "bottom"), ("right", "bottom")]
    definition = {"nodes": nodes, "edges": [{"source": one, "target": other} for one, other in edges]}
    return definition, [node["key"] for node in nodes]


def mapped(ledger: str) -> Workflow:
    """Five items, two at a time, of two effects each, the first slow; then one that waits for all."""
    first = post("first", ledger, "/slow", name="first-{{ index }}")
    second = post("second", ledger, name="second-{{ index }}")
    body = {"nodes": [first, second], "edges": [{"source": "first", "target": "second"}]}
    config = {"items": [1, 2, 3, 4, 5], "concurrency": 2, "body": body}
    nodes = [{"key": "each", "type": "map", "config": config}, post("end", ledger)]
    names = [f"{key}-{number}" for number in range(5) for key in ("first", "second")]
    return {"nodes": nodes, "edges": [{"source": "each", "target": "end"}]}, [*names, "end"]


class Load:
    """Submits runs of workflows in turn and sees each to its end; keeps a log of those accepted."""

    def __init__(self, stack: LocalStack, log: Path) -> None:
        self.log = log
        self.accepted = 0
        self.ended = 0
        self.statuses: Counter[int] = Counter()
        self._stack = stack
        self._enough = False
        self._workflows: list[tuple[str, list[str]]] = []
        self._client = httpx.AsyncClient(base_url=f"{stack.gateway_url}/api/v1", timeout=30, trust_env=False)

    async def prepare(self, *workflows: Workflow) -> None:
        """Log in and publish the workflows."""
        credentials = {"username": self._stack.admin["email"], "password": self._stack.admin["password"]}
        tokens = await self._until_answered("POST", "/auth/login", credentials)
        self._client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        for number, (definition, effects) in enumerate(workflows):
            name = f"chaos-{self.log.stem}-{number}"
            body = {"name": name, "definition": definition}
            workflow = await self._until_answered("POST", "/workflows", body, key=name)
            await self._until_answered("POST", f"/workflows/{workflow['id']}/versions", {}, key=name)
            self._workflows.append((workflow["id"], effects))
        self.statuses.clear()

    async def run(self, runs: int) -> None:
        """Submit so many runs, CLIENTS at a time, each to its end; fewer if `enough` is called."""
        numbers = iter(range(runs))
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._one_client(numbers))

    def enough(self) -> None:
        """Submit no more."""
        self._enough = True

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _one_client(self, numbers: Any) -> None:
        for number in numbers:
            if self._enough:
                return
            workflow_id, nodes = self._workflows[number % len(self._workflows)]
            key = f"{self.log.stem}-{number}"
            run = await self._until_answered("POST", f"/workflows/{workflow_id}/runs?wait=5", {}, key=key)
            self._remember(run["id"], nodes)
            while run["status"] not in _TERMINAL:
                await asyncio.sleep(0.1)  # a client that polls; nothing is waited for by it
                run = await self._until_answered("GET", f"/runs/{run['id']}")
            self.ended += 1

    async def _until_answered(self, method: str, path: str, body: Any = None, *, key: str = "") -> dict[str, Any]:
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            with suppress(httpx.TransportError):
                answer = await self._client.request(method, path, json=body, headers=headers)
                self.statuses[answer.status_code] += 1
                if answer.status_code < 300:
                    content: dict[str, Any] = answer.json()
                    return content
                if answer.status_code not in (502, 503, 504):
                    raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
            await asyncio.sleep(0.1)  # a client that comes back

    def _remember(self, run_id: str, nodes: list[str]) -> None:
        with self.log.open("ab") as log:
            log.write(json.dumps({"run": run_id, "nodes": nodes}).encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())
        self.accepted += 1
