"""TLS through egress: the certificate is checked for the name, while the checked address is dialled."""

import asyncio

import pytest
from headrace.auth.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server

from services.executor.egress import Egress, EgressError, HostPort, HttpRequest
from services.executor.handlers.base import TerminalError
from services.executor.handlers.db_query import DB_QUERY
from tests.support import backends
from tests.support.certificates import certificate
from tests.support.handlers import Credentials, handler_bench, served
from tests.support.http_servers import response
from tests.support.tcp_postgres import credential_for, tcp_door


async def to_loopback(host: str, port: int) -> list[str]:
    """A resolver for which every name is this machine."""
    return ["127.0.0.1"]


async def test_the_name_is_verified_and_a_certificate_of_another_or_unknown_issuer_is_refused(tmp_path, monkeypatch):
    tls, file = certificate(tmp_path, "good.example.com")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response(b"secret"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    allow = [HostPort(name, port) for name in ("good.example.com", "bad.example.com", "127.0.0.1")]
    reasons = {}
    for trusted in (True, False):
        monkeypatch.setenv("SSL_CERT_FILE", str(file) if trusted else "/nonexistent")
        egress = Egress(allow, resolve=to_loopback)
        for place in allow:
            request = HttpRequest("GET", f"https://{place}/")
            try:
                answer = await egress.request(request, project_id="p", timeout_seconds=5)
                reasons[place.host, trusted] = answer.body.decode()
            except EgressError as error:
                reasons[place.host, trusted] = error.reason
        await egress.close()
    server.close()
    assert reasons == {
        ("good.example.com", True): "secret",
        ("bad.example.com", True): "TLS_FAILED",
        ("127.0.0.1", True): "TLS_FAILED",
        ("good.example.com", False): "TLS_FAILED",
        ("bad.example.com", False): "TLS_FAILED",
        ("127.0.0.1", False): "TLS_FAILED",
    }


async def test_a_database_s_certificate_is_verified_for_its_name(tmp_path, monkeypatch):
    tls, file = certificate(tmp_path, "db.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    url = await backends.empty_database()
    credentials = Credentials()
    address = f"unix:{tmp_path}/auth"
    methods = ["/headrace.auth.v1.AuthService/ResolveCredential"]
    async with (
        served(address, [(add_AuthServiceServicer_to_server, credentials)], methods),
        tcp_door(url, tls) as door,
    ):
        names = ("db.example.com", "other.example.com")
        allow = [HostPort(name, door.port) for name in names]
        async with handler_bench(target=address, allow=allow, resolve=to_loopback) as bench:
            for name in names:
                credentials.known[name] = credential_for(url, HostPort(name, door.port), sslmode="require")
            with pytest.raises(TerminalError) as caught:
                await bench.run(DB_QUERY, target="other.example.com", table="t")
            assert caught.value.reason == "TLS_FAILED"
            with pytest.raises(TerminalError) as caught:
                await bench.run(DB_QUERY, target="db.example.com", table="t")
            assert caught.value.reason == "TABLE_NOT_FOUND"
    await backends.drop_database(url)
