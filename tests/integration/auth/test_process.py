"""The process and its schema."""

from __future__ import annotations

import asyncio
import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth.storage.tables import metadata
from services.kit.migrate import differences
from tests.integration.auth.client import Client


async def test_tables_and_revisions_agree(database_url: str) -> None:
    assert await differences(database_url, schema="auth", metadata=metadata) == []


async def test_it_is_healthy_while_its_schema_answers(auth: Client, socket: str, rows: AsyncEngine) -> None:
    async with grpc.aio.insecure_channel(socket) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        async with rows.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE auth.alembic_version RENAME TO elsewhere")
        try:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        finally:
            async with rows.begin() as connection:
                await connection.exec_driver_sql("ALTER TABLE auth.elsewhere RENAME TO alembic_version")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_wrong_settings_end_it_with_a_sentence_for_each(auth: Client) -> None:
    wrong = {"signing_key": "nonsense", "pepper": "c2hvcnQ=", "bcrypt_cost": "3"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.auth.main",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        | {f"HEADRACE_AUTH_{name.upper()}": value for name, value in wrong.items()},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await process.communicate()
    assert process.returncode != 0
    assert all(name in stderr.decode() for name in wrong)
    assert "Traceback" not in stderr.decode()
