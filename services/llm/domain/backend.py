"""What the service asks of whatever runs a model."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from services.llm.domain.model import Generation, Message, Piece, Vectors


class Backend(Protocol):
    """One model on one inference server, or loaded here.

    All methods may be called concurrently. Errors are those of `domain.errors`. Cancelling a call, or closing a
    generation's iterator, stops the work at the server too.
    """

    @property
    def kind(self) -> str:
        """`openai`, `tgi`, `llamacpp` or `sentence_transformers`."""

    @property
    def context_length(self) -> int:
        """Longest prompt plus answer in tokens; 0 = not known (yet)."""

    @property
    def dimension(self) -> int:
        """Length of its vectors; 0 = not known (yet)."""

    async def load(self) -> None:
        """Load the model now rather than at the first call. Idempotent; nothing to do for a remote server."""

    async def check(self) -> bool:
        """Tell cheaply whether a call would find the model: without loading it and without generating."""

    def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Write an answer. The last piece alone has an ending; its usage is None when the server told none."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts, in their order; texts longer than the model reads are cut."""

    async def count_tokens(self, content: str | tuple[Message, ...]) -> int:
        """Tokens of a text as it is, or of messages with the chat template. UnsupportedError where impossible."""

    async def close(self) -> None:
        """Let go of connections, processes and memory. Idempotent; no call may follow."""
