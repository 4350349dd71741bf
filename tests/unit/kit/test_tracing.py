"""Who decides what is recorded, and how a context travels."""

import os
import subprocess
import sys

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from pydantic import ValidationError

from services.kit.tracing import TracingSettings, context_of, is_recorded, sampler_of, traceparent_of

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-1] + "0"
UNDER_ANY_RATIO = "00-00000000000000010000000000000001-00f067aa0ba902b7-01"


def recorded(kind: str, ratio: float, traceparent: str, *, trusts_remote: bool) -> bool:
    settings = TracingSettings.model_construct(sampler=kind, sampler_arg=ratio)
    provider = TracerProvider(sampler=sampler_of(settings, trusts_remote=trusts_remote), shutdown_on_exit=False)
    span = provider.get_tracer("test").start_span("server", context=context_of(traceparent))
    child = provider.get_tracer("test").start_span("client", context=trace.set_span_in_context(span))
    assert child.is_recording() == span.is_recording(), "what begins here is recorded whole or not at all"
    if traceparent:
        assert traceparent_of(span)[3:35] == traceparent[3:35], "the caller's trace goes on"
    return span.is_recording()


@pytest.mark.parametrize("flag", [SAMPLED, UNSAMPLED, ""])
def test_a_strangers_flag_does_not_matter_at_the_edge(flag: str) -> None:
    assert recorded("parentbased_traceidratio", 1.0, flag, trusts_remote=False)
    assert recorded("parentbased_always_on", 1.0, flag, trusts_remote=False)
    assert not recorded("parentbased_traceidratio", 0.0, flag, trusts_remote=False)
    assert not recorded("parentbased_always_off", 1.0, flag, trusts_remote=False)


def test_a_stranger_cannot_choose_an_id_that_is_recorded() -> None:
    found = [recorded("parentbased_traceidratio", 0.01, UNDER_ANY_RATIO, trusts_remote=False) for _ in range(300)]
    assert sum(found) < 50


def test_who_is_trusted_decides_by_the_flag() -> None:
    assert recorded("parentbased_traceidratio", 0.0, SAMPLED, trusts_remote=True)
    assert not recorded("parentbased_traceidratio", 1.0, UNSAMPLED, trusts_remote=True)


@pytest.mark.parametrize(
    ("sampler", "at_edge", "traceparent", "is_begun"),
    [
        ("parentbased_always_on", False, UNSAMPLED, False),
        ("parentbased_always_on", False, SAMPLED, True),
        ("parentbased_always_on", False, "", True),
        ("parentbased_always_on", True, UNSAMPLED, True),
        ("always_on", False, UNSAMPLED, True),
    ],
)
def test_where_callers_decide_what_they_do_not_record_goes_on_as_theirs(
    sampler: str, at_edge: bool, traceparent: str, is_begun: bool
) -> None:
    program = f"""
from opentelemetry import trace
from services.kit.tracing import context_of, server_span, start_tracing, traceparent_of
start_tracing("test", at_edge={at_edge})
span = server_span("server", context_of({traceparent!r}))
print(span.is_recording(), traceparent_of(span))
"""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_SAMPLER": sampler}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | environ, capture_output=True, check=True)
    is_recording, _, named = done.stdout.decode().strip().partition(" ")
    assert is_recording == str(is_begun)
    assert (named == traceparent) == (not is_begun)


def test_samplers_without_a_parent_decide_alone() -> None:
    assert recorded("always_on", 1.0, UNSAMPLED, trusts_remote=True)
    assert not recorded("always_off", 1.0, SAMPLED, trusts_remote=True)
    assert recorded("traceidratio", 1.0, UNSAMPLED, trusts_remote=True)


def test_a_context_survives_its_text_and_what_is_malformed_is_none() -> None:
    assert traceparent_of(trace.get_current_span(context_of(SAMPLED))) == SAMPLED
    assert is_recorded(SAMPLED)
    assert not is_recorded(UNSAMPLED)
    assert not is_recorded("")
    for ratio in (0.0, 1.0):
        settings = TracingSettings.model_construct(sampler="parentbased_traceidratio", sampler_arg=ratio)
        provider = TracerProvider(sampler=sampler_of(settings, trusts_remote=True), shutdown_on_exit=False)
        begun_here = provider.get_tracer("test").start_span("root")
        assert is_recorded(traceparent_of(begun_here)) == begun_here.is_recording()
    token = context.attach(context_of(SAMPLED))
    try:
        for text in ("", "nonsense", SAMPLED.replace("4bf9", "4BXX"), "00-" + "0" * 32 + "-00f067aa0ba902b7-01"):
            assert traceparent_of(trace.get_current_span(context_of(text))) == "", "not that of the present span either"
    finally:
        context.detach(token)


def test_empty_variables_are_none_and_unknown_samplers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "")
    assert TracingSettings().sampler == "parentbased_always_on"
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "jaeger_remote")
    with pytest.raises(ValidationError, match="OTEL_TRACES_SAMPLER"):
        TracingSettings()
