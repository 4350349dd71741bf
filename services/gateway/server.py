"""The HTTP server: uvicorn inside our own life cycle, with bounds that it does not have itself."""

import asyncio
from asyncio.events import TimerHandle
from typing import Any, ClassVar

import orjson
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.problems import MEDIA_TYPE
from services.gateway.settings import Settings

log = structlog.get_logger(__name__)


_MAX_DISCARDED_BYTES = 32 * 1024 * 1024
_DISCARD_SECONDS = 30.0
"""How much of a body, and for how long, is thrown away after the answer was sent."""


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections whose headers are too large or too slow; httptools itself would wait and keep them for ever.

    Bytes are counted from the first of a request to the end of its headers, so a pipelined burst counts as one.
    """

    max_header_bytes: ClassVar[int]
    header_timeout_seconds: ClassVar[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._discarded_bytes = 0
        self._in_headers = True
        self._too_slow: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give the first request's headers their time."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count while headers are being read."""
        if self._in_headers:
            if self._header_bytes == 0 and self._too_slow is None:
                self._start_timer()
            self._header_bytes += len(data)
        elif self.cycle is not None and self.cycle.response_complete:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _MAX_DISCARDED_BYTES:
                self.transport.close()
                return
        super().data_received(data)
        # What came with the headers' last piece may be a body: only what the parser still holds is too large.
        if self._in_headers and self._header_bytes > self.max_header_bytes and not self.transport.is_closing():
            self._refuse(431, "HEADERS_TOO_LARGE", f"The headers are over the limit of {self.max_header_bytes} bytes.")

    def on_headers_complete(self) -> None:
        """The headers are here; refuse them when they are too many."""
        self._in_headers = False
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_header_bytes:
            self._refuse(431, "HEADERS_TOO_LARGE", f"The headers are over the limit of {self.max_header_bytes} bytes.")
            raise ValueError("headers over the limit")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """A body that was answered before its end is read on for a while: its sender shall see the answer."""
        super().on_response_complete()
        if not self._in_headers and not self.transport.is_closing():
            self._start_timer(_DISCARD_SECONDS)

    def on_message_complete(self) -> None:
        """The next bytes are another request's headers."""
        self._in_headers = True
        self._header_bytes = 0
        self._discarded_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "INVALID_HTTP", "This is not a valid HTTP/1.1 request.")

    def _start_timer(self, seconds: float | None = None) -> None:
        self._stop_timer()
        self._too_slow = self.loop.call_later(seconds or self.header_timeout_seconds, self._time_out)

    def _stop_timer(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _time_out(self) -> None:
        self._too_slow = None
        if self._in_headers and self._header_bytes:
            self._refuse(408, "REQUEST_TIMEOUT", "The request's headers did not come in time.")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str, detail: str) -> None:
        """Answer on the bare connection, before there is a request, and close it."""
        if self.transport.is_closing():
            return
        slug = reason.lower().replace("_", "-")
        problem = {"type": f"urn:headrace:problem:{slug}", "title": reason.replace("_", " ").capitalize()}
        body = orjson.dumps(
            {**problem, "status": status, "detail": detail, "instance": "", "reason": reason, "request_id": ""}
        )
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


class HttpServer:
    """Serves an application on one address."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        host, _, port = settings.listen.rpartition(":")
        limits = {
            "max_header_bytes": settings.max_header_bytes,
            "header_timeout_seconds": settings.header_timeout_seconds,
        }
        config = uvicorn.Config(
            app,
            host=host.strip("[]"),
            port=int(port),
            loop="none",
            http=type("ConfiguredProtocol", (BoundedProtocol,), limits),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.stop_timeout_seconds,
            backlog=4096,
        )
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind and serve. Raises RuntimeError when the address is taken."""
        # Not `serve`, which would take the signals that belong to the process's own life cycle.
        self._serving = asyncio.create_task(self._server._serve(), name="http-server")
        while not self._server.started:
            if self._serving.done():
                config = self._server.config
                raise RuntimeError(f"cannot listen on {config.host}:{config.port}") from self._serving.exception()
            await asyncio.sleep(0.005)

    @property
    def port(self) -> int:
        """The port, also where 0 was asked for."""
        number: int = self._server.servers[0].sockets[0].getsockname()[1]
        return number

    async def stop(self) -> None:
        """Take no more connections, let requests under way end within the time set, then cancel them."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
