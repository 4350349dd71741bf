"""What the domain needs of the llm service."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model that embeds texts into vectors of `dimension` numbers."""

    name: str
    dimension: int


class Embedder(Protocol):
    """Embeds texts. Raises ModelUnavailableError when the llm service or the model does not answer."""

    async def model(self, project_id: UUID, name: str, *, timeout_seconds: float) -> EmbeddingModel:
        """The model of that name, the default one for "". Raises ModelNotFoundError."""

    async def embed(self, project_id: UUID, model: str, texts: Sequence[str], *, timeout_seconds: float) -> list[bytes]:
        """A vector per text, in order: float32, little-endian. Raises ModelNotFoundError."""
