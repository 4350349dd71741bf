"""The gRPC side of the service: one domain call per method."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from headrace.llm.v1 import llm_service_pb2 as pb
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceServicer

from services.llm.domain.catalogue import Catalogue
from services.llm.domain.model import Usage
from services.llm.domain.pacing import paced
from services.llm.domain.streaming import Answering
from services.llm.transport.convert import (
    content_from_proto,
    finish_to_proto,
    generation_from_proto,
    model_to_proto,
    texts_from_proto,
    tool_calls_to_proto,
    usage_to_proto,
)

# Generic for type checkers only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class LlmGrpc(LlmServiceServicer):
    """Answers the calls of headrace.llm.v1.LlmService. A cancelled or overdue call cancels the work behind it."""

    def __init__(self, answering: Answering, catalogue: Catalogue) -> None:
        self._answering = answering
        self._catalogue = catalogue

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Write an answer."""
        generation = generation_from_proto(request.messages, request.options)
        answer = await self._answering.generate(request.model, generation)
        return pb.GenerateResponse(
            text=answer.text,
            tool_calls=tool_calls_to_proto(answer.ending),
            finish_reason=finish_to_proto(answer.ending.finish_reason),
            usage=usage_to_proto(answer.usage),
            model=answer.model,
        )

    async def StreamGenerate(
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Write an answer piece by piece."""
        generation = generation_from_proto(request.messages, request.options)
        name, stream = self._answering.stream(request.model, generation)
        async with aclosing(paced(stream)) as pieces:
            async for piece in pieces:
                response = pb.StreamGenerateResponse(delta=piece.delta, model=name)
                if piece.ending is not None and piece.ending.usage is not None:
                    response.tool_calls.extend(tool_calls_to_proto(piece.ending))
                    response.finish_reason = finish_to_proto(piece.ending.finish_reason)
                    response.usage.CopyFrom(usage_to_proto(piece.ending.usage))
                yield response

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Turn texts into vectors."""
        name, vectors = await self._answering.embed(request.model, texts_from_proto(request.texts))
        return pb.EmbedResponse(
            vectors=vectors.data,
            dimension=vectors.dimension,
            usage=usage_to_proto(Usage(vectors.prompt_tokens, 0)),
            model=name,
        )

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List the models by name."""
        return pb.ListModelsResponse(models=[model_to_proto(info) for info in await self._catalogue.list()])

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """Count tokens."""
        content = content_from_proto(request.messages, request.text)
        name, tokens = await self._answering.count_tokens(request.model, content)
        return pb.CountTokensResponse(tokens=tokens, model=name)
