"""A receiver of traces: OTLP over gRPC, as a collector takes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came over the wire; ids in hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    seconds: float
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """Trace id and span id of each."""
    is_error: bool
    kind: str


@dataclass
class Receiver(TraceServiceServicer):
    """What has come, as spans and as bytes."""

    port: int = 0
    spans: list[ReceivedSpan] = field(default_factory=list)
    bytes: bytearray = field(default_factory=bytearray)
    resources: list[dict[str, Any]] = field(default_factory=list)

    async def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:
        self.bytes += request.SerializeToString()
        for of_resource in request.resource_spans:
            resource = _values(of_resource.resource.attributes)
            self.resources.append(resource)
            for scope in of_resource.scope_spans:
                self.spans += [_span(resource["service.name"], span) for span in scope.spans]
        return pb.ExportTraceServiceResponse()

    def of(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of one trace."""
        return [span for span in self.spans if span.trace_id == trace_id]


def _span(service: str, span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
    )


def _values(attributes: Any) -> dict[str, Any]:
    def value(of: AnyValue) -> Any:
        kind = of.WhichOneof("value")
        return [value(item) for item in of.array_value.values] if kind == "array_value" else getattr(of, str(kind))

    found: list[KeyValue] = list(attributes)
    return {item.key: value(item.value) for item in found}


@asynccontextmanager
async def otlp_receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    receiver = Receiver()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(receiver, server)
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(None)
