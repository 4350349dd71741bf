"""The servers from the wheels, as the local stack and the tests run them."""

from __future__ import annotations

import asyncpg
import nats
import pytest
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig

from deploy.local import databases
from deploy.local.home import Home
from tests.support import backends
from tests.support.servers import embedded_servers
from tests.support.waiting import await_until


async def test_postgres_keeps_what_it_has_answered_and_asks_everybody_for_a_password(home: Home) -> None:
    async with embedded_servers(home) as servers:
        connection = await asyncpg.connect(servers.postgres_url)
        names = ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
        shown = {name: await connection.fetchval(f"SHOW {name}") for name in names}
        await connection.close()
        guess = databases.url_with(servers.postgres_url, database="postgres", user="postgres", password="guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(guess)

    assert shown == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "listen_addresses": ""}


async def test_roles_create_schemas_of_their_own_and_see_nothing_of_others() -> None:
    admin_url = await backends.empty_database()
    roles = {"headrace_test_one": "pass/word", "headrace_test_two": "%40"}
    name = admin_url.partition("?")[0].rpartition("/")[2]
    await databases.prepare_database(backends.postgres_server(), roles, database=name)
    await databases.prepare_database(backends.postgres_server(), roles, database=name)  # the second start
    one, two = [
        await asyncpg.connect(databases.url_with(admin_url, database=name, user=role, password=password))
        for role, password in roles.items()
    ]
    try:
        await one.execute("CREATE SCHEMA one; CREATE TABLE one.secrets (value text)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await two.fetch("SELECT * FROM one.secrets")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await two.execute("CREATE TABLE public.litter (value text)")
    finally:
        await one.close()
        await two.close()
        await backends.drop_database(admin_url)


async def test_a_worker_cannot_publish_wake_ups_or_change_streams() -> None:
    executor = await nats.connect(backends.nats_url("executor"))
    refusals: list[Exception] = []

    async def refused(error: Exception) -> None:
        refusals.append(error)

    worker = await nats.connect(backends.nats_url("worker"), error_cb=refused)
    try:
        await executor.jetstream().add_stream(StreamConfig(name="LOCAL_TEST", subjects=["headrace.localtest.*"]))
        await worker.publish("headrace.localtest.a", b"forged")
        with pytest.raises(NatsError):
            await worker.jetstream(timeout=0.5).delete_stream("LOCAL_TEST")
        await await_until(lambda: len(refusals) == 2)
        state = (await executor.jetstream().stream_info("LOCAL_TEST")).state
        assert state.messages == 0
    finally:
        await executor.jetstream().delete_stream("LOCAL_TEST")
        await worker.close()
        await executor.close()


async def test_a_worker_asks_the_executor() -> None:
    executor = await nats.connect(backends.nats_url("executor"))
    worker = await nats.connect(backends.nats_url("worker"))
    try:

        async def answer(message: Msg) -> None:
            await message.respond(b"yours: " + message.data)

        await executor.subscribe("headrace.executor.localtest", cb=answer)
        await executor.flush()
        reply = await worker.request("headrace.executor.localtest", b"job 1")
        assert reply.data == b"yours: job 1"
    finally:
        await worker.close()
        await executor.close()
