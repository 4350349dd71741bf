"""Runs that flow while things are killed: submitted through REST, repeated under the same key until answered.

A workflow comes as its definition and the names under which its effects must be in the ledger, once each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.support.stack import LocalStack

CLIENTS = 16
ABANDONED = 0.02
"""Share of requests for a run whose client goes away within LONGEST_PATIENCE, and comes back with the same key."""
LONGEST_PATIENCE = 0.05
LARGE = 20_000
"""Characters of a value that is stored by content: over `services.executor.storage.payloads.MAX_INLINE_BYTES`."""
INDEXED = "noted"
"""The effect of runs that leave a record under their id."""
_RETRY = {"max_attempts": 10, "initial_interval": 0.1, "backoff": 1.5, "max_interval": 1}
_TERMINAL = ("succeeded", "failed", "cancelled")
_COME_BACK = (429, 502, 503, 504)
_NEW_LOGIN_AFTER = 60.0
"""Seconds; well before a token ends, so that the auth service has something to do."""


@dataclass(frozen=True)
class Workflow:
    """What is run, and what it must have done in the end."""

    definition: dict[str, Any]
    effects: list[str]
    is_large: bool = False
    """Its input is stored by content, another one for each run."""


def post(key: str, ledger: str, mode: str = "", *, name: str = "", **more: str) -> dict[str, Any]:
    """A node that has an effect at the ledger, under its key or a name."""
    body = {"run": "{{ run.id }}", "node": name or key, **more}
    config = {"method": "POST", "url": ledger + mode, "json": body}
    return {"key": key, "type": "http_request", "config": config, "retry": _RETRY}


def chain(ledger: str) -> Workflow:
    """Five effects, one after the other: plain, slow, answered by 500, unanswered, plain."""
    modes = {"a": "", "b": "/slow", "c": "/error", "d": "/close", "e": ""}
    return Workflow(_in_a_row(*(post(key, ledger, mode) for key, mode in modes.items())), list(modes))


def diamond(ledger: str) -> Workflow:
    """One effect, two beside each other, and one that waits for both."""
    nodes = [post("top", ledger), post("left", ledger, "/slow"), post("right", ledger), post("bottom", ledger)]
    edges = [("top", "left"), ("top", "right"), ("left", "bottom"), ("right", "bottom")]
    definition = {"nodes": nodes, "edges": [{"source": one, "target": other} for one, other in edges]}
    return Workflow(definition, [node["key"] for node in nodes])


def mapped(ledger: str) -> Workflow:
    """Five items, two at a time, of two effects each, the first slow; then one that waits for all."""
    first = post("first", ledger, "/slow", name="first-{{ index }}")
    second = post("second", ledger, name="second-{{ index }}")
    config = {"items": [1, 2, 3, 4, 5], "concurrency": 2, "body": _in_a_row(first, second)}
    names = [f"{key}-{number}" for number in range(5) for key in ("first", "second")]
    definition = _in_a_row({"key": "each", "type": "map", "config": config}, post("end", ledger))
    return Workflow(definition, [*names, "end"])


def large(ledger: str) -> Workflow:
    """A value that is stored by content, and an effect that tells its size."""
    keep = {"key": "keep", "type": "transform", "config": {"values": {"text": "{{ input.text }}"}}}
    size = "{{ size(nodes.keep.output.text) }}"
    return Workflow(_in_a_row(keep, post("sized", ledger, size=size)), ["sized"], is_large=True)


def indexed(ledger: str, collection: str) -> Workflow:
    """A record in a collection, under the run's id, and an effect."""
    records = [{"id": "{{ run.id }}", "vector": [1, 2, 3, 4]}]
    config = {"collection": collection, "records": records}
    # There is one vector service: as long as it takes to be back, the node comes again.
    upsert = {"key": "upsert", "type": "vector_upsert", "config": config, "retry": {**_RETRY, "max_attempts": 100}}
    return Workflow(_in_a_row(upsert, post(INDEXED, ledger)), [INDEXED])


def _in_a_row(*nodes: dict[str, Any]) -> dict[str, Any]:
    edges = [{"source": one["key"], "target": other["key"]} for one, other in pairwise(nodes)]
    return {"nodes": list(nodes), "edges": edges}


class User:
    """A client's session with whichever gateway answers."""

    def __init__(self, stack: LocalStack, email: str, password: str) -> None:
        self.statuses: Counter[int] = Counter()
        self.abandoned = 0
        self._credentials = {"username": email, "password": password}
        self._gateways = [
            f"http://{entry['listen']}/api/v1" for entry in stack.state["processes"] if entry["service"] == "gateway"
        ]
        self._turn = itertools.count()
        self._token = ""
        self._renew_at = 0.0
        self._login = asyncio.Lock()
        self._chance = random.Random(email)  # noqa: S311 - nothing secret
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(timeout=30, trust_env=False, limits=limits)

    async def register(self) -> None:
        """Become known."""
        email, password = self._credentials.values()
        answer = await self._client.post(
            f"{self._gateways[0]}/auth/register", json={"email": email, "password": password}
        )
        assert answer.status_code == 201, f"{email} is not registered: {answer.status_code} {answer.text}"

    async def until_answered(
        self, method: str, path: str, body: Any = None, *, key: str = "", patient: bool = True, refused: int = 0
    ) -> Any:
        """Ask again until there is an answer; None if it is the refusal that may be."""
        headers = {"Idempotency-Key": key} if key else {}
        gateway = next(self._turn)
        while True:
            with suppress(httpx.TransportError):
                headers["Authorization"] = f"Bearer {await self._current_token()}"
                answer = await self._ask(gateway, method, path, body, headers, patient=patient)
                if answer.status_code < 300:
                    return answer.json() if answer.content else {}
                if answer.status_code == refused:
                    return None
                if answer.status_code == 401:
                    self._renew_at = 0.0
                elif answer.status_code not in _COME_BACK:
                    raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
            gateway = next(self._turn)
            await asyncio.sleep(0.1)  # a client that comes back

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(
        self, gateway: int, method: str, path: str, body: Any, headers: dict[str, str], *, patient: bool = True
    ) -> httpx.Response:
        timeout = 30.0
        if not patient and self._chance.random() < ABANDONED:
            timeout = self._chance.uniform(0.001, LONGEST_PATIENCE)
            self.abandoned += 1
        url = self._gateways[gateway % len(self._gateways)] + path
        answer = await self._client.request(method, url, json=body, headers=headers, timeout=timeout)
        self.statuses[answer.status_code] += 1
        return answer

    async def _current_token(self) -> str:
        async with self._login:
            while time.monotonic() > self._renew_at:
                with suppress(httpx.TransportError):
                    answer = await self._ask(next(self._turn), "POST", "/auth/login", self._credentials, {})
                    if answer.status_code == 200:
                        self._token = answer.json()["access_token"]
                        self._renew_at = time.monotonic() + _NEW_LOGIN_AFTER
                        break
                    if answer.status_code not in _COME_BACK:
                        raise AssertionError(f"login: {answer.status_code} {answer.text}")
                await asyncio.sleep(0.1)  # a client that comes back
            return self._token


class Load:
    """Submits runs of workflows in turn and sees each to its end; keeps a log of those accepted."""

    def __init__(self, stack: LocalStack, log: Path, *, clients: int = CLIENTS) -> None:
        self.log = log
        self.accepted = 0
        self.ended = 0
        self.newest: list[str] = []
        """Runs accepted since somebody emptied this."""
        self.peeped: str | None = None
        """One of the newest runs of `user`."""
        self.user = User(stack, stack.admin["email"], stack.admin["password"])
        self._clients = clients
        self._enough = False
        self._workflows: list[tuple[User, str, Workflow]] = []

    @property
    def statuses(self) -> Counter[int]:
        """How often each status was answered, to all users."""
        return sum((user.statuses for user in self._users), Counter())

    @property
    def abandoned(self) -> int:
        """Requests that a client did not wait for."""
        return sum(user.abandoned for user in self._users)

    @property
    def _users(self) -> list[User]:
        return list(dict.fromkeys(user for user, _, _ in self._workflows))

    async def prepare(self, *workflows: Workflow, user: User | None = None) -> None:
        """Publish the workflows of a user, by default the administrator."""
        owner = user or self.user
        for workflow in workflows:
            name = f"chaos-{self.log.stem}-{len(self._workflows)}"
            body = {"name": name, "definition": workflow.definition}
            made = await owner.until_answered("POST", "/workflows", body, key=name)
            await owner.until_answered("POST", f"/workflows/{made['id']}/versions", {}, key=name)
            self._workflows.append((owner, made["id"], workflow))
        owner.statuses.clear()

    async def run(self, runs: int) -> None:
        """Submit so many runs, several clients at a time, each to its end; fewer if `enough` is called."""
        numbers = iter(range(runs))
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._one_client(numbers))

    def enough(self) -> None:
        """Submit no more."""
        self._enough = True

    async def aclose(self) -> None:
        """Close the connections."""
        await self.user.aclose()

    async def _one_client(self, numbers: Any) -> None:
        for number in numbers:
            if self._enough:
                return
            user, workflow_id, workflow = self._workflows[number % len(self._workflows)]
            path, key = f"/workflows/{workflow_id}/runs?wait=5", f"{self.log.stem}-{number}"
            body = {"input": {"text": f"{number:0{LARGE}}"}} if workflow.is_large else {}
            run = await user.until_answered("POST", path, body, key=key, patient=False)
            await self._remember(run["id"], workflow.effects)
            if user is self.user:
                self.peeped = run["id"]
            while run["status"] not in _TERMINAL:  # asking for it again is how it is waited for
                again = await user.until_answered("POST", path, body, key=key, patient=False)
                assert again["id"] == run["id"], f"key {key} started {run['id']}, and then {again['id']}"
                run = again
            self.ended += 1

    async def _remember(self, run_id: str, nodes: list[str]) -> None:
        line = json.dumps({"run": run_id, "nodes": nodes, "at": time.time()}).encode() + b"\n"
        await asyncio.to_thread(self._write, line)
        self.accepted += 1
        self.newest.append(run_id)

    def _write(self, line: bytes) -> None:
        with self.log.open("ab") as log:
            log.write(line)
            log.flush()
            os.fsync(log.fileno())
