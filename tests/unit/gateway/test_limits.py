"""Bounds of the real HTTP server: sizes, times, and what is no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest
from headrace.workflows.v1 import workflow_service_pb2

from services.gateway.app import build_app
from services.gateway.server import HttpServer
from services.gateway.settings import Settings
from tests.support.waiting import await_until
from tests.unit.gateway.peers import access_token

MIB = 1024 * 1024


@pytest.fixture
def settings() -> Settings:
    return Settings(
        listen="127.0.0.1:0",
        header_timeout_seconds=0.3,
        body_timeout_seconds=0.3,
        keep_alive_seconds=1,
        max_header_bytes=8192,
        max_requests=2,
    )


async def talk(port: int, *pieces: bytes) -> bytes:
    """Send bytes on a connection of one's own; what comes back until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # A server that refuses stops reading.
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    async with asyncio.timeout(10):
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                received += piece
    writer.close()
    return received


def head(path: str = "/api/v1/workflows", *headers: str, method: str = "POST") -> bytes:
    given = (f"Authorization: Bearer {access_token()}", "Host: gateway", "Content-Type: application/json", *headers)
    return f"{method} {path} HTTP/1.1\r\n".encode() + "".join(f"{line}\r\n" for line in given).encode() + b"\r\n"


def status_of(received: bytes) -> int:
    return int(received.split(b" ", 2)[1])


async def pieces_of(size: int, *, text: bytes = b"x") -> AsyncIterator[bytes]:
    yield b'{"name": "'
    for _ in range(size // 65536 + 1):
        yield text * 65536
    yield b'"}'


async def test_a_body_is_counted_whatever_its_length_claims(served):
    headers = {"Authorization": f"Bearer {access_token()}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served}") as client:
        nodes = "/api/v1/workflows/5bf8415b-db6d-42f8-b003-a921db43a1f7/nodes"
        # Chunked, so that no length is claimed at all.
        reply = await client.post(nodes, content=pieces_of(MIB), headers=headers)
        assert (reply.status_code, reply.json()["reason"]) == (413, "BODY_TOO_LARGE")
        reply = await client.post("/api/v1/workflows", content=pieces_of(2 * MIB), headers=headers)
        assert reply.status_code == 422, "definitions may be larger"
        reply = await client.post("/api/v1/workflows", content=pieces_of(9 * MIB), headers=headers)
        assert reply.status_code == 413


async def test_a_body_that_goes_on_for_ever_after_its_answer_is_cut_off(served):
    _, writer = await asyncio.open_connection("127.0.0.1", served)
    writer.write(b"POST /api/v1/workflows HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def send_64_mib() -> None:
        for _ in range(1024):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    with pytest.raises(ConnectionError):
        await send_64_mib()
    writer.close()


async def test_a_body_is_not_read_before_the_caller_is_known(served):
    request = b"POST /api/v1/workflows HTTP/1.1\r\nHost: g\r\nContent-Length: 1000000\r\n\r\n"
    assert status_of(await talk(served, request)) == 401


async def test_headers_are_limited_in_size(served):
    big = b"GET /healthz HTTP/1.1\r\nHost: g\r\nX-Big: " + b"x" * 9000
    for received in (
        await talk(served, big + b"\r\n\r\n"),
        await talk(served, big, b"x" * 9000, b"x" * 9000),
        await talk(served, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: g\r\n\r\n"),
        await talk(served, b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n"),
    ):
        assert status_of(received) == 431
        assert b"application/problem+json" in received


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: g\r\n", b"GET / HTTP/1.1\r\nX: "])
async def test_headers_that_do_not_come_end_the_connection(served, sent):
    received = await talk(served, sent) if sent else await talk(served)
    assert not received or status_of(received) == 408


async def test_a_client_that_drips_its_headers_is_cut_off(served):
    reader, writer = await asyncio.open_connection("127.0.0.1", served)
    writer.write(b"GET /healthz HTTP/1.1\r\n")

    async def drip() -> bool:
        with contextlib.suppress(ConnectionError):
            writer.write(b"X: y\r\n")
        return reader.at_eof() or bool(reader._buffer)

    await await_until(drip, within=5)
    assert status_of(await reader.read(4096)) == 408
    writer.close()


async def test_a_body_that_does_not_come_is_408(served):
    received = await talk(served, head("/api/v1/workflows", "Content-Length: 100"), b'{"name"')
    assert status_of(received) == 408
    assert b"REQUEST_TIMEOUT" in received


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost g\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: g\r\n\r\n",
        b"GET ?x HTTP/1.1\r\nHost: g\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: g\r\nX: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_400_and_the_server_lives(served, sent):
    received = await talk(served, sent)
    assert not received or status_of(received) in {400, 401, 404, 408}, received
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{served}/healthz")).status_code == 200


async def test_more_requests_than_allowed_are_503_at_once(served, peers):
    release = asyncio.Event()

    async def slow(request: object) -> object:
        await release.wait()
        return workflow_service_pb2.ListWorkflowsResponse()

    peers.replies["ListWorkflows"] = slow
    headers = {"Authorization": f"Bearer {access_token()}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served}", headers=headers) as client:
        waiting = [asyncio.create_task(client.get("/api/v1/workflows")) for _ in range(2)]
        await await_until(lambda: len(peers.asked["ListWorkflows"]) == 2)
        refused = await client.get("/api/v1/workflows")
        assert (refused.status_code, refused.json()["reason"]) == (503, "OVERLOADED")
        assert refused.headers["Retry-After"] == "1"
        release.set()
        assert [(await task).status_code for task in waiting] == [200, 200]


async def test_a_definition_of_ten_thousand_nodes_goes_through(served, peers):
    nodes = [{"key": f"n{n}", "type": "transform", "config": {"values": {"a": "{{ 1 }}"}}} for n in range(10_000)]
    edges = [{"source": f"n{n}", "target": f"n{n + 1}"} for n in range(9_999)]
    peers.replies["CreateWorkflow"] = workflow_service_pb2.CreateWorkflowResponse()
    body = orjson.dumps({"name": "large", "definition": {"nodes": nodes, "edges": edges}})
    headers = {"Authorization": f"Bearer {access_token()}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(timeout=30) as client:
        url = f"http://127.0.0.1:{served}/api/v1/workflows"
        assert (await client.post(url, content=body, headers=headers)).status_code == 201
    received = peers.asked["CreateWorkflow"][0].definition
    assert (len(received.nodes), len(received.edges)) == (10_000, 9_999)


async def test_requests_under_way_are_finished_on_stop(gateway, peers):
    release = asyncio.Event()

    async def slow(request: object) -> object:
        await release.wait()
        return workflow_service_pb2.ListWorkflowsResponse()

    peers.replies["ListWorkflows"] = slow
    server = HttpServer(build_app(gateway), gateway.settings)
    await server.start()
    headers = {"Authorization": f"Bearer {access_token()}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers=headers) as client:
        under_way = asyncio.create_task(client.get("/api/v1/workflows"))
        await await_until(lambda: peers.asked["ListWorkflows"])
        stopping = asyncio.create_task(server.stop())
        release.set()
        assert (await under_way).status_code == 200
    await stopping
