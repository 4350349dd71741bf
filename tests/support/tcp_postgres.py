"""A TCP door on loopback to the tests' PostgreSQL, which listens on a unix socket; with TLS where asked for."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, unquote, urlsplit

from services.executor.egress.rules import HostPort

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tcp_door(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[HostPort]:
    """Forward connections to the server of `url`; yields where."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host", [""])[0]

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if folder:
            port = parse_qs(parts.query).get("port", [parts.port or 5432])[0]
            inner = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        else:
            inner = await asyncio.open_connection(parts.hostname, parts.port or 5432)
        if tls is not None:
            try:
                assert await reader.readexactly(8) == _SSL_REQUEST
                writer.write(b"S")
                await writer.start_tls(tls)
            except (OSError, asyncio.IncompleteReadError):
                writer.close()
                inner[1].close()
                return
        await asyncio.gather(_copy(reader, inner[1]), _copy(inner[0], writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        yield HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()


def credential_for(url: str, place: HostPort, **fields: object) -> tuple[str, dict[str, object]]:
    """Type and data of a credential that reaches the database of `url` through a door."""
    parts = urlsplit(url)
    data = {
        "host": place.host,
        "port": place.port,
        "database": unquote(parts.path[1:]),
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "sslmode": "disable",
    }
    return "postgres", data | fields
