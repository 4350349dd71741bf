"""Messages of the contract to the executor's own objects and back."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import run_pb2, worker_pb2
from headrace.workflows.v1 import definition_pb2

from services.executor.domain.jobs import AttemptFailure, Job, Release, Report, Success
from services.executor.domain.model import EventView, NodeExecutionView, NodeRef, RunView
from services.executor.engine.decide import Verdict
from services.executor.engine.graph import Graph, Node, NodeKind, RetryPolicy, RunLimits
from services.executor.engine.state import NO_USAGE, Failure, Usage
from services.executor.handlers.base import NodeType
from services.executor.handlers.registry import config_schema, output_schema
from services.kit.ids import known_id


def graph_from_definition(data: bytes, kinds: Mapping[str, NodeKind]) -> Graph:
    """The indexed form of a serialised Definition."""
    definition = definition_pb2.Definition.FromString(data)
    return Graph(
        [_node(node) for node in definition.nodes],
        [(edge.source, edge.target, edge.source_port or "out") for edge in definition.edges],
        kinds,
        definition.timeout.ToTimedelta().total_seconds() if definition.HasField("timeout") else None,
        _limits(definition.limits) if definition.HasField("limits") else None,
    )


def _limits(message: definition_pb2.RunLimits) -> RunLimits:
    return RunLimits(message.max_running_runs or None, message.concurrency.key, message.concurrency.max)


def _node(node: definition_pb2.Node) -> Node:
    return Node(
        key=node.key,
        type=node.type,
        config=node.config.utf8 or b"{}",
        retry=_retry(node) if node.HasField("retry") else RetryPolicy(),
        timeout=node.timeout.ToTimedelta().total_seconds() if node.HasField("timeout") else None,
        continue_on_error=node.on_error == definition_pb2.ON_ERROR_CONTINUE,
        join_any=node.join == definition_pb2.JOIN_ANY,
        at_most_once=node.delivery == definition_pb2.DELIVERY_AT_MOST_ONCE,
    )


def _retry(node: definition_pb2.Node) -> RetryPolicy:
    retry, default = node.retry, RetryPolicy()
    return RetryPolicy(
        max_attempts=max(retry.max_attempts, 1),
        initial_interval=_seconds(retry, "initial_interval", default.initial_interval),
        backoff=retry.backoff or default.backoff,
        max_interval=_seconds(retry, "max_interval", default.max_interval),
        jitter=retry.jitter,
        when=retry.when,
    )


def _seconds(message: Any, field: str, default: float) -> float:
    return float(getattr(message, field).ToTimedelta().total_seconds()) if message.HasField(field) else default


def node_kind(node_type: NodeType) -> NodeKind:
    """What the engine needs to know of a node type."""
    return NodeKind(
        inline=node_type.inline,
        queue=node_type.queue,
        default_timeout=node_type.default_timeout_seconds,
        expression_fields=node_type.expression_fields,
        body_fields=node_type.body_fields,
        effect_of=node_type.effect_of or (lambda _: node_type.effect),
    )


def node_type_to_proto(node_type: NodeType) -> run_pb2.NodeType:
    """A catalogue entry."""
    return run_pb2.NodeType(
        type=node_type.name,
        title=node_type.title,
        help=node_type.help,
        icon=node_type.icon,
        category=node_type.category,
        config_schema=value_pb2.Json(utf8=orjson.dumps(config_schema(node_type))),
        output_schema=value_pb2.Json(utf8=orjson.dumps(output_schema(node_type))),
        ports=node_type.ports,
        dynamic_ports_field=node_type.dynamic_ports_field,
        expression_fields=node_type.expression_fields,
        inline=node_type.inline,
        queue="" if node_type.inline else node_type.queue,
        default_timeout_seconds=node_type.default_timeout_seconds,
        effect="" if node_type.effect_of else node_type.effect,
    )


def run_to_proto(run: RunView) -> run_pb2.Run:
    """A run as people see it."""
    return run_pb2.Run(
        id=str(run.id),
        project_id=str(run.project_id),
        workflow_id=str(run.workflow_id),
        version_id=str(run.version_id),
        version_number=run.version_number,
        status=int(run.status),  # type: ignore[arg-type]  # the numbers agree by contract
        input=json_to_proto(run.input),
        output=json_to_proto(run.output),
        error=failure_to_proto(run.error),
        usage=usage_to_proto(run.usage),
        created_at=time_to_proto(run.created_at),
        started_at=time_to_proto(run.started_at),
        finished_at=time_to_proto(run.finished_at),
        workflow_name=run.workflow_name,
        rerun_of=str(run.rerun_of) if run.rerun_of else "",
        vars=json_to_proto(run.vars),
    )


def node_execution_to_proto(node: NodeExecutionView, resume_token: str = "") -> run_pb2.NodeExecution:
    """A node execution as people see it; with the token of its wait for those who may answer."""
    message = run_pb2.NodeExecution(
        node_key=node.node_key,
        item_path=node.item_path,
        type=node.type,
        status=int(node.status),  # type: ignore[arg-type]  # the numbers agree by contract
        attempt=node.attempt,
        input=json_to_proto(node.input),
        output=json_to_proto(node.output),
        error=failure_to_proto(node.error),
        usage=usage_to_proto(node.usage),
        queued_at=time_to_proto(node.queued_at),
        started_at=time_to_proto(node.started_at),
        finished_at=time_to_proto(node.finished_at),
        worker=node.worker,
        port="" if node.port == "out" else node.port,
        resume_token=resume_token,
    )
    if node.handler_seconds is not None:
        message.handler_time.FromNanoseconds(round(node.handler_seconds * 1e9))
    return message


def event_to_proto(event: EventView) -> run_pb2.RunEvent:
    """A numbered event."""
    return run_pb2.RunEvent(
        sequence=event.sequence,
        type=event.type,
        at=time_to_proto(event.at),
        node_key=event.node_key,
        item_path=event.item_path,
        data=value_pb2.Json(utf8=event.data),
    )


def token_to_event(data: bytes) -> run_pb2.RunEvent:
    """A token on its way to people, as an event without a number."""
    token = worker_pb2.NodeToken.FromString(data)
    body = orjson.dumps({"text": token.text, "attempt": token.attempt, "index": token.index})
    now = Timestamp()
    now.GetCurrentTime()
    return run_pb2.RunEvent(
        type="node.token",
        at=now,
        node_key=token.node_key,
        item_path=token.item_path,
        data=value_pb2.Json(utf8=body),
    )


def ref_from_proto(ref: worker_pb2.JobRef) -> NodeRef:
    """The name of a node execution. Raises ValueError for a malformed run id."""
    return NodeRef(known_id(ref.run_id), ref.node_key, ref.item_path)


def ref_to_proto(ref: NodeRef, epoch: int = 0) -> worker_pb2.JobRef:
    """The name of a node execution; in wake-ups with the epoch at which it is ready."""
    return worker_pb2.JobRef(run_id=str(ref.run_id), node_key=ref.node_key, item_path=ref.item_path, epoch=epoch)


def job_to_proto(job: Job, *, grant: str, executor_id: str) -> worker_pb2.Job:
    """A claimed job."""
    queued = round(job.queued_seconds * 1_000_000)
    return worker_pb2.Job(
        ref=ref_to_proto(job.ref),
        epoch=job.epoch,
        attempt=job.attempt,
        project_id=job.project_id,
        workflow_id=job.workflow_id,
        version_id=job.version_id,
        type=job.type,
        config=value_pb2.Json(utf8=job.config),
        variables=value_pb2.Json(utf8=job.variables),
        idempotency_key=job.idempotency_key,
        grant=grant,
        traceparent=job.traceparent,
        executor_id=executor_id,
        timeout=_duration(job.timeout_seconds),
        queued=Duration(seconds=queued // 1_000_000, nanos=queued % 1_000_000 * 1000) if queued else None,
        claim_id=job.claim_id,
        early=job.is_early,
        chain=[
            worker_pb2.ChainedJob(
                node_key=chained.node_key,
                type=chained.type,
                config=value_pb2.Json(utf8=chained.config),
                variables=value_pb2.Json(utf8=chained.variables),
                timeout=_duration(chained.timeout_seconds),
                idempotency_key=chained.idempotency_key,
                claim_id=chained.claim_id,
            )
            for chained in job.chain
        ],
    )


def _duration(seconds: float) -> Duration:
    milliseconds = round(seconds * 1000)
    return Duration(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def report_from_proto(report: worker_pb2.Report) -> Report:
    """A worker's report. Raises ValueError for a malformed run id or a report without an outcome."""
    outcome: Success | AttemptFailure | Release
    took = report.handler_time
    match report.WhichOneof("outcome"):
        case "success":
            done = report.success
            used = done.usage if done.HasField("usage") else None
            usage = Usage(used.prompt_tokens, used.completion_tokens, used.calls) if used is not None else NO_USAGE
            outcome = Success(done.output.utf8 or b"null", done.port, usage)
        case "failure":
            failed = report.failure
            has_delay = failed.HasField("retry_after")
            outcome = AttemptFailure(
                failure_from_proto(failed.failure),
                failed.retry_after.ToTimedelta().total_seconds() if has_delay else None,
                failed.outcome_unknown,
            )
        case "release":
            outcome = Release(started=report.release.started)
        case _:
            raise ValueError("a report needs an outcome")
    return Report(
        ref_from_proto(report.ref),
        report.epoch,
        outcome,
        report.input.utf8 or None,
        took.seconds + took.nanos / 1e9,
        report.claim_id,
        report.began,
    )


_REPORT_STATUS = {
    None: worker_pb2.REPORT_STATUS_RETRY,
    Verdict.ACCEPTED: worker_pb2.REPORT_STATUS_RECORDED,
    Verdict.REPEATED: worker_pb2.REPORT_STATUS_RECORDED,
    Verdict.STALE: worker_pb2.REPORT_STATUS_STALE,
}


def report_status(verdict: Verdict | None) -> worker_pb2.ReportStatus.ValueType:
    """What a worker is told about its report; None = it could not be committed now."""
    return _REPORT_STATUS[verdict]


def failure_from_proto(failure: run_pb2.Failure) -> Failure:
    """A failure that a worker reports."""
    return Failure(
        reason=failure.reason or "HANDLER_FAILED",
        message=failure.message,
        node_key=failure.node_key,
        retryable=failure.retryable,
        details=orjson.loads(failure.details.utf8) if failure.details.utf8 else None,
        item_path=failure.item_path,
    )


def failure_to_proto(failure: Failure | None) -> run_pb2.Failure | None:
    """A failure as people see it."""
    if failure is None:
        return None
    return run_pb2.Failure(
        reason=failure.reason,
        message=failure.message,
        node_key=failure.node_key,
        retryable=failure.retryable,
        details=value_pb2.Json(utf8=orjson.dumps(failure.details)) if failure.details else None,
        item_path=failure.item_path,
    )


def usage_to_proto(usage: Usage) -> value_pb2.Usage:
    """Model consumption."""
    return value_pb2.Usage(
        prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, calls=usage.calls
    )


def json_to_proto(data: bytes | None) -> value_pb2.Json | None:
    """JSON text, or nothing."""
    return None if data is None else value_pb2.Json(utf8=data)


def time_to_proto(moment: datetime | None) -> Timestamp | None:
    """A time, or nothing."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
