"""Services behind a name: clients follow its addresses as replicas come and go. A real name server answers them."""

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from headrace.llm.v1 import llm_service_pb2 as pb
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceServicer, LlmServiceStub, add_LlmServiceServicer_to_server

from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from tests.support.waiting import await_until

TOKENS = CallerTokens(os.urandom(32))
FIRST, SECOND = "127.0.0.2", "127.0.0.3"


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `addresses`, to be kept for 0 s (RFC 1035, section 4)."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5  # name, type, class
        is_ipv4 = data[end - 4 : end - 2] == b"\0\1"
        found = self.addresses if is_ipv4 else []
        head = data[:2] + struct.pack(">5H", 0x8580, 1, len(found), 0, 0)
        records = (struct.pack(">3HIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(each) for each in found)
        self._transport.sendto(head + data[12:end] + b"".join(records), address)


class CountingServicer(LlmServiceServicer):
    def __init__(self, address: str, calls: Counter[str]) -> None:
        self._address, self._calls = address, calls

    async def CountTokens(self, request, context):
        self._calls[self._address] += 1
        return pb.CountTokensResponse()


class Replicas:
    """Replicas of one service, all on the same port, as behind a headless service of Kubernetes."""

    def __init__(self, names: NameServer, name_port: int) -> None:
        self.calls: Counter[str] = Counter()
        self._names = names
        self._servers: dict[str, GrpcServer] = {}
        with socket.socket() as probe:
            probe.bind((FIRST, 0))
            self._port = probe.getsockname()[1]
        self.target = f"dns://127.0.0.1:{name_port}/service.test:{self._port}"

    async def add(self, address: str) -> None:
        server = GrpcServer(listen=f"{address}:{self._port}", tokens=TOKENS, service_names=(), connection_seconds=0.3)
        add_LlmServiceServicer_to_server(CountingServicer(address, self.calls), server.server)
        await server.start()
        self._servers[address] = server
        self._names.addresses.append(address)

    async def remove(self, address: str) -> None:
        self._names.addresses.remove(address)
        await self._servers.pop(address).stop(1)

    async def stop(self) -> None:
        for address in list(self._servers):
            await self.remove(address)


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    transport, names = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    made = Replicas(names, transport.get_extra_info("sockname")[1])
    await made.add(FIRST)
    yield made
    await made.stop()
    transport.close()


@pytest.fixture
async def call(replicas) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Makes one call; raises when it fails."""
    rpc = Rpc(TOKENS.for_service("worker"))
    async with open_channel(replicas.target) as channel:
        stub = LlmServiceStub(channel)

        async def make() -> None:
            await rpc.call(stub.CountTokens, pb.CountTokensRequest(), timeout=2)

        yield make


async def test_a_replica_that_is_added_gets_its_share_of_calls_and_no_call_fails(replicas, call):
    async def second_is_called() -> bool:
        await call()
        return replicas.calls[SECOND] > 0

    assert not await second_is_called()
    await replicas.add(SECOND)
    await await_until(second_is_called, within=5)


async def test_calls_go_on_when_all_replicas_are_replaced_one_after_the_other(replicas, call):
    for gone, new in ((FIRST, SECOND), (SECOND, FIRST)):
        before = replicas.calls[new]

        async def new_one_is_called(new: str = new, before: int = before) -> bool:
            await call()
            return replicas.calls[new] > before

        await replicas.add(new)
        await await_until(new_one_is_called, within=5)
        await replicas.remove(gone)
        for _ in range(10):
            await call()
