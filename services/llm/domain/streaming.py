"""Answers and vectors for callers: one path for every backend, with limits, usage and measurements.

A caller gets pieces of text and then exactly one ending with usage, or an error; never a silent end.
"""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog
from prometheus_client import Counter

from services.kit.errors import DomainError
from services.llm.domain.catalogue import Catalogue, Model
from services.llm.domain.errors import ModelUnavailableError
from services.llm.domain.measuring import Measured
from services.llm.domain.model import Ending, FinishReason, Generation, Message, Piece, Usage, Vectors

log = structlog.get_logger(__name__)

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""A server that ignores max_tokens is stopped here: a quarter of what a gRPC message may hold."""
_BYTES_PER_TOKEN = 4
"""Of English text with the tokenizers of today, about; used only where no server counts."""

_ESTIMATED = Counter("headrace_llm_usage_estimated_total", "Answers whose tokens no server counted.", ["model"])


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    model: str
    text: str
    ending: Ending
    usage: Usage


class Answering:
    """Generates and embeds with the models of a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def generate(self, model_name: str, generation: Generation) -> Answer:
        """Write an answer and return it whole."""
        model = self._catalogue.generator(model_name)
        texts: list[str] = []
        async with aclosing(self._stream(model, model_name, generation)) as pieces:
            async for piece in pieces:
                texts.append(piece.delta)
                if piece.ending is not None and piece.ending.usage is not None:
                    return Answer(model.name, "".join(texts), piece.ending, piece.ending.usage)
        raise AssertionError("a stream ends with an ending or an error")

    def stream(self, model_name: str, generation: Generation) -> tuple[str, AsyncGenerator[Piece, None]]:
        """The model's name and the pieces of its answer. Closing the iterator stops the generation."""
        model = self._catalogue.generator(model_name)
        return model.name, self._stream(model, model_name, generation)

    async def embed(self, model_name: str, texts: Sequence[str]) -> tuple[str, Vectors]:
        """The model's name and the vectors of the texts in their order."""
        model = self._catalogue.embedder(model_name)
        size = sum(len(text) for text in texts)
        async with Measured(model, "embeddings", model_name) as call:
            async with model.admission.enter(size // _BYTES_PER_TOKEN):
                call.admitted()
                vectors = await model.backend.embed(texts)
            call.used(Usage(vectors.prompt_tokens, 0))
        return model.name, vectors

    async def count_tokens(self, model_name: str, content: str | tuple[Message, ...]) -> tuple[str, int]:
        """The model's name and the number of tokens. Raises UnsupportedError where the backend cannot count."""
        model = self._catalogue.any(model_name)
        return model.name, await model.backend.count_tokens(content)

    async def _stream(self, model: Model, name: str, generation: Generation) -> AsyncGenerator[Piece, None]:
        bounded = model.sizes.bounded(model.name, generation, context_length=model.backend.context_length)
        most = generation.size_bytes() // _BYTES_PER_TOKEN + (bounded.sampling.max_tokens or 0)
        async with Measured(model, "chat", name, bounded) as call:
            async with model.admission.enter(most), aclosing(_bounded(model, bounded)) as pieces:
                call.admitted()
                async for piece in pieces:
                    if piece.delta or piece.ending:
                        call.wrote()
                    if piece.ending is not None and piece.ending.usage is not None:
                        call.used(piece.ending.usage, piece.ending.finish_reason)
                    yield piece
            if not call.ended:
                raise ModelUnavailableError(model.name, "the answer broke off before its end.")


async def _bounded(model: Model, generation: Generation) -> AsyncGenerator[Piece, None]:
    """The backend's pieces up to and with the ending, which always has usage; cut at MAX_ANSWER_BYTES."""
    size = 0
    tokens = 0
    async with aclosing(model.backend.generate(generation)) as pieces:
        async for piece in pieces:
            size += len(piece.delta)
            tokens += piece.tokens if piece.delta else 0
            ending = piece.ending
            if size > MAX_ANSWER_BYTES:
                ending = Ending(FinishReason.LENGTH)
            if ending is None:
                yield piece
                continue
            usage = ending.usage or await _estimate(model, generation, tokens)
            yield replace(piece, ending=replace(ending, usage=usage))
            return


async def _estimate(model: Model, generation: Generation, written: int) -> Usage:
    """Usage that the server did not tell: the prompt by its tokenizer, or else by size; the answer by its pieces."""
    _ESTIMATED.labels(model.name).inc()
    try:
        prompt = await model.backend.count_tokens(generation.messages)
    except DomainError:
        prompt = math.ceil(generation.size_bytes() / _BYTES_PER_TOKEN)
    return Usage(prompt_tokens=prompt, completion_tokens=written)
