"""The service as a process: it starts, survives kill -9 with all that it answered, and stops in order."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceStub

from services.kit.grpc_client import Rpc, open_channel
from tests.support.vector_service import KEY, TOKENS, VectorClient, a_record


@asynccontextmanager
async def process(url: str, folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.vector.main"),
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HEADRACE_VECTOR_LISTEN": listen,
            "HEADRACE_VECTOR_POSTGRES_URL": url,
            "HEADRACE_VECTOR_INDEX_DIR": str(folder),
            "HEADRACE_INTERNAL_KEY": base64.b64encode(KEY).decode(),
        },
    )
    try:
        async with grpc.aio.insecure_channel(listen) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True
            )
            while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass
            watch.cancel()
        yield service, listen
    finally:
        if service.returncode is None:
            service.kill()
        await service.wait()


async def test_what_was_answered_survives_a_kill_and_a_stop_writes_the_files(place, client, tmp_path):
    await client.call("CreateCollection", name="docs", dimension=2)
    async with process(place.url, tmp_path) as (service, listen), open_channel(listen) as channel:
        killed = VectorClient(VectorServiceStub(channel), client.project_id, Rpc(TOKENS.for_service("test")))
        await killed.upsert("docs", a_record("a", [1, 0]), a_record("b", [0, 1]))
        assert await killed.found("docs", [1, 0], top_k=1) == ["a"]
        await killed.upsert("docs", a_record("c", [1, 0.1]))
        service.send_signal(signal.SIGKILL)
        await service.wait()
    assert list(tmp_path.glob("*.index")) == []

    async with process(place.url, tmp_path) as (service, listen), open_channel(listen) as channel:
        again = VectorClient(VectorServiceStub(channel), client.project_id, Rpc(TOKENS.for_service("test")))
        assert await again.found("docs", [1, 0]) == ["a", "c", "b"]
        service.send_signal(signal.SIGTERM)
        assert await service.wait() == 0
    assert len(list(tmp_path.glob("*.index"))) == 1


async def test_missing_settings_end_it_with_a_sentence_for_each():
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.vector.main"),
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await service.communicate()
    assert service.returncode != 0
    assert "postgres_url" in stderr.decode()
    assert "Traceback" not in stderr.decode()
