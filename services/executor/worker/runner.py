"""Runs one job: resolves its templates, checks its config, calls the handler, and reports whatever happens."""

import asyncio
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
import structlog
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import run_pb2
from headrace.executor.v1 import worker_pb2 as pb
from opentelemetry import context as otel_context
from opentelemetry import trace
from prometheus_client import Histogram
from pydantic import ValidationError

from services.executor.handlers.base import (
    Context,
    HandlerError,
    NodeType,
    Result,
    RetryableError,
    TerminalError,
    TokenSink,
    Usage,
)
from services.kit import strict_json
from services.kit.errors import InvalidArgumentError
from services.kit.expressions import ExpressionError
from services.kit.ids import known_id
from services.kit.templates import Template, TemplateErrors, compile_template
from services.kit.tracing import context_of, mark_failed, server_span

log = structlog.get_logger(__name__)

MAX_OUTPUT_BYTES = 1024 * 1024
MAX_SHOWN_INPUT_BYTES = 64 * 1024
_NO_USAGE = Usage()
_SECONDS = Histogram(
    "headrace_worker_handler_seconds",
    "Time that an attempt took, templates and handler, however it ended.",
    ["type"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
# Looking a label up costs as much as running a small job.
_seconds = lru_cache(maxsize=1024)(_SECONDS.labels)


class Runner:
    """Runs jobs with the handlers of a catalogue."""

    def __init__(self, node_types: Mapping[str, NodeType], services: Any) -> None:
        self._node_types = node_types
        self._services = services

    async def run(self, job: pb.Job, emit_token: TokenSink) -> pb.Report:
        """Run a job and report how it ended. Raises only CancelledError."""
        report = pb.Report(ref=job.ref, epoch=job.epoch, claim_id=job.claim_id)
        started = time.perf_counter()
        span = server_span(job.type, _parent(job.traceparent), trace.SpanKind.CONSUMER)
        # By hand: the context manager costs twice what the span does. The context is the task's own, and ends with it.
        # A chain has one task, and unless its trace is recorded, one span that is nobody's.
        if trace.get_current_span() is not span:
            otel_context.attach(trace.set_span_in_context(span))
        structlog.contextvars.bind_contextvars(run_id=job.ref.run_id, node_key=job.ref.node_key, attempt=job.attempt)
        try:
            result = await self._perform(job, report, emit_token)
            output = _checked_output(job, result)
            success = report.success
            success.output.utf8 = output
            if result.port != "out":
                success.port = result.port
            if result.usage != _NO_USAGE:
                success.usage.prompt_tokens = result.usage.prompt_tokens
                success.usage.completion_tokens = result.usage.completion_tokens
                success.usage.calls = result.usage.calls
        except HandlerError as error:
            report.failure.CopyFrom(_failure(job, error))
        except BaseException as error:
            # A handler that calls sys.exit or raises what nobody foresaw must not take the worker's other jobs with it;
            # one that raises CancelledError by itself must not be taken for one that was cancelled.
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            report.failure.CopyFrom(failed_report(job, error).failure)
        finally:
            if span.is_recording():
                _describe(span, job, report)
            span.end()
        seconds = time.perf_counter() - started
        _seconds(job.type).observe(seconds)
        report.handler_time.seconds = int(seconds)
        report.handler_time.nanos = int(seconds % 1 * 1e9)
        return report

    async def _perform(self, job: pb.Job, report: pb.Report, emit_token: TokenSink) -> Result:
        node_type = self._node_types.get(job.type)
        if node_type is None or node_type.handler is None:
            raise RetryableError(
                "UNKNOWN_NODE_TYPE", f"This worker has no handler for {job.type!r}: it is older than the executor."
            )
        timeout = job.timeout.seconds + job.timeout.nanos / 1e9
        config = _config(job, node_type)
        report.input.utf8 = _shown(config, node_type)
        context = Context(
            project_id=job.project_id,
            run_id=known_id(job.ref.run_id),
            node_key=job.ref.node_key,
            item_path=job.ref.item_path,
            attempt=job.attempt,
            idempotency_key=job.idempotency_key,
            grant=job.grant,
            timeout_seconds=timeout,
            services=self._services,
            emit_token=emit_token,
        )
        checked = _validated(config, node_type, job)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await node_type.handler(context, checked)
        except TimeoutError as error:
            if not limit.expired():
                text = f"Node {job.ref.node_key!r}: something it called timed out."
                raise RetryableError("TIMEOUT", text, outcome_unknown=True) from error
            message = (
                f"Node {job.ref.node_key!r} did not finish within its time-out of {timeout:g} s. "
                "Raise `timeout_seconds` of the node, or make it do less."
            )
            raise RetryableError("TIMEOUT", message, outcome_unknown=True) from error


# The trace context of a run is that of all its nodes.
_parent = lru_cache(maxsize=1024)(context_of)


def _describe(span: trace.Span, job: pb.Job, report: pb.Report) -> None:
    """What may be known of an attempt: names and numbers, nothing that it worked with."""
    outcome = report.WhichOneof("outcome") or "cancelled"
    span.set_attributes(
        {
            "headrace.project.id": job.project_id,
            "headrace.workflow.id": job.workflow_id,
            "headrace.run.id": job.ref.run_id,
            "headrace.node.key": job.ref.node_key,
            "headrace.node.item_path": job.ref.item_path,
            "headrace.node.attempt": job.attempt,
            "headrace.node.queued_seconds": job.queued.seconds + job.queued.nanos / 1e9,
            "headrace.node.outcome": outcome,
        }
    )
    if outcome == "failure":
        mark_failed(span, report.failure.failure.reason)


@lru_cache(maxsize=2048)
def _template(config: bytes, expression_fields: tuple[str, ...]) -> tuple[Template, dict[str, Any]]:
    """The compiled config, and its CEL fields, which are left as they are."""
    value = orjson.loads(config)
    fields = {field.partition("[].")[0] for field in expression_fields}
    kept = {name: item for name, item in value.items() if name in fields}
    return compile_template({name: item for name, item in value.items() if name not in fields}), kept


def _config(job: pb.Job, node_type: NodeType) -> dict[str, Any]:
    try:
        template, kept = _template(job.config.utf8, node_type.expression_fields)
        rendered: dict[str, Any] = template.render(orjson.loads(job.variables.utf8))
    except (ExpressionError, TemplateErrors) as error:
        reason = getattr(error, "reason", "EXPRESSION_FAILED")
        raise TerminalError(reason, f"Node {job.ref.node_key!r}: {error}") from error
    return {**rendered, **kept}


def _validated(config: dict[str, Any], node_type: NodeType, job: pb.Job) -> Any:
    try:
        return node_type.config.model_validate(config)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(str(part) for part in item['loc']) or 'config'}`: {item['msg']}"
            for item in error.errors()[:10]
        )
        raise TerminalError("INVALID_CONFIG", f"Node {job.ref.node_key!r}: {problems}.") from error


def _shown(config: dict[str, Any], node_type: NodeType) -> bytes:
    visible = {name: value for name, value in config.items() if name not in node_type.secret_fields}
    data = orjson.dumps(visible)
    if len(data) <= MAX_SHOWN_INPUT_BYTES:
        return data
    return orjson.dumps({"truncated": data[:4096].decode(errors="replace"), "bytes": len(data)})


def _checked_output(job: pb.Job, result: Result) -> bytes:
    try:
        strict_json.check(result.output, max_characters=MAX_OUTPUT_BYTES)
        output = orjson.dumps(result.output)
    except (InvalidArgumentError, orjson.JSONEncodeError) as error:
        if isinstance(error, InvalidArgumentError) and error.violations[0].code == "TOO_LARGE":
            raise _too_large(job, f"more than {MAX_OUTPUT_BYTES}") from error
        message = f"Node {job.ref.node_key!r} has an output that is not JSON: {error}"
        raise TerminalError("INVALID_OUTPUT", message, outcome_unknown=True) from error
    if len(output) > MAX_OUTPUT_BYTES:
        raise _too_large(job, str(len(output)))
    return output


def _too_large(job: pb.Job, size: str) -> TerminalError:
    return TerminalError(
        "OUTPUT_TOO_LARGE",
        f"The output of node {job.ref.node_key!r} has {size} bytes; the limit is {MAX_OUTPUT_BYTES}. "
        "Return less, or store the data and pass on its id.",
        outcome_unknown=True,
    )


def failed_report(job: pb.Job, error: BaseException) -> pb.Report:
    """The report of an attempt whose handler failed in a way that is no HandlerError."""
    log.error("handler_failed", type=job.type, run_id=job.ref.run_id, node_key=job.ref.node_key, exc_info=error)
    unexpected = RetryableError(
        "HANDLER_FAILED",
        f"Node {job.ref.node_key!r}: its handler failed with {type(error).__name__}. See the worker's log.",
        outcome_unknown=True,
    )
    return pb.Report(ref=job.ref, epoch=job.epoch, claim_id=job.claim_id, failure=_failure(job, unexpected))


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failure(job: pb.Job, error: HandlerError) -> pb.AttemptFailure:
    failure = pb.AttemptFailure(
        failure=run_pb2.Failure(
            reason=error.reason,
            message=error.message.replace("\x00", "")[:4000],
            node_key=job.ref.node_key,
            retryable=error.retryable,
            details=value_pb2.Json(utf8=_details(error)) if error.details else None,
        ),
        outcome_unknown=error.outcome_unknown,
    )
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        failure.retry_after.FromMilliseconds(round(max(0.0, retry_after) * 1000))
    return failure


def _details(error: HandlerError) -> bytes:
    try:
        strict_json.check(error.details)
        data = orjson.dumps(error.details)
    except (InvalidArgumentError, orjson.JSONEncodeError):
        return orjson.dumps({"details": repr(error.details)[:1000]})
    return data if len(data) <= MAX_SHOWN_INPUT_BYTES else orjson.dumps({"truncated": True})
