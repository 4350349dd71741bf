"""A real server on loopback that answers with exactly the bytes a test gives it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from services.executor.egress.rules import HostPort


@dataclass
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """Number of the connection that it came on."""


Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RawServer:
    """`answer` makes the answer to each request; what came in is in `requests`."""

    answer: Callable[[Received], Answer]
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0

    @property
    def place(self) -> HostPort:
        return HostPort("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections = self.connections + 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
                method, target, _ = request_line.split(" ")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Received(method, target, headers, body, number)
                self.requests.append(request)
                answer = self.answer(request)
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    written = answer(writer)
                    if inspect.isawaitable(written):
                        await written
                await writer.drain()
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def response(
    body: bytes = b"", status: int = 200, kind: str = "text/plain", extra: tuple[tuple[str, str], ...] = ()
) -> bytes:
    """A well-formed answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in extra]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@asynccontextmanager
async def raw_server(answer: Callable[[Received], Answer]) -> AsyncIterator[RawServer]:
    """A server for the time of a `with` block."""
    made = RawServer(answer)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
