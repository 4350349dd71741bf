"""A run's events: as a stream that goes on where it stopped, or as a list."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
import structlog
from fastapi import Header, Query
from headrace.executor.v1 import executor_service_pb2 as pb
from headrace.executor.v1 import run_pb2
from prometheus_client import Gauge
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.gateway.api.parameters import PageSize, RunId, Viewer, gateway_of
from services.gateway.convert.common import page_to_json
from services.gateway.convert.runs import event_to_json, is_terminal
from services.gateway.identity import Access
from services.gateway.routing import Gateway, Json, new_router
from services.gateway.schemas.common import INT64_MAX
from services.gateway.schemas.runs import RunEventPage
from services.kit.errors import (
    DeadlineExceededError,
    DomainError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    Violation,
)

log = structlog.get_logger(__name__)

_STREAMS = Gauge("headrace_gateway_event_streams", "Event streams that are open.")
router = new_router("/api/v1/runs", "runs")

_CALL_SECONDS = 3600.0
"""Deadline of one call that follows a run. The stream outlives it: the next call goes on after the last event."""
_LAST_EVENTS = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_GIVE_UP_SECONDS = 120.0
"""How long no executor may answer before the stream is closed; the client comes back by itself."""
_PASSING = (UnavailableError, DeadlineExceededError, InternalError)
"""After these the run is followed by another call. A call that a stopping executor cancels comes as InternalError."""
_HEARTBEAT = b": still here\n\n"

Sequence = Annotated[int, Query(ge=0, le=INT64_MAX, description="Only events after this sequence number.")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="`id` of the last event received.", examples=["12"])
]
_STREAM = {
    "description": "Events, as they happen if the client wants a stream.",
    "content": {
        "text/event-stream": {
            "itemSchema": {
                "type": "object",
                "required": ["event", "data"],
                "properties": {
                    "id": {"type": "string", "description": "The sequence number; `node.token` has none."},
                    "event": {"type": "string", "description": "The type."},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"$ref": "#/components/schemas/RunEvent"},
                    },
                },
            }
        }
    },
}


@router.get("/{run_id}/events", response_model=RunEventPage, responses={200: _STREAM})
async def list_run_events(
    request: Request,
    access: Viewer,
    run_id: RunId,
    after: Sequence = 0,
    page_size: PageSize = 0,
    page_token: Annotated[str, Query(max_length=20, description="Of the list only.")] = "",
    last_event_id: LastEventId = None,
) -> Response:
    """Replay a run's events, then follow it live until it ends; as a list with `Accept: application/json`.

    The stream goes on after `Last-Event-ID` (or `after`). Tokens of models (`node.token`) are passing: they have no id
    and are not replayed.
    """
    gateway = gateway_of(request)
    after = _sequence(last_event_id, "Last-Event-ID") if last_event_id else after
    wanted = request.headers.get("accept", "")
    if "application/json" in wanted and "text/event-stream" not in wanted:
        after = _sequence(page_token, "page_token") if page_token else after
        return Json(await _list(gateway, access, run_id, after, page_size))
    # Asked first, so that an unknown run is a 404 and not an empty stream.
    asked = pb.GetRunRequest(project_id=access.project_id, run_id=run_id)
    await gateway.clients.call(gateway.clients.executor.GetRun, asked)
    follower = RunFollower(gateway, access.project_id, run_id, after)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(follower.stream(), media_type="text/event-stream", headers=headers)


class RunFollower:
    """Follows one run for one client, across executors: no numbered event is left out or given twice."""

    def __init__(self, gateway: Gateway, project_id: str, run_id: str, after: int) -> None:
        self._gateway = gateway
        self._project_id = project_id
        self._run_id = run_id
        self._last = after
        self._has_ended = False

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events, and comments when it is quiet. Ends with the run, or when the gateway stops."""
        stopping = asyncio.ensure_future(self._gateway.stopping.wait())
        events = self._events()
        upcoming: asyncio.Future[list[run_pb2.RunEvent]] | None = None
        # Sent at once, so that clients and proxies see the stream open.
        yield b": following\n\n"
        _STREAMS.inc()
        try:
            while not stopping.done():
                upcoming = upcoming or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait(
                    {upcoming, stopping},
                    timeout=self._gateway.settings.heartbeat_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    yield _HEARTBEAT
                elif upcoming in done:
                    happened, upcoming = upcoming.result(), None
                    yield b"".join(map(_format, happened))
        except StopAsyncIteration:
            return
        finally:
            _STREAMS.dec()
            stopping.cancel()
            if upcoming is not None:
                upcoming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await upcoming
            await events.aclose()

    async def _events(self) -> Any:
        """The events after the last one in lists, from one executor after another."""
        pause, failing_since = _FIRST_PAUSE, None
        loop = asyncio.get_running_loop()
        while not self._has_ended:
            try:
                async with contextlib.aclosing(self._call()) as replies:
                    async for reply in replies:
                        pause, failing_since = _FIRST_PAUSE, None
                        if new := list(filter(self._is_new, reply.events)):
                            yield new
                if self._has_ended or await self._run_has_ended():
                    return
            except DomainError as error:
                if not isinstance(error, _PASSING):
                    log.info("run_events_ended", run_id=self._run_id, reason=error.reason)
                    return
                failing_since = failing_since or loop.time()
                if loop.time() - failing_since > _GIVE_UP_SECONDS:
                    log.warning("run_events_given_up", run_id=self._run_id, reason=error.reason)
                    return
                log.info("run_events_interrupted", run_id=self._run_id, reason=error.reason, after=self._last)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _call(self) -> Any:
        clients = self._gateway.clients
        asked = pb.FollowRunRequest(project_id=self._project_id, run_id=self._run_id, after_sequence=self._last)
        return clients.rpc.stream(clients.executor.FollowRun, asked, timeout=_CALL_SECONDS)

    def _is_new(self, event: run_pb2.RunEvent) -> bool:
        if event.sequence:
            if event.sequence <= self._last:
                return False
            self._last = event.sequence
            self._has_ended = event.type in _LAST_EVENTS
        return True

    async def _run_has_ended(self) -> bool:
        """A call that ended in peace may mean that the run has, or that the executor is being replaced."""
        clients = self._gateway.clients
        asked = pb.GetRunRequest(project_id=self._project_id, run_id=self._run_id)
        return is_terminal((await clients.call(clients.executor.GetRun, asked)).run)


async def _list(gateway: Gateway, access: Access, run_id: str, after: int, page_size: int) -> dict[str, Any]:
    clients = gateway.clients
    asked = pb.ListRunEventsRequest(
        project_id=access.project_id, run_id=run_id, after_sequence=after, page_size=min(page_size, 1000)
    )
    reply = await clients.call(clients.executor.ListRunEvents, asked)
    token = str(reply.events[-1].sequence) if reply.has_more and reply.events else ""
    return page_to_json([event_to_json(event) for event in reply.events], token)


def _format(event: run_pb2.RunEvent) -> bytes:
    number = b"id: %d\n" % event.sequence if event.sequence else b""
    # JSON by orjson is one line, but a service's own may have line breaks: each would start a new field.
    data = orjson.dumps(event_to_json(event)).replace(b"\r", b" ").replace(b"\n", b" ")
    kind = event.type.replace("\r", " ").replace("\n", " ").encode()
    return b"%sevent: %s\ndata: %s\n\n" % (number, kind, data)


def _sequence(text: str, where: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= INT64_MAX:
        return int(text)
    message = f"{where} is not the id of an event."
    raise InvalidArgumentError(message, violations=(Violation("INVALID_SEQUENCE", "not a sequence number", where),))
