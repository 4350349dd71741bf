"""The vector service in this process, on real sockets, PostgreSQL and FAISS, and a stand-in for the llm service."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from headrace.common.v1.value_pb2 import Json
from headrace.llm.v1 import llm_pb2, llm_service_pb2
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceServicer, add_LlmServiceServicer_to_server
from headrace.vector.v1 import vector_pb2
from headrace.vector.v1 import vector_service_pb2 as pb
from headrace.vector.v1.vector_service_pb2_grpc import VectorServiceStub
from numpy.typing import NDArray
from pydantic import SecretStr

from services.kit.grpc_client import Rpc, open_channel
from services.kit.grpc_server import GrpcServer
from services.kit.identity import CallerTokens
from services.vector.main import start
from services.vector.settings import Settings

KEY = b"0123456789abcdef0123456789abcdef"
TOKENS = CallerTokens(KEY)
WORDS_DIMENSION = 64


class HashingLlm(LlmServiceServicer):
    """Embeds a text as its bag of words, hashed: texts that share words are near. Known as `words`."""

    async def ListModels(self, request, context):
        model = llm_pb2.Model(name="words", embeds=True, is_default=True)
        return llm_service_pb2.ListModelsResponse(models=[model])

    async def Embed(self, request, context):
        rows = [bag_of_words(text) for text in request.texts]
        return llm_service_pb2.EmbedResponse(vectors=np.concatenate(rows).tobytes(), dimension=WORDS_DIMENSION)

    async def Generate(self, request, context):
        raise NotImplementedError

    async def StreamGenerate(self, request, context):
        raise NotImplementedError
        yield

    async def CountTokens(self, request, context):
        raise NotImplementedError


def bag_of_words(text: str) -> NDArray[np.float32]:
    """The vector of a text."""
    vector = np.zeros(WORDS_DIMENSION, "<f4")
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % WORDS_DIMENSION] += 1
    return vector


@asynccontextmanager
async def hashing_llm(folder: Path) -> AsyncIterator[str]:
    """Serve HashingLlm; yields its target."""
    address = f"unix:{folder}/llm.sock"
    server = GrpcServer(listen=address, tokens=TOKENS, service_names=())
    add_LlmServiceServicer_to_server(HashingLlm(), server.server)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@dataclass
class VectorClient:
    """Calls one replica of the service for one project."""

    stub: Any
    project_id: str
    rpc: Rpc

    async def call(self, method: str, /, **fields: Any) -> Any:
        """Call a method by name."""
        request = getattr(pb, f"{method}Request")(project_id=self.project_id, **fields)
        return await self.rpc.call(getattr(self.stub, method), request, timeout=20)

    async def upsert(self, collection: str, *records: vector_pb2.Record, request_id: str = "") -> list[str]:
        """Write records; returns their ids."""
        answer = await self.call("UpsertRecords", collection=collection, records=records, request_id=request_id)
        return list(answer.ids)

    async def search(self, collection: str, query: str | list[float] | NDArray[Any], **fields: Any) -> list[Any]:
        """The matches."""
        asked = {"text": query} if isinstance(query, str) else {"vector": packed(query)}
        return list((await self.call("Search", collection=collection, **asked, **fields)).matches)

    async def found(self, collection: str, query: str | list[float] | NDArray[Any], **fields: Any) -> list[str]:
        """The ids of the matches."""
        return [match.record.id for match in await self.search(collection, query, **fields)]


@asynccontextmanager
async def vector_service(
    url: str, folder: Path, project_id: str, *, llm_target: str = "", **settings: Any
) -> AsyncIterator[VectorClient]:
    """A replica with its index files in `folder`/indexes, and a client of it."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    listen = f"unix:{folder}/{np.random.default_rng().integers(1 << 40):x}.sock"
    async with AsyncExitStack() as stack:
        await start(
            stack,
            Settings(
                listen=listen,
                metrics_listen="",
                postgres_url=SecretStr(url),
                index_dir=folder / "indexes",
                llm_target=llm_target,
                **settings,
            ),
            KEY,
        )
        channel = await stack.enter_async_context(open_channel(listen))
        yield VectorClient(VectorServiceStub(channel), project_id, Rpc(TOKENS.for_service("test")))


def a_record(record_id: str = "", vector: Any = None, *, text: str = "", metadata: bytes = b"") -> vector_pb2.Record:
    """A record to write."""
    return vector_pb2.Record(
        id=record_id,
        text=text,
        vector=b"" if vector is None else packed(vector),
        metadata=Json(utf8=metadata) if metadata else None,
    )


def packed(vector: Any) -> bytes:
    """A vector as it travels."""
    return np.asarray(vector, "<f4").tobytes()
