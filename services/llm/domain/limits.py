"""How much may go on at once, and how large: bounded queues, prompt sizes, lengths of answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from prometheus_client import Gauge

from services.llm.domain.errors import PromptTooLongError, QueueFullError
from services.llm.domain.model import Generation

_WAITING = Gauge("headrace_llm_queue_length", "Calls that wait for their turn at a model.", ["model"])
_WAITING_TOKENS = Gauge(
    "headrace_llm_queued_tokens",
    "Tokens that the waiting calls may take: prompts, estimated by size, and the most that they may write.",
    ["model"],
)
_RUNNING = Gauge("headrace_llm_calls_under_way", "Calls that a model works on.", ["model"])
_SMOOTHING = 0.2
"""Weight of the newest call in the mean duration."""
_LEAST_DELAY, _LONGEST_DELAY = 1.0, 60.0


class Admission:
    """Lets `max_concurrency` calls through at a time, first come first served, and at most `max_queue` wait."""

    def __init__(self, model: str, *, max_concurrency: int, max_queue: int) -> None:
        self._model = model
        self._max_concurrency = max_concurrency
        self._max_queue = max_queue
        self._places = asyncio.Semaphore(max_concurrency)
        self._waiting = 0
        self._mean_seconds = 1.0
        self._waiting_gauge = _WAITING.labels(model)
        self._tokens_gauge = _WAITING_TOKENS.labels(model)
        self._running_gauge = _RUNNING.labels(model)

    @asynccontextmanager
    async def enter(self, tokens: int) -> AsyncIterator[None]:
        """Wait for a place and hold it; `tokens`: that the call may take. Raises QueueFullError when too many wait."""
        if self._places.locked() and self._waiting >= self._max_queue:
            raise QueueFullError(self._model, waiting=self._waiting, retry_after=self._delay())
        self._waiting += 1
        self._waiting_gauge.set(self._waiting)
        self._tokens_gauge.inc(tokens)
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
            self._waiting_gauge.set(self._waiting)
            self._tokens_gauge.dec(tokens)
        self._running_gauge.inc()
        started = time.monotonic()
        try:
            yield
        finally:
            self._places.release()
            self._running_gauge.dec()
            self._mean_seconds += _SMOOTHING * (time.monotonic() - started - self._mean_seconds)

    def _delay(self) -> float:
        """Seconds until those who wait now have had their turn, by the mean duration of late."""
        expected = self._mean_seconds * (self._waiting + 1) / self._max_concurrency
        return min(max(expected, _LEAST_DELAY), _LONGEST_DELAY)


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Bounds that hold for every call to a model."""

    max_prompt_bytes: int
    max_tokens: int
    """Most tokens of one answer, also when the caller asks for more or for no limit."""

    def bounded(self, model: str, generation: Generation, *, context_length: int) -> Generation:
        """The generation with max_tokens set. Raises PromptTooLongError by size alone, before any work."""
        size = generation.size_bytes()
        if size > self.max_prompt_bytes:
            raise PromptTooLongError(model, f"{size} bytes of text, the limit is {self.max_prompt_bytes}.")
        asked = generation.sampling.max_tokens
        if asked is None:
            # Servers such as vLLM refuse a max_tokens that does not fit beside the prompt: leave it half the context.
            asked = max(context_length // 2, 1) if context_length else self.max_tokens
        return replace(generation, sampling=replace(generation.sampling, max_tokens=min(asked, self.max_tokens)))
