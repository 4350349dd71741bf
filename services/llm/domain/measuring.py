"""What is counted and traced of calls to models."""

import time
from types import TracebackType

from opentelemetry import trace
from prometheus_client import Counter, Histogram

from services.kit.errors import DomainError
from services.kit.tracing import client_span, mark_failed
from services.llm.domain.catalogue import Model
from services.llm.domain.model import FinishReason, Generation, Usage

_TOKENS = Counter("headrace_llm_tokens_total", "Tokens read and written.", ["model", "direction"])
_CALLS = Counter("headrace_llm_calls_total", "Calls by how they ended.", ["model", "operation", "outcome"])
_DURATION = Histogram(
    "headrace_llm_call_duration_seconds",
    "From the call to its end, waiting included, however it ended.",
    ["model", "operation"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
_SPEED = Histogram(
    "headrace_llm_tokens_per_second",
    "Tokens that a whole answer brought per second, from its first text to its end.",
    ["model"],
    buckets=(1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 500, 1000),
)
_SPEND = Counter(
    "headrace_llm_spend_total",
    "What the tokens cost by the prices that are set, in the currency that these are in.",
    ["model"],
)
_FIRST_TOKEN = Histogram(
    "headrace_llm_time_to_first_token_seconds",
    "From the call to the first text, waiting included.",
    ["model"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
_OPERATIONS = {"chat": "generate", "embeddings": "embed"}
"""Ours, by what OpenTelemetry calls them."""
_SAMPLING = ("max_tokens", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty")


class Measured:
    """One call of a model: its metrics, and its span by OpenTelemetry's conventions for generative AI.

    Neither has what was asked or answered.
    """

    def __init__(self, model: Model, operation: str, asked: str, generation: Generation | None = None) -> None:
        self._model = model
        self._operation = operation
        self._asked = asked
        self._generation = generation
        self._first_at: float | None = None
        self.ended = False

    async def __aenter__(self) -> "Measured":
        self._started = time.monotonic()
        self._span = client_span(f"{self._operation} {self._model.name}")
        if self._span.is_recording():
            self._describe(self._span)
        return self

    def _describe(self, span: trace.Span) -> None:
        span.set_attributes(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": self._model.backend.kind,
                "gen_ai.request.model": self._asked or self._model.name,
                "gen_ai.response.model": self._model.name,
            }
        )
        if self._generation is not None:
            sampling = self._generation.sampling
            for name in _SAMPLING:
                value = getattr(sampling, name)
                if value is not None:
                    span.set_attribute(f"gen_ai.request.{name}", value)

    def admitted(self) -> None:
        """It does not wait for its turn any more."""
        self._span.set_attribute("headrace.llm.queued_seconds", time.monotonic() - self._started)

    def wrote(self) -> None:
        """There is text."""
        if self._first_at is None:
            self._first_at = time.monotonic()
            seconds = self._first_at - self._started
            _FIRST_TOKEN.labels(self._model.name).observe(seconds)
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def used(self, usage: Usage, finish_reason: FinishReason | None = None) -> None:
        """It has come to its end."""
        self.ended = True
        model = self._model
        _TOKENS.labels(model.name, "prompt").inc(usage.prompt_tokens)
        self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        if finish_reason is not None:
            _TOKENS.labels(model.name, "completion").inc(usage.completion_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            self._span.set_attribute("gen_ai.response.finish_reasons", [str(finish_reason)])
        if model.prices is not None:
            _SPEND.labels(model.name).inc(model.prices.of(usage))
        if self._first_at is not None and usage.completion_tokens > 1:
            seconds = max(time.monotonic() - self._first_at, 1e-6)
            _SPEED.labels(model.name).observe(usage.completion_tokens / seconds)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        outcome = "ok" if self.ended else "cancelled"
        if isinstance(error, DomainError):
            outcome = error.reason
            mark_failed(self._span, outcome)
        self._span.end()
        operation = _OPERATIONS[self._operation]
        _CALLS.labels(self._model.name, operation, outcome).inc()
        _DURATION.labels(self._model.name, operation).observe(time.monotonic() - self._started)
