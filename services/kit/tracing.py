"""Traces: where spans go, whose word decides which are recorded, and the context that travels with the work.

Set up by OpenTelemetry's own variables. Without an endpoint nothing is recorded; trace ids are made and passed on all
the same, so that logs can be joined by them. No span holds payloads, prompts, secrets or messages of errors.
"""

import random
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.ids import new_id
from services.kit.settings import EnvironmentSettings

_FLUSH_SECONDS = 3.0
"""How long a process that stops waits for what it has recorded to be taken."""
_PROPAGATOR = TraceContextTextMapPropagator()
_ODD = frozenset("13579bdf")
tracer = trace.get_tracer("headrace")
"""What all of the product makes its spans with."""
_callers_decide = False
"""What a caller does not record is not recorded here either, and no sampler need be asked."""


class TracingSettings(EnvironmentSettings):
    """Where spans go and how many are recorded: the standard's names, as the SDK and collectors document them."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    endpoint: str = Field(
        "",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="OTLP receiver over gRPC, such as `http://collector:4317`; empty = nothing is recorded.",
    )
    traces_endpoint: str = Field(
        "", validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", description="The same for traces alone."
    )
    protocol: Literal["grpc"] = Field(
        "grpc", validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL", description="The one protocol that is spoken."
    )
    sampler: Literal[
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = Field(
        "parentbased_always_on",
        validation_alias="OTEL_TRACES_SAMPLER",
        description="Which traces are recorded; `parentbased_traceidratio` for a share of them.",
    )
    sampler_arg: float = Field(
        1.0, ge=0, le=1, validation_alias="OTEL_TRACES_SAMPLER_ARG", description="That share, from 0 to 1."
    )
    trust_traceparent: bool = Field(
        False,
        validation_alias="HEADRACE_TRUST_TRACEPARENT",
        description="The gateway lets callers decide by `traceparent` whether their trace is recorded. "
        "Only where all callers are the operator's own.",
    )


def start_tracing(service: str, *, at_edge: bool = False) -> Callable[[], None]:
    """Set tracing up for this process, once; call what is returned at its end, which takes at most 3 s.

    `at_edge`: what calls are strangers. Raises ValidationError.
    """
    global _callers_decide  # noqa: PLW0603 - one provider for the process, as OpenTelemetry has it
    settings = TracingSettings()
    is_off = not settings.endpoint and not settings.traces_endpoint
    _callers_decide = is_off or (settings.sampler.startswith("parentbased_") and not at_edge)
    if is_off:
        trace.set_tracer_provider(TracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False))
        return _nothing
    # Their import takes memory and start-up time that only those pay who trace.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = {
        "service.name": f"headrace-{service}",
        "service.version": version("headrace"),
        "service.instance.id": str(new_id()),
    }
    # What the environment says of the resource comes last, and wins.
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(
        sampler=sampler_of(settings, trusts_remote=settings.trust_traceparent or not at_edge),
        resource=resource,
        shutdown_on_exit=False,
    )
    # It takes the endpoint and all else from the environment. What its queue cannot hold is dropped.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)

    return stop


def _nothing() -> None:
    """There is nothing to flush."""


def sampler_of(settings: TracingSettings, *, trusts_remote: bool) -> sampling.Sampler:
    """Who decides what is recorded; `trusts_remote`: callers, for what they call."""
    kind = settings.sampler.removeprefix("parentbased_")
    root: sampling.Sampler
    if kind == "traceidratio":
        root = sampling.TraceIdRatioBased(settings.sampler_arg)
    else:
        root = sampling.ALWAYS_ON if kind == "always_on" else sampling.ALWAYS_OFF
    if kind == settings.sampler:
        return root
    if trusts_remote:
        return sampling.ParentBased(root)
    by_chance = _ByChance(root)
    return sampling.ParentBased(root, remote_parent_sampled=by_chance, remote_parent_not_sampled=by_chance)


class _ByChance(sampling.Sampler):
    """Decides as the root sampler does for a trace of its own, whatever id and flags a stranger has chosen.

    The stranger's trace id is kept, so that its trace and ours can be joined. Its sampled flag would let any client
    make everything it does be recorded, and so would an id that is chosen to fall under the ratio.
    """

    def __init__(self, root: sampling.Sampler) -> None:
        self._root = root

    def should_sample(  # noqa: PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> sampling.SamplingResult:
        """See Sampler."""
        chance = random.getrandbits(128)
        return self._root.should_sample(None, chance, name, kind, attributes, links)

    def get_description(self) -> str:
        """See Sampler."""
        return f"ByChance{{{self._root.get_description()}}}"


def context_of(traceparent: str) -> Context:
    """The context that a `traceparent` names; an empty one when there is none or it is malformed."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context()) if traceparent else Context()


def traceparent_of(span: trace.Span) -> str:
    """How a span is named to others; empty when there is none."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def is_recorded(traceparent: str) -> bool:
    """The trace that a `traceparent` names is recorded."""
    # The lowest of the flags, which are in hexadecimal: one for random ids stands beside it.
    return traceparent[-1:] in _ODD


def server_span(
    name: str, caller: Context, kind: trace.SpanKind = trace.SpanKind.SERVER, attributes: Attributes = None
) -> trace.Span:
    """A started span for what a caller has asked for, under the caller's.

    The caller's own, on which nothing has an effect, where that is not recorded and decides.
    """
    if _callers_decide:
        span = trace.get_current_span(caller)
        context = span.get_span_context()
        if context.is_valid and not context.trace_flags.sampled:
            return span
    return tracer.start_span(name, context=caller, kind=kind, attributes=attributes)


def client_span(name: str, attributes: Attributes = None) -> trace.Span:
    """A started span for a call that is being made, under the present one, if that is recorded.

    Else the present one, on which nothing has an effect, `end` included: what is not recorded costs next to nothing.
    """
    present = trace.get_current_span()
    if not present.is_recording():
        return present
    return tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)


def mark_failed(span: trace.Span, reason: str) -> None:
    """Say that what the span stands for failed; `reason` is a code, not a message."""
    span.set_attribute("error.type", reason)
    span.set_status(trace.StatusCode.ERROR)
