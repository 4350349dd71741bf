"""How long an event takes from the transaction that made it to a client that follows the run."""

import asyncio
from datetime import datetime

import httpx
import orjson

from tests.bench.client import Api


async def latencies(api: Api, workflow_id: str, *, followers: int, runs: int) -> list[float]:
    """Seconds from an event's `at`, PostgreSQL's time of the commit, to its arrival; both clocks are this machine's.

    Each follower starts a run, follows it by server-sent events to its end, and does so `runs` times.
    """
    found: list[float] = []

    async def follow(http: httpx.AsyncClient) -> None:
        for _ in range(runs):
            run = (await http.post(f"/workflows/{workflow_id}/runs", json={})).json()
            headers = {"Accept": "text/event-stream"}
            async with http.stream("GET", f"/runs/{run['id']}/events", headers=headers) as answer:
                connected = datetime.now().astimezone()
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        arrived = datetime.now().astimezone()
                        made = datetime.fromisoformat(orjson.loads(line[6:])["at"])
                        # What had happened before is replayed, and tells nothing of live events.
                        if made > connected:
                            found.append((arrived - made).total_seconds())

    async with httpx.AsyncClient(
        base_url=f"{api.gateway}/api/v1",
        headers=api.headers,
        trust_env=False,
        timeout=60,
        limits=httpx.Limits(max_connections=followers),
    ) as http:
        await asyncio.gather(*(follow(http) for _ in range(followers)))
    return found
