"""What an attempt's logs and spans are known by, and that one attempt's does not reach another."""

import asyncio
from typing import Any
from uuid import uuid4

import structlog
from headrace.common.v1 import value_pb2
from headrace.executor.v1 import worker_pb2 as pb
from opentelemetry import trace
from pydantic import BaseModel

from services.executor.handlers.base import Context, NodeType, Result
from services.executor.worker.runner import Runner
from services.kit.logging import trace_id

TRACES = ("4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c")


class Config(BaseModel):
    """No settings."""


async def test_each_attempt_has_its_own_names_in_its_logs_and_its_runs_trace() -> None:
    seen: dict[str, dict[str, Any]] = {}

    async def handler(context: Context, _: Config) -> Result:
        await asyncio.sleep(0)
        seen[context.node_key] = {**structlog.contextvars.get_contextvars(), "trace_id": trace_id()}
        return Result({})

    node_type = NodeType(
        name="t", title="", help="", icon="", category="", config=Config, output=Config, handler=handler
    )
    runner = Runner({"t": node_type}, None)
    jobs = [
        pb.Job(
            ref=pb.JobRef(run_id=str(uuid4()), node_key=f"node-{number}"),
            type="t",
            attempt=number + 1,
            config=value_pb2.Json(utf8=b"{}"),
            variables=value_pb2.Json(utf8=b"{}"),
            traceparent=f"00-{trace_of_run}-00f067aa0ba902b7-00",
        )
        for number, trace_of_run in enumerate(TRACES)
    ]
    for job in jobs:
        job.timeout.seconds = 5
    await asyncio.gather(*(asyncio.create_task(runner.run(job, lambda _: None)) for job in jobs))
    assert seen == {
        job.ref.node_key: {
            "run_id": job.ref.run_id,
            "node_key": job.ref.node_key,
            "attempt": job.attempt,
            "trace_id": trace_of_run,
        }
        for job, trace_of_run in zip(jobs, TRACES, strict=True)
    }
    assert not structlog.contextvars.get_contextvars()
    assert not trace.get_current_span().get_span_context().is_valid
