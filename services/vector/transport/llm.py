"""The domain's Embedder over the llm service."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
from headrace.llm.v1 import llm_service_pb2 as pb
from headrace.llm.v1.llm_pb2 import Model
from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceStub

from services.kit.errors import (
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from services.kit.grpc_client import Rpc
from services.vector.domain.embedder import EmbeddingModel
from services.vector.domain.model import ModelNotFoundError, ModelUnavailableError

if TYPE_CHECKING:  # one class when running, typed as two
    from headrace.llm.v1.llm_service_pb2_grpc import LlmServiceAsyncStub

_TEXTS_PER_CALL = 256
"""A model embeds them in a few seconds; the deadline of a call of 1,000 texts would be met or missed as a whole."""


class LlmEmbedder:
    """Asks the llm service. Without one (`stub` None) every text is refused with MODEL_UNAVAILABLE."""

    def __init__(self, channel: grpc.aio.Channel | None, rpc: Rpc) -> None:
        self._stub: LlmServiceAsyncStub | None = LlmServiceStub(channel) if channel is not None else None
        self._rpc = rpc

    async def model(self, project_id: UUID, name: str, *, timeout_seconds: float) -> EmbeddingModel:
        """The model of that name, the default one for ""; its dimension is found out if nobody knows it yet."""
        stub = self._connected()
        try:
            listed = await self._rpc.call(stub.ListModels, pb.ListModelsRequest(), timeout=timeout_seconds)
        except (UnavailableError, DeadlineExceededError) as error:
            raise _unavailable(name) from error
        model = _pick(list(listed.models), name)
        if model.dimension:
            return EmbeddingModel(model.name, model.dimension)
        vectors = await self.embed(project_id, model.name, ["dimension"], timeout_seconds=timeout_seconds)
        return EmbeddingModel(model.name, len(vectors[0]) // 4)

    async def embed(self, project_id: UUID, model: str, texts: Sequence[str], *, timeout_seconds: float) -> list[bytes]:
        """A vector per text, in order."""
        stub = self._connected()
        vectors: list[bytes] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            part = texts[start : start + _TEXTS_PER_CALL]
            request = pb.EmbedRequest(project_id=str(project_id), model=model, texts=part)
            try:
                answer = await self._rpc.call(stub.Embed, request, timeout=timeout_seconds)
            except NotFoundError as error:
                raise ModelNotFoundError(error.message) from error
            except (UnavailableError, DeadlineExceededError) as error:
                raise _unavailable(model) from error
            size = 4 * answer.dimension
            if size == 0 or len(answer.vectors) != size * len(part):
                raise InternalError(f"{len(answer.vectors)} bytes of vectors for {len(part)} texts")
            vectors.extend(answer.vectors[at : at + size] for at in range(0, len(answer.vectors), size))
        return vectors

    def _connected(self) -> "LlmServiceAsyncStub":
        if self._stub is None:
            raise ModelUnavailableError("No llm service is configured (HEADRACE_LLM_TARGET): give vectors, not texts.")
        return self._stub


def _pick(models: list[Model], name: str) -> Model:
    embedding = [model for model in models if model.embeds]
    for model in embedding:
        if model.name == name or (not name and model.is_default):
            return model
    if not name:
        raise ModelNotFoundError(
            "No embedding model is configured. Name a dimension to make a collection that takes vectors."
        )
    known = ", ".join(model.name for model in embedding) or "none"
    raise ModelNotFoundError(f"There is no embedding model {name[:128]!r}. There are: {known}.")


def _unavailable(name: str) -> ModelUnavailableError:
    model = f"The model {name!r}" if name else "The llm service"
    return ModelUnavailableError(f"{model} does not answer now, so texts cannot be embedded. Try again.", retry_after=2)
