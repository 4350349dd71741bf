"""What is counted and traced of runs, as their commits go by."""

from collections.abc import Iterable
from functools import lru_cache

from opentelemetry import trace
from prometheus_client import Counter, Histogram

from services.executor.domain.model import NodeRef
from services.executor.engine.state import NODE_TERMINAL, NodeState, NodeStatus, RunState, RunStatus
from services.kit.tracing import context_of, is_recorded, mark_failed, tracer

_ACCEPTED = Counter("headrace_executor_runs_accepted_total", "Runs that were accepted, those to go again included.")
_RUNS = Histogram(
    "headrace_executor_run_duration_seconds",
    "From a run's acceptance to its end, waits included.",
    ["status"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 86_400),
)
_NODES = Counter(
    "headrace_executor_nodes_finished_total",
    "Node executions that came to their end, those of the engine itself included.",
    ["type", "outcome"],
)


@lru_cache(maxsize=4096)
def _ended(node_type: str, status: NodeStatus) -> Counter:
    return _NODES.labels(node_type, status.name.lower())


def count_ended(touched: Iterable[NodeState]) -> None:
    """Count those of a commit's nodes that it has ended."""
    for node in touched:
        if node.status in NODE_TERMINAL:
            _ended(node.spec.type, node.status).inc()


def run_moved(state: RunState) -> None:
    """Note a run that a commit has just begun or ended."""
    if state.version == 1:
        _ACCEPTED.inc()
    times = state.times
    if not state.is_terminal or times is None or times.finished_at is None:
        return
    seconds = (times.finished_at - times.created_at).total_seconds()
    _RUNS.labels(state.status.name.lower()).observe(seconds)
    if is_recorded(state.traceparent):
        _trace_run(state, times.created_at.timestamp(), times.finished_at.timestamp())


def _trace_run(state: RunState, begun: float, ended: float) -> None:
    """The run as a span beside those of its attempts, made by whoever commits its end (ADR 21)."""
    span = tracer.start_span(
        f"run {state.status.name.lower()}", context=context_of(state.traceparent), start_time=int(begun * 1e9)
    )
    span.set_attributes(
        {
            "headrace.project.id": state.project_id,
            "headrace.workflow.id": state.workflow_id,
            "headrace.workflow.version": state.version_number,
            "headrace.run.id": state.run_text,
            "headrace.run.status": state.status.name.lower(),
            "gen_ai.usage.input_tokens": state.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": state.usage.completion_tokens,
        }
    )
    if state.status is RunStatus.FAILED:
        mark_failed(span, state.error.reason if state.error else "")
    span.end(int(ended * 1e9))


def trace_answer(traceparent: str, ref: NodeRef, node_type: str) -> None:
    """Join the present request's trace and that of the run whose wait it has ended, in both directions.

    The run goes on in its own trace, which began when it was started, perhaps days ago.
    """
    request = trace.get_current_span()
    run = context_of(traceparent)
    attributes = {"headrace.run.id": str(ref.run_id), "headrace.node.key": ref.node_key}
    if request.is_recording():
        request.add_link(trace.get_current_span(run).get_span_context(), attributes)
    if is_recorded(traceparent):
        links = [trace.Link(request.get_span_context())]
        tracer.start_span(f"{node_type} answered", context=run, links=links, attributes=attributes).end()
