"""The system that the sample's answers are sent to: takes each once, by its Idempotency-Key, and gives a receipt."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Receiver:
    """Remembers what it has received; a repeated key gets its first receipt."""

    def __init__(self) -> None:
        self.received: dict[str, dict[str, Any]] = {}

    async def take(self, request: Request) -> JSONResponse:
        """POST /answers."""
        key = request.headers.get("idempotency-key", str(uuid4()))
        entry = self.received.setdefault(key, {"receipt": str(uuid4()), "body": orjson.loads(await request.body())})
        return JSONResponse({"receipt": entry["receipt"]}, status_code=201)

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[str]:
        """Listen for the length of a block; gives the address to post to."""
        app = Starlette(routes=[Route("/answers", self.take, methods=["POST"])])
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        # Bound here: whoever posts from now on is queued until the server takes it.
        listener = socket.create_server((host, port))
        # `_serve` and not `serve`, which would take the signals over from the launcher.
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        try:
            yield f"http://{host}:{port}/answers"
        finally:
            server.should_exit = True
            await serving
