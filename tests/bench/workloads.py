"""The workflows that are measured, and the loads put on them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.bench.client import Api, Connection
from tests.bench.targets import CHAT_SECONDS

Make = Callable[[int], dict[str, Any]]


def _noop(number: int) -> dict[str, Any]:
    return {"type": "noop", "config": {"value": {"n": number}}}


def _act(number: int) -> dict[str, Any]:
    """As a node that acts on the outside and never twice: it begins when its claim is committed."""
    return {**_noop(number), "delivery": "at_most_once"}


def _transform(number: int) -> dict[str, Any]:
    return {"type": "transform", "config": {"values": {"n": number, "ok": True}}}


def chain(length: int, make: Make) -> dict[str, Any]:
    """Nodes one after another."""
    nodes = [{"key": f"s{number}", **make(number)} for number in range(1, length + 1)]
    edges = [{"source": f"s{number}", "target": f"s{number + 1}"} for number in range(1, length)]
    return {"nodes": nodes, "edges": edges}


def fan_out(width: int, make: Make) -> dict[str, Any]:
    """One node, `width` beside each other, one that joins them."""
    middle = [f"b{number}" for number in range(width)]
    nodes = [{"key": key, **make(number)} for number, key in enumerate(("a", *middle, "z"))]
    edges = [edge for key in middle for edge in ({"source": "a", "target": key}, {"source": key, "target": "z"})]
    return {"nodes": nodes, "edges": edges}


@dataclass(frozen=True)
class Workload:
    """A workflow and how many node executions one run of it has."""

    name: str
    definition: dict[str, Any]
    nodes: int
    outside_seconds: float = 0.0
    """What one run waits for somebody else, at least."""


WORKLOADS = (
    Workload("chain of 10 worker nodes", chain(10, _noop), 10),
    Workload("chain of 10 worker nodes, each waits for its claim", chain(10, _act), 10),
    Workload("chain of 10 inline nodes", chain(10, _transform), 10),
    Workload("1 to 50 to 1, worker nodes", fan_out(50, _noop), 52),
    Workload("1 to 50 to 1, inline nodes", fan_out(50, _transform), 52),
)


def gets(length: int, url: str) -> Workload:
    """GETs of a server, one after another."""
    return Workload(
        f"{length} HTTP GETs in a row",
        chain(
            length, lambda number: {"type": "http_request", "config": {"method": "GET", "url": f"{url}/?n={number}"}}
        ),
        length,
    )


def one_chat(model: str) -> Workload:
    """One call of a model that answers in CHAT_SECONDS."""
    config = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    definition = {"nodes": [{"key": "ask", "type": "llm_call", "config": config}], "edges": []}
    return Workload(f"one LLM call of {CHAT_SECONDS * 1e3:.0f} ms", definition, 1, CHAT_SECONDS)


def _followed() -> dict[str, Any]:
    """A chain that begins when its followers are there."""
    definition = chain(10, _noop)
    definition["nodes"].append({"key": "wait", "type": "delay", "config": {"seconds": 1}})
    definition["edges"].append({"source": "wait", "target": "s1"})
    return definition


FOLLOWED = _followed()


async def run_once(connection: Connection, workflow_id: str) -> tuple[float, str]:
    """Start a run, wait for its end; seconds and id."""
    started = time.perf_counter()
    status, run = await connection.request("POST", f"/api/v1/workflows/{workflow_id}/runs?wait=60", {"input": {}})
    seconds = time.perf_counter() - started
    if status != 200 or run["status"] != "succeeded":
        raise RuntimeError(f"a run did not succeed: {status} {run}")
    return seconds, str(run["id"])


async def alone(api: Api, workflow_id: str, runs: int) -> tuple[list[float], list[str]]:
    """Runs one after another: seconds and ids."""
    async with api.connection() as connection:
        results = [await run_once(connection, workflow_id) for _ in range(runs)]
    return [seconds for seconds, _ in results], [run_id for _, run_id in results]


async def together(api: Api, workflow_id: str, *, callers: int, seconds: float, windows: int) -> list[float]:
    """Runs finished per second in each of `windows` equal windows; each caller starts a run when its last has ended."""
    finished: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        async with api.connection() as connection:
            while time.perf_counter() < end:
                await run_once(connection, workflow_id)
                finished.append(time.perf_counter())

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    width = seconds / windows
    return [
        sum(began + index * width <= moment < began + (index + 1) * width for moment in finished) / width
        for index in range(windows)
    ]


async def engine_waits(api: Api, run_ids: list[str]) -> list[float]:
    """Seconds that each worker node of these runs waited for the engine.

    From the commit that started a node to the commit that ended it, less the handler's own time: claim on its way to
    the worker, templates, report on its way back, decision and commit. Nodes of a chain that one commit covers are left
    out.
    """
    waits = []
    for run_id in run_ids:
        for node in (await api.call("GET", f"/runs/{run_id}/nodes?page_size=200"))["items"]:
            took = _moment(node["finished_at"]) - _moment(node["started_at"])
            # What was claimed and recorded by one commit has waited for none.
            if node["handler_seconds"] is not None and took:
                waits.append(took - node["handler_seconds"])
    return waits


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
