"""A lean HTTP client for load: one connection per caller, no more work than the protocol needs."""

import asyncio
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import orjson


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        lines = [f"Host: {parts.netloc}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self._headers = "\r\n".join(lines)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and parsed body of a JSON request."""
        data = b"" if body is None else orjson.dumps(body)
        head = (
            f"{method} {path} HTTP/1.1\r\n{self._headers}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(answer.split(" ", 2)[1])
        length = int(answer.partition("content-length: ")[2].partition("\r")[0] or 0)
        content = await self._reader.readexactly(length)
        return status, orjson.loads(content) if content else None


class Api:
    """Headrace as a new user."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self._token = ""

    @property
    def headers(self) -> dict[str, str]:
        """What makes a request the user's."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def connection(self) -> Connection:
        """A connection that acts as the user."""
        return Connection(self.gateway, self.headers)

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call on a connection of its own; an error status is an exception."""
        async with self.connection() as connection:
            status, answer = await connection.request(method, f"/api/v1{path}", body)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer}")
        return answer

    async def sign_up(self, email: str) -> None:
        """Register and log in."""
        password = "a password for a benchmark"
        await self.call("POST", "/auth/register", {"email": email, "password": password})
        answer = await self.call("POST", "/auth/login", {"username": email, "password": password})
        self._token = answer["access_token"]

    async def publish(self, name: str, definition: dict[str, Any]) -> str:
        """A workflow with one published version; its id."""
        workflow = await self.call("POST", "/workflows", {"name": name, "definition": definition})
        await self.call("POST", f"/workflows/{workflow['id']}/versions", {})
        return str(workflow["id"])
