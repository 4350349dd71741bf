"""Any server that speaks the OpenAI API: vLLM, SGLang, Ollama, OpenAI, llama.cpp, in one or several replicas.

Plain aiohttp rather than the `openai` package: that adds a second of import and its own retries and models to each
token, while the protocol is two requests and one kind of event (`openai_wire`). Its parser is C: an answer in ten
pieces takes 0.3 ms of processor time, with httpx 2.1 ms and more.
"""

import array
import asyncio
import base64
import binascii
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import orjson

from services.kit.errors import DomainError, UnavailableError
from services.llm.backends.failover import ask_one, stream_from_one
from services.llm.backends.http import CONNECT_SECONDS, connection_failed, open_session, post
from services.llm.backends.openai_wire import ChatStream, chat_json, error_from_answer, message_json
from services.llm.domain.errors import ModelUnavailableError, UnsupportedError
from services.llm.domain.model import Generation, Message, Piece, Vectors
from services.llm.domain.routing import Replica, Replicas

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of one body that is not a stream: 1,000 vectors of 4,096 numbers as JSON text."""
_MAX_ERROR_BYTES = 64 * 1024
_PARALLEL_BATCHES = 4
_END_SECONDS = 0.25
"""The end of a body mostly comes in one packet with the last event."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to speak to a server."""

    base_urls: tuple[str, ...]
    """With `/v1` where the server wants it; one per replica."""
    model: str
    """Its name at the server."""
    api_key: str = field(default="", repr=False)
    context_length: int = 0
    max_tokens_field: str = "max_tokens"
    """`max_completion_tokens` for OpenAI's reasoning models."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Merged into the body of every generation."""
    embed_batch: int = 64
    """Texts in one embedding request."""
    connect_seconds: float = CONNECT_SECONDS
    silence_seconds: float = 120.0
    """Longest time without a byte before the replica counts as failed."""
    health_path: str = "/models"


class OpenAICompatible:
    """A model behind the OpenAI API.

    A call goes to the least busy replica. When that fails before the first token, another one gets it; afterwards the
    caller learns of the failure, because what was written cannot be taken back.
    """

    kind = "openai"

    def __init__(self, name: str, options: ServerOptions) -> None:
        self._name = name
        self._options = options
        self._replicas = Replicas(options.base_urls)
        self._context_length = options.context_length
        self._dimension = 0
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if options.api_key:
            headers["authorization"] = f"Bearer {options.api_key}"
        self._client = open_session(headers, silence=options.silence_seconds, connect=options.connect_seconds)

    @property
    def context_length(self) -> int:
        """As configured, else as the server tells."""
        return self._context_length

    @property
    def dimension(self) -> int:
        """Known after the first call."""
        return self._dimension

    async def load(self) -> None:
        """Nothing: the server has done it."""

    async def check(self) -> bool:
        """Ask every replica for its models; a failure counts against it. True when one answers."""
        answers = await asyncio.gather(*(self._check_replica(replica) for replica in self._replicas.all))
        return any(answers)

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Write an answer; see the class about failures."""
        body = chat_json(generation, model=self._options.model, max_tokens_field=self._options.max_tokens_field)
        content = orjson.dumps({**body, **self._options.extra})
        pieces = stream_from_one(self._name, self._replicas, lambda replica: self._read_answer(replica, content))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors as the server gives them, not normalised here."""
        size = self._options.embed_batch
        batches = [list(texts[start : start + size]) for start in range(0, len(texts), size)]
        places = asyncio.Semaphore(_PARALLEL_BATCHES)

        async def embed_batch(batch: list[str]) -> Vectors:
            async with places:
                body = {"model": self._options.model, "input": batch, "encoding_format": "base64"}
                return await self._ask("/embeddings", body, lambda answer: self._vectors(answer, len(batch)))

        async with _flat_task_group() as group:
            tasks = [group.create_task(embed_batch(batch)) for batch in batches]
        parts = [task.result() for task in tasks]
        dimension = parts[0].dimension
        if any(part.dimension != dimension for part in parts):
            raise ModelUnavailableError(self._name, "its server sent vectors of different lengths.")
        self._dimension = dimension
        return Vectors(b"".join(part.data for part in parts), dimension, sum(part.prompt_tokens for part in parts))

    async def count_tokens(self, content: str | tuple[Message, ...]) -> int:
        """By the server's own tokenizer where it shows it: llama.cpp and vLLM do, beside the OpenAI API."""
        if isinstance(content, str):
            # vLLM calls it `prompt`, llama.cpp `content`; each ignores the other's.
            body = {"model": self._options.model, "prompt": content, "content": content, "add_special_tokens": False}
            return await self._ask_tokenizer("/tokenize", body, _count)
        messages = [message_json(message) for message in content]
        try:
            prompt = await self._ask_tokenizer("/apply-template", {"messages": messages}, lambda body: body["prompt"])
        except UnsupportedError:
            body = {"model": self._options.model, "messages": messages}
            return await self._ask_tokenizer("/tokenize", body, _count)
        return await self._ask_tokenizer("/tokenize", {"content": prompt, "parse_special": True}, _count)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _read_answer(self, replica: Replica, content: bytes) -> AsyncGenerator[Piece, None]:
        stream = ChatStream(self._name)
        async with self._post(replica.url + "/chat/completions", content) as response:
            if not response.content_type.startswith("text/event-stream"):
                yield stream.take_whole(await _read_bounded(response, self._name))
            else:
                async for data in response.content.iter_any():
                    piece = stream.feed(data)
                    if piece is not None:
                        yield piece
                    if stream.is_done:
                        await _read_to_end(response)
                        break
        ending = stream.ending()
        if ending is None:
            raise ModelUnavailableError(self._name, "its server ended the answer in the middle.")
        yield Piece(ending=ending)

    @asynccontextmanager
    async def _post(self, url: str, content: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response of status 200, its body unread. Raises the DomainError that any other outcome means."""
        try:
            async with await post(self._client, url, content) as response:
                if response.status != 200:
                    body = await _read_bounded(response, self._name, limit=_MAX_ERROR_BYTES)
                    raise error_from_answer(self._name, response.status, response.headers, body)
                yield response
        except TimeoutError as error:
            raise ModelUnavailableError(self._name, "its server does not answer in time.") from error
        except aiohttp.ClientError as error:
            raise connection_failed(self._name, error) from error

    async def _ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], *, above: bool = False) -> T:
        """POST to a replica, or another while they fail. `above` leaves the `/v1` out. What repeats does no harm."""
        content = orjson.dumps(body)

        async def ask(replica: Replica) -> T:
            base = replica.url.removesuffix("/v1") if above else replica.url
            async with self._post(base + path, content) as response:
                return self._parse(await _read_bounded(response, self._name), read)

        return await ask_one(self._name, self._replicas, ask)

    async def _ask_tokenizer(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        try:
            return await self._ask(path, body, read, above=True)
        except UnavailableError:
            raise
        except DomainError as error:
            raise UnsupportedError(self._name, "count tokens: its server shows no tokenizer") from error

    def _parse(self, data: bytes, read: Callable[[Any], T]) -> T:
        try:
            return read(orjson.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelUnavailableError(self._name, "its server sent something else than was asked for.") from error

    def _vectors(self, answer: Any, count: int) -> Vectors:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        encoded = [_little_endian(row["embedding"]) for row in rows]
        if len(rows) != count or len({len(row) for row in encoded}) != 1 or len(encoded[0]) % 4:
            raise ValueError("as many vectors as texts, all of one length")
        usage = answer.get("usage") or {}
        return Vectors(b"".join(encoded), len(encoded[0]) // 4, int(usage.get("prompt_tokens") or 0))

    async def _check_replica(self, replica: Replica) -> bool:
        try:
            async with self._client.get(replica.url + self._options.health_path, allow_redirects=False) as response:
                body = await _read_bounded(response, self._name)
        except (aiohttp.ClientError, TimeoutError, ModelUnavailableError):
            replica.breaker.failed()
            return False
        if response.status >= 500:
            replica.breaker.failed()
            return False
        if response.status == 200 and not self._options.context_length:
            self._context_length = _context_length(body, self._options.model) or self._context_length
        # A gateway without this path answers 404 and works.
        return response.status not in (401, 403)


@asynccontextmanager
async def _flat_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first DomainError is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except* DomainError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        failure = first
    else:
        return
    raise failure


async def _read_bounded(response: aiohttp.ClientResponse, model: str, *, limit: int = _MAX_ANSWER_BYTES) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            if response.status != 200:
                break  # The beginning of an error tells enough.
            raise ModelUnavailableError(model, f"its server sent more than {limit} bytes.")
        parts.append(part)
    return b"".join(parts)


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Read what ends the body after its last event, so that the connection serves the next call too, TLS and all."""
    try:
        async with asyncio.timeout(_END_SECONDS):
            async for _ in response.content.iter_any():
                pass
    except (TimeoutError, aiohttp.ClientError):
        return  # the answer is whole; only its connection is lost


def _count(answer: Any) -> int:
    return int(answer["count"]) if "count" in answer else len(answer["tokens"])


def _little_endian(embedding: Any) -> bytes:
    """A vector as bytes, from base64 (float32, little-endian) or, where the server ignores that wish, numbers."""
    if isinstance(embedding, str):
        try:
            return base64.b64decode(embedding, validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
    numbers = array.array("f", embedding)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _context_length(body: bytes, model: str) -> int:
    """What `GET /models` tells of a context: `max_model_len` (vLLM, SGLang) or `meta.n_ctx` (llama.cpp); else 0."""
    try:
        for entry in orjson.loads(body)["data"]:
            if entry["id"] == model:
                return int(entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # Only a convenience: generation does not depend on it.
    return 0
