"""A GGUF file, run by llama.cpp's own server in a supervised child process and spoken to over loopback."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import structlog

from services.llm.backends.llamacpp_process import LlamaCppProcess, LoadFailed
from services.llm.backends.openai_compatible import OpenAICompatible, ServerOptions
from services.llm.domain.errors import ModelMisconfiguredError, ModelUnavailableError
from services.llm.domain.model import Generation, Message, Piece, Vectors

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two starts that fail: a file that cannot be loaded must not keep a core busy."""


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """How to run a GGUF file."""

    find_file: Callable[[], Awaitable[Path]]
    """Where the file is; may fetch it. Raises ModelMisconfiguredError."""
    context_length: int = 4096
    """Tokens of prompt plus answer, for each of `parallel` generations; memory is set aside for all at start."""
    parallel: int = 4
    """Generations that are computed together."""
    connections: int = 16
    """Calls at once; those beyond `parallel` wait inside the server, ready for the next free place."""
    threads: int = 2
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class _Server:
    process: LlamaCppProcess
    client: OpenAICompatible

    async def stop(self) -> None:
        await self.client.close()
        await self.process.stop()


class LlamaCpp:
    """A model that this service loads. The process starts with the first call (or `load`) and again after a crash."""

    kind = "llamacpp"

    def __init__(self, name: str, options: LlamaCppOptions) -> None:
        self._name = name
        self._options = options
        self._server: _Server | None = None
        self._starting: asyncio.Task[_Server] | None = None
        self._dimension = 0
        self._pause = _FIRST_PAUSE
        self._failed_at: float | None = None

    @property
    def context_length(self) -> int:
        """Of one generation."""
        return self._options.context_length

    @property
    def dimension(self) -> int:
        """Known after the first call."""
        return self._dimension

    @property
    def server_address(self) -> tuple[str, str] | None:
        """URL and API key of the running server, for measuring beside the service; None = it does not run."""
        server = self._server
        return (server.process.url, server.process.api_key) if server and server.process.is_running else None

    async def load(self) -> None:
        """Start the server now."""
        await self._running()

    async def check(self) -> bool:
        """A running server answers; one that has not been asked for yet counts as available when its file is there."""
        server = self._server
        if server is not None and server.process.is_running:
            return await server.client.check()
        if self._failed_at is not None or self._starting is not None:
            return self._starting is not None
        await self._options.find_file()
        return True

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Write an answer. Closing the iterator closes the connection, at which the server frees the slot."""
        server = await self._running()
        async with aclosing(server.client.generate(generation)) as pieces:
            async for piece in pieces:
                yield piece

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors, normalised by the server."""
        vectors = await (await self._running()).client.embed(texts)
        self._dimension = vectors.dimension
        return vectors

    async def count_tokens(self, content: str | tuple[Message, ...]) -> int:
        """By the model's own tokenizer and chat template."""
        return await (await self._running()).client.count_tokens(content)

    async def close(self) -> None:
        """Stop the server; calls under way fail."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()

    async def _running(self) -> _Server:
        """The server, started if need be. Callers share one start; it goes on when one of them gives up waiting."""
        server = self._server
        if server is not None and server.process.is_running:
            return server
        if self._starting is None:
            self._refuse_too_early()
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._started)
        return await asyncio.shield(self._starting)

    async def _start(self) -> _Server:
        if self._server is not None:
            log.warning("model_server_ended", model=self._name, last_lines=self._server.process.last_lines)
            await self._server.stop()
            self._server = None
        path = await self._options.find_file()
        started = monotonic()
        options = self._options
        try:
            process = await LlamaCppProcess.start(
                {
                    "name": self._name,
                    "path": str(path),
                    "parallel": options.parallel,
                    "context_length": options.context_length,
                    "threads": options.threads,
                    "connections": options.connections,
                    "embedding": options.embedding,
                }
            )
        except LoadFailed as error:
            raise ModelMisconfiguredError(self._name, f"llama.cpp cannot load {path.name}: {error}") from error
        except TimeoutError as error:
            raise ModelUnavailableError(self._name, "loading takes too long.") from error
        log.info("model_loaded", model=self._name, seconds=round(monotonic() - started, 3))
        client = OpenAICompatible(
            self._name,
            ServerOptions(
                base_urls=(f"{process.url}/v1",),
                model=self._name,
                api_key=process.api_key,
                context_length=options.context_length,
            ),
        )
        return _Server(process, client)

    def _started(self, task: asyncio.Task[_Server]) -> None:
        self._starting = None
        if task.cancelled():
            return
        failure = task.exception()
        if failure is None:
            self._server, self._failed_at, self._pause = task.result(), None, _FIRST_PAUSE
            return
        self._pause = min(self._pause * 2, _LONGEST_PAUSE) if self._failed_at is not None else _FIRST_PAUSE
        self._failed_at = monotonic()
        log.warning("model_not_loaded", model=self._name, error=str(failure))

    def _refuse_too_early(self) -> None:
        if self._failed_at is not None:
            left = self._failed_at + self._pause - monotonic()
            if left > 0:
                raise ModelUnavailableError(self._name, "it could not be loaded a moment ago.", retry_after=left)
