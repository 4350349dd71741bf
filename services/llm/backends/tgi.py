"""Hugging Face's Text Generation Inference, through the hub library's `AsyncInferenceClient`."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from services.kit.errors import DomainError
from services.llm.backends.failover import ask_one, stream_from_one
from services.llm.backends.http import CONNECT_SECONDS, connection_failed, open_session, post
from services.llm.backends.openai_wire import error_from_answer, finish_reason, message_json, tools_json
from services.llm.domain.errors import (
    ModelRateLimitedError,
    ModelUnavailableError,
    PromptTooLongError,
    UnsupportedError,
)
from services.llm.domain.model import Ending, Generation, Message, Piece, ToolCall, Usage, Vectors
from services.llm.domain.routing import Replica, Replicas

_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=CONNECT_SECONDS)


@dataclass(frozen=True, slots=True)
class TgiOptions:
    """How to speak to TGI."""

    base_urls: tuple[str, ...]
    """Without `/v1`; one per replica."""
    api_key: str = field(default="", repr=False)
    context_length: int = 0
    """0 = as the server tells."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Merged into the body of every generation."""
    silence_seconds: float = 120.0
    """Longest time without a byte before the replica counts as failed."""


class Tgi:
    """A model behind TGI. Replicas and failures as with `OpenAICompatible`."""

    kind = "tgi"
    dimension = 0

    def __init__(self, name: str, options: TgiOptions) -> None:
        self._name = name
        self._options = options
        self._replicas = Replicas(options.base_urls)
        self._context_length = options.context_length
        headers = {"content-type": "application/json"}
        if options.api_key:
            headers["authorization"] = f"Bearer {options.api_key}"
        # For what the hub's client lacks: health, limits, tokenizer.
        self._client = open_session(headers, silence=options.silence_seconds)

    @property
    def context_length(self) -> int:
        """As configured, else as the server tells."""
        return self._context_length

    async def load(self) -> None:
        """Import the client: a third of a second that the event loop must not wait for."""
        await asyncio.to_thread(_import_client)

    async def check(self) -> bool:
        """Ask every replica for its health; a failure counts against it. True when one answers."""
        return any(await asyncio.gather(*(self._check_replica(replica) for replica in self._replicas.all)))

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Write an answer; another replica takes over while nothing has been written."""
        await self.load()
        pieces = stream_from_one(self._name, self._replicas, lambda replica: self._read_answer(replica, generation))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Raise UnsupportedError: TGI writes only."""
        raise UnsupportedError(self._name, "embed text")

    async def count_tokens(self, content: str | tuple[Message, ...]) -> int:
        """By the server's tokenizer; messages with its chat template."""
        if isinstance(content, str):
            return len(await self._ask("/tokenize", {"inputs": content}))
        body = {"model": "tgi", "messages": [message_json(message) for message in content]}
        return len((await self._ask("/chat_tokenize", body))["tokenize_response"])

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _read_answer(self, replica: Replica, generation: Generation) -> AsyncGenerator[Piece, None]:
        from huggingface_hub import AsyncInferenceClient

        reading = _Reading()
        try:
            # A client for each call: it keeps the response of a stream open until it is itself closed, and only that
            # tells the server to stop writing.
            async with AsyncInferenceClient(
                base_url=replica.url, api_key=self._options.api_key or None, timeout=self._options.silence_seconds
            ) as client:
                async for event in await client.chat_completion(**self._arguments(generation)):
                    text = reading.take(event)
                    if text:
                        yield Piece(text)
        except Exception as error:
            raise self._translated(error) from error
        ending = reading.ending()
        if ending is None:
            raise ModelUnavailableError(self._name, "its server ended the answer in the middle.")
        yield Piece(ending=ending)

    def _arguments(self, generation: Generation) -> dict[str, Any]:
        sampling = generation.sampling
        schema = generation.response_schema
        if schema is None and generation.json_object:
            schema = {"type": "object"}
        return {
            "messages": [message_json(message) for message in generation.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_tokens,
            # TGI refuses 0 ("strictly positive"); this is greedy for every practical purpose.
            "temperature": None if sampling.temperature is None else max(sampling.temperature, 0.01),
            "top_p": sampling.top_p if sampling.top_p is not None and sampling.top_p < 1 else None,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "tools": tools_json(generation) or None,
            # TGI's own form (`GrammarType` in its router): a type and a value.
            "response_format": {"type": "json", "value": schema} if schema is not None else None,
            "extra_body": dict(self._options.extra) or None,
        }

    def _translated(self, error: Exception) -> DomainError:
        """What a failure of the hub's client means."""
        import httpx2  # the hub library's HTTP client
        from huggingface_hub.errors import HfHubHTTPError, OverloadedError, TextGenerationError, ValidationError

        if isinstance(error, DomainError):
            return error
        if isinstance(error, HfHubHTTPError):
            response = error.response
            body = response.content if response.is_stream_consumed else str(error.server_message or "").encode()
            return error_from_answer(self._name, response.status_code, response.headers, body)
        if isinstance(error, OverloadedError):
            return ModelRateLimitedError(self._name, retry_after=1.0)
        if isinstance(error, ValidationError):
            return PromptTooLongError(self._name, str(error)[:300])
        if isinstance(error, TextGenerationError):
            return ModelUnavailableError(self._name, f"its server failed: {str(error)[:300]}")
        if isinstance(error, TimeoutError):
            return ModelUnavailableError(self._name, "its server does not answer in time.")
        if isinstance(error, httpx2.HTTPError):
            return ModelUnavailableError(self._name, f"the connection to its server failed ({type(error).__name__}).")
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            return ModelUnavailableError(self._name, "its server sent something that is not TGI's protocol.")
        raise error

    async def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        async def ask(replica: Replica) -> Any:
            try:
                async with await post(self._client, replica.url + path, orjson.dumps(body)) as response:
                    content = await response.read()
            except TimeoutError as error:
                raise ModelUnavailableError(self._name, "its server does not answer in time.") from error
            except aiohttp.ClientError as error:
                raise connection_failed(self._name, error) from error
            if response.status in (404, 405):
                raise UnsupportedError(self._name, "count tokens: this version of TGI shows no tokenizer")
            if response.status != 200:
                raise error_from_answer(self._name, response.status, response.headers, content)
            return orjson.loads(content)

        return await ask_one(self._name, self._replicas, ask)

    async def _check_replica(self, replica: Replica) -> bool:
        try:
            async with self._client.get(replica.url + "/health", timeout=_HEALTH_TIMEOUT) as response:
                is_well = response.status == 200
            if is_well and not self._context_length:
                async with self._client.get(replica.url + "/info", timeout=_HEALTH_TIMEOUT) as response:
                    info = orjson.loads(await response.read()) if response.ok else {}
                self._context_length = int(info.get("max_total_tokens") or 0)
        except (aiohttp.ClientError, TimeoutError):
            replica.breaker.failed()
            return False
        except (ValueError, TypeError, AttributeError):
            pass  # `/info` is a convenience: generation does not depend on it.
        return is_well


class _Reading:
    """Collects what the events of one answer say besides text."""

    def __init__(self) -> None:
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._calls: dict[int, list[str]] = {}

    def take(self, event: Any) -> str:
        """The text of an event (`ChatCompletionStreamOutput`)."""
        if event.usage:
            self._usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        text = ""
        for choice in event.choices or ():
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                parts = self._calls.setdefault(call.index or 0, ["", "", ""])
                parts[0] = parts[0] or call.id or ""
                parts[1] = parts[1] or call.function.name or ""
                parts[2] += call.function.arguments or ""
            self._finish = choice.finish_reason or self._finish
        return text

    def ending(self) -> Ending | None:
        """How the answer ended; None when it broke off."""
        if self._finish is None:
            return None
        calls = tuple(ToolCall(*parts) for _, parts in sorted(self._calls.items()))
        return Ending(finish_reason(self._finish), self._usage, calls)


def _import_client() -> None:
    from huggingface_hub import AsyncInferenceClient  # noqa: F401 - imported for its effect
