"""The stack on a PostgreSQL and a NATS that somebody else runs: HEADRACE_POSTGRES_URL and HEADRACE_NATS_URL."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import nats
import pytest

from deploy.local import databases
from deploy.local.home import Home
from services.executor.transport import streams
from tests.e2e.client import User, node
from tests.support.servers import embedded_servers
from tests.support.stack import running_stack


@pytest.mark.timeout(180)
async def test_a_stack_on_given_servers_runs_workflows_and_leaves_the_servers_alone(home: Home, tmp_path: Path) -> None:
    async with embedded_servers(home) as servers:
        owned = {service: servers.process(service).pid for service in ("postgres", "nats")}
        environ = {
            "HEADRACE_POSTGRES_URL": servers.postgres_url,
            "HEADRACE_NATS_URL": servers.nats_urls["executor"],
            "HEADRACE_LLM_MODELS": "[]",
        }
        async with running_stack(tmp_path / "stack", environ=environ) as stack:
            given = {service: stack.process(service) for service in owned}
            user = await User.register(stack.gateway_url)
            run = await user.run(node("a", config={"value": 1}), node("b"), edges=["a>b"])
            await user.http.aclose()

        assert run["status"] == "succeeded"
        assert await stack.stop() == 0
        assert {service: (entry["pid"], "log" in entry) for service, entry in given.items()} == dict.fromkeys(
            owned, (None, False)
        )
        assert not {"postgres", "nats"} & {path.name for path in stack.home.iterdir()}
        for service, pid in owned.items():
            process = servers.process(service)
            assert (process.pid, process.exits) == (pid, 0)
        # What the stack has made there is there for its next start.
        connection = await asyncpg.connect(databases.url_with(servers.postgres_url, database=databases.DATABASE))
        assert await connection.fetchval("SELECT id::text FROM executor.runs") == run["id"]
        await connection.close()
        client = await nats.connect(servers.nats_urls["executor"])
        assert (await client.jetstream().stream_info(streams.STREAM)).config.name == streams.STREAM
        await client.close()
