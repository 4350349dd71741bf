"""`make rolling`: every service restarted, one replica after the other, under a steady load. Nobody may notice.

Two of everything that can have replicas. Runs are started at a fixed rate through both gateways; one that is told to
end gets no more requests before, as behind every load balancer. A request fails if it gets no answer, or another one
than 2xx or 503 and 429 with Retry-After, which clients repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from tests.bench import targets
from tests.bench.machine import describe, percentile
from tests.chaos.histories import all_ended, read_history
from tests.chaos.ledger_process import running_ledger
from tests.chaos.load import Workflow, indexed, post
from tests.support.stack import LocalStack, running_stack
from tests.support.waiting import await_until

RESTARTED = ("auth", "workflows", "executor", "llm", "vector", "gateway", "worker")
REPLICAS = 2
COLLECTION = "rolling"
_QUIET_SECONDS = 10.0
"""Before the first restart and after the last: what to compare with."""
_BETWEEN_SECONDS = 2.0
"""From the return of one to the end of the next, as a rollout has it: the chart's pods have 5."""
_LEAVING_SECONDS = 1.0
"""Between the last request for a gateway and its end: the chart's `preStop` is longer."""
_REPEATED = (429, 503)


@dataclass(frozen=True)
class Answer:
    """What a request got, and when it was sent."""

    at: float
    seconds: float
    status: int
    """0 = none."""
    failure: str
    """Empty unless nobody should have got this."""


class Gateways:
    """A load balancer in its simplest form: those that are not about to end, in turn."""

    def __init__(self, urls: list[str]) -> None:
        self.away: set[str] = set()
        self.urls = urls
        self._turn = itertools.cycle(urls)

    def next(self) -> str:
        """The next one that takes requests."""
        return next(url for url in self._turn if url not in self.away)


class Clients:
    """Starts runs at a rate, whatever the answers take, each until it has ended; between them, reads."""

    def __init__(self, gateways: Gateways, log: Path) -> None:
        self.answers: list[Answer] = []
        self._gateways = gateways
        self._log = log
        self._workflows: list[tuple[str, Workflow]] = []
        connector = aiohttp.TCPConnector(limit=0)
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), connector=connector)

    async def sign_in(self, credentials: dict[str, str]) -> None:
        """Log in as the administrator."""
        body = {"username": credentials["email"], "password": credentials["password"]}
        token = (await self.ask("POST", "/auth/login", body))["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"

    async def prepare(self, *workflows: Workflow) -> None:
        """Publish what is run."""
        await self.ask("POST", "/collections", {"name": COLLECTION, "dimension": 4})
        for workflow in workflows:
            body = {"name": f"rolling-{len(self._workflows)}", "definition": workflow.definition}
            made = await self.ask("POST", "/workflows", body)
            await self.ask("POST", f"/workflows/{made['id']}/versions", {})
            self._workflows.append((made["id"], workflow))
        self.answers.clear()

    async def load(self, rate: float, enough: asyncio.Event) -> None:
        """Start `rate` runs a second until it is enough, and see them end."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if enough.is_set():
                    break
                group.create_task(self._run(number))
                await asyncio.sleep(began + (number + 1) / rate - loop.time())

    async def _run(self, number: int) -> None:
        workflow_id, workflow = self._workflows[number % len(self._workflows)]
        path = f"/workflows/{workflow_id}/runs?wait=30"
        run = await self.ask("POST", path, {"input": {"n": number}}, key=f"rolling-{number}")
        with self._log.open("a") as log:
            log.write(json.dumps({"run": run["id"], "nodes": workflow.effects, "at": time.time()}) + "\n")
        mine = f"/runs/{run['id']}"
        read = ("/workflows", mine, f"{mine}/nodes", f"/collections/{COLLECTION}", "/node-types")
        await self.ask("GET", read[number % len(read)])

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "") -> Any:
        """Ask until there is an answer; every try is noted."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            at, began = time.time(), time.perf_counter()
            status, failure, pause = 0, "", 0.1
            try:
                url = f"{self._gateways.next()}/api/v1{path}"
                async with self._client.request(method, url, json=body, headers=headers) as answer:
                    content = await answer.read()
                status, after = answer.status, answer.headers.get("Retry-After")
                if status >= 300 and not (status in _REPEATED and after):
                    failure = f"{method} {path}: {status} {content[:200]!r}"
                pause = float(after or pause)
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = f"{method} {path}: {error!r}"
            self.answers.append(Answer(at, time.perf_counter() - began, status, failure))
            if 200 <= status < 300:
                return json.loads(content)
            if 400 <= status < 500 and failure:
                raise AssertionError(failure)  # another try gets the same
            await asyncio.sleep(pause)  # as the answer asks for

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


async def _restart(stack: LocalStack, gateways: Gateways, service: str) -> None:
    """One replica after the other: told to end, and back before the next."""
    for replica in range(REPLICAS):
        url = f"http://{stack.process(service, replica)['listen']}" if service == "gateway" else ""
        if url:
            gateways.away.add(url)
            await asyncio.sleep(_LEAVING_SECONDS)  # requests that have it as their address, and have yet to connect
        pid = stack.kill(service, replica, signal.SIGTERM)
        await stack.until_back(pid, service, replica, within=60)
        gateways.away.discard(url)
        await asyncio.sleep(_BETWEEN_SECONDS)  # services try once a second to reach one that was away


async def _roll(stack: LocalStack, gateways: Gateways, clients: Clients, rate: float) -> dict[str, tuple[float, float]]:
    """Restart everything under load; begin and end of each phase."""
    enough = asyncio.Event()
    phases: dict[str, tuple[float, float]] = {}
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.load(rate, enough))
        for phase in ("before", *RESTARTED, "after"):
            began = time.time()
            if phase in RESTARTED:
                await _restart(stack, gateways, phase)
            else:
                await asyncio.sleep(_QUIET_SECONDS)  # the measurement itself
            phases[phase] = began, time.time()
            print(f"\r{phase:<12} done", end="", flush=True)
        enough.set()
    return phases


def _report(clients: Clients, phases: dict[str, tuple[float, float]]) -> None:
    heads = f"{'seconds':>7} {'requests':>8} {'p50 ms':>7} {'p99 ms':>8} {'most ms':>8}  503/429  failed"
    print(f"\r{'':<20}\n{'':<12} {heads}")
    for phase, (began, ended) in phases.items():
        answers = [answer for answer in clients.answers if began <= answer.at < ended]
        took = [answer.seconds * 1e3 for answer in answers]
        repeated = sum(answer.status in _REPEATED for answer in answers)
        failed = sum(bool(answer.failure) for answer in answers)
        print(
            f"{phase:<12} {ended - began:7.1f} {len(answers):8} {statistics.median(took):7.1f} "
            f"{percentile(took, 0.99):8.1f} {max(took):8.1f}  {repeated:7}  {failed:6}"
        )
    print(f"answers {dict(sorted(Counter(answer.status for answer in clients.answers).items()))}")


@asynccontextmanager
async def _stack(folder: Path) -> AsyncIterator[tuple[LocalStack, list[Workflow], Path]]:
    """A stack with two of everything, what is run on it, and the ledger's file."""
    async with running_ledger(folder) as ledger, targets.running_targets(folder / "targets") as port:
        url = f"http://127.0.0.1:{port}/v1"
        model = {"name": targets.MODEL, "backend": "openai", "base_url": url, "api_key": "none"}
        environ = {"HEADRACE_EGRESS_ALLOW": f"127.0.0.1:{ledger.port}", "HEADRACE_LLM_MODELS": json.dumps([model])}
        replicas = dict.fromkeys(RESTARTED, REPLICAS)
        async with running_stack(folder / "home", replicas=replicas, environ=environ) as stack:
            yield stack, [_asking(ledger.url), indexed(ledger.url, COLLECTION)], ledger.file


def _asking(ledger: str) -> Workflow:
    """A search, a model's answer, an effect."""
    search = {"key": "search", "type": "faiss_search", "config": {"collection": COLLECTION, "vector": [1, 2, 3, 4]}}
    ask = {"key": "ask", "type": "llm_call", "config": {"model": targets.MODEL, "prompt": "hi"}}
    edges = [{"source": "search", "target": "ask"}, {"source": "ask", "target": "tell"}]
    return Workflow({"nodes": [search, ask, post("tell", ledger)], "edges": edges}, ["tell"])


async def rolling(rate: float, folder: Path) -> list[str]:
    """Restart everything under `rate` runs a second; what went wrong."""
    (folder / "targets").mkdir()
    async with _stack(folder) as (stack, workflows, ledger_file):
        listening = [entry["listen"] for entry in stack.state["processes"] if entry["service"] == "gateway"]
        gateways = Gateways([f"http://{address}" for address in listening])
        log = folder / "accepted.jsonl"
        clients = Clients(gateways, log)
        await clients.sign_in(stack.admin)
        await clients.prepare(*workflows)
        phases = await _roll(stack, gateways, clients, rate)
        await clients.aclose()
        dsn = stack.process("postgres")["dsn"]
        await await_until(lambda: all_ended(dsn), within=60)
        history = await read_history(dsn, log, ledger_file)
        _report(clients, phases)
        for reason, nodes in (await _failed_nodes(dsn)).items():
            print(f"{nodes} nodes failed: {reason}")
        print(f"{len(history.accepted)} runs; {describe()}")
        return [answer.failure for answer in clients.answers if answer.failure] + history.violations()


async def _failed_nodes(dsn: str) -> Counter[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT node_key, error FROM executor.node_executions WHERE error IS NOT NULL")
        return Counter(f"{row['node_key']}: {row['error'].decode()[:300]}" for row in rows)
    finally:
        await connection.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make rolling", description=__doc__)
    parser.add_argument("--rate", type=float, default=50, help="runs started per second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-rolling-") as folder:
        failures = asyncio.run(rolling(given.rate, Path(folder)))
    print(f"{len(failures)} requests failed, runs were lost or effects doubled")
    sys.exit("\n".join(failures[:20]) or None)


if __name__ == "__main__":
    main()
