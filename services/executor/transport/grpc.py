"""ExecutorService over gRPC."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from headrace.executor.v1 import executor_service_pb2 as pb
from headrace.executor.v1.executor_service_pb2_grpc import ExecutorServiceServicer
from opentelemetry import trace

from services.executor.domain.answers import Answers
from services.executor.domain.limit_settings import LimitSettings
from services.executor.domain.model import (
    EventView,
    NodeExecutionView,
    NodeRef,
    RerunAsk,
    RunFilter,
    RunNotFoundError,
    VersionSelector,
)
from services.executor.domain.retention import RetentionSettings
from services.executor.domain.runs import Runs
from services.executor.domain.store import RunStore
from services.executor.domain.variables import ProjectVariables
from services.executor.engine.state import RunStatus
from services.executor.engine.waits import Answer, Person
from services.executor.handlers.base import NodeType
from services.executor.transport.convert import (
    event_to_proto,
    json_to_proto,
    node_execution_to_proto,
    node_type_to_proto,
    run_to_proto,
    token_to_event,
)
from services.executor.transport.limits import limits_from_proto, limits_in_force
from services.kit.errors import InvalidArgumentError, NotFoundError
from services.kit.grpc_server import Context
from services.kit.ids import parse_id
from services.kit.paging import decode_page_token, encode_page_token, page_size, page_token_error
from services.kit.tracing import traceparent_of

SERVICE_NAME = "headrace.executor.v1.ExecutorService"
MAX_WAIT_SECONDS = 60.0
_EVENT_PAGE, _MAX_EVENT_PAGE = 200, 1000
_FOLLOW_BYTES = 64 * 1024
"""A message for followers holds no more, or one event."""
_MAX_TOKENS = 100


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """What people set for their projects."""

    limits: LimitSettings
    variables: ProjectVariables
    retention: RetentionSettings


class ExecutorServicer(ExecutorServiceServicer):
    """Converts, calls one use case, converts back."""

    def __init__(
        self,
        runs: Runs,
        answers: Answers,
        store: RunStore,
        settings: ProjectSettings,
        node_types: Mapping[str, NodeType],
    ) -> None:
        self._runs = runs
        self._answers = answers
        self._store = store
        self._settings = settings
        self._node_types = [node_type_to_proto(node_types[name]) for name in sorted(node_types)]

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        """See the contract."""
        run = await self._runs.start(
            _project(request.project_id),
            parse_id(request.workflow_id, resource="workflow"),
            _selector(request),
            input_json=request.input.utf8 or b"{}",
            request_id=request.request_id,
            started_by=UUID(request.started_by) if request.started_by else None,
            traceparent=_traceparent(),
            priority=request.priority,
            vars_json=request.vars.utf8,
            wait_seconds=min(request.wait.ToTimedelta().total_seconds(), MAX_WAIT_SECONDS),
        )
        trace.get_current_span().set_attribute("headrace.run.id", str(run.id))
        return pb.StartRunResponse(run=run_to_proto(run))

    async def RerunRun(self, request: pb.RerunRunRequest, context: Context) -> pb.RerunRunResponse:
        """See the contract."""
        run = await self._runs.rerun(
            _project(request.project_id),
            _run(request.run_id),
            _rerun(request),
            request_id=request.request_id,
            started_by=UUID(request.started_by) if request.started_by else None,
            traceparent=_traceparent(),
        )
        return pb.RerunRunResponse(run=run_to_proto(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """See the contract."""
        project_id = _project(request.project_id)
        run = await self._runs.get(project_id, _run(request.run_id))
        message = run_to_proto(run)
        if request.with_resume_tokens and run.status in (RunStatus.RUNNING, RunStatus.WAITING):
            for wait in await self._store.list_open_waits(project_id, run.id, limit=_MAX_TOKENS):
                token = self._answers.token(wait.ref, wait.epoch)
                message.resume_tokens.add(node_key=wait.ref.node_key, item_path=wait.ref.item_path, token=token)
        return pb.GetRunResponse(run=message)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """See the contract."""
        size = page_size(request.page_size)
        run_filter = RunFilter(
            statuses=tuple(RunStatus(status) for status in request.statuses),
            workflow_id=parse_id(request.workflow_id, resource="workflow") if request.workflow_id else None,
            created_after=_time(request.created_after) if request.HasField("created_after") else None,
            created_before=_time(request.created_before) if request.HasField("created_before") else None,
        )
        after = None
        if place := decode_page_token(request.page_token, length=2):
            try:
                after = (datetime.fromisoformat(place[0]), UUID(place[1]))
            except (TypeError, ValueError, AttributeError) as error:
                raise page_token_error() from error
        runs = await self._store.list_runs(_project(request.project_id), run_filter, limit=size + 1, after=after)
        last = runs[size - 1] if len(runs) > size else None
        return pb.ListRunsResponse(
            runs=[run_to_proto(run) for run in runs[:size]],
            next_page_token=encode_page_token([last.created_at.isoformat(), str(last.id)]) if last else "",
        )

    async def ListNodeExecutions(
        self, request: pb.ListNodeExecutionsRequest, context: Context
    ) -> pb.ListNodeExecutionsResponse:
        """See the contract."""
        size = page_size(request.page_size)
        after = None
        if place := decode_page_token(request.page_token, length=3):
            try:
                after = (datetime.fromisoformat(place[0]), str(place[1]), str(place[2]))
            except (TypeError, ValueError) as error:
                raise page_token_error() from error
        found = await self._store.list_node_executions(
            _project(request.project_id), _run(request.run_id), limit=size + 1, after=after
        )
        token = ""
        if len(found) > size:
            moment, last = found[size - 1]
            token = encode_page_token([moment.isoformat(), last.node_key, last.item_path])
        run_id = _run(request.run_id)
        nodes = [
            node_execution_to_proto(node, self._token(run_id, node) if request.with_resume_tokens else "")
            for _, node in found[:size]
        ]
        return pb.ListNodeExecutionsResponse(node_executions=nodes, next_page_token=token)

    async def ListRunEvents(self, request: pb.ListRunEventsRequest, context: Context) -> pb.ListRunEventsResponse:
        """See the contract."""
        size = page_size(request.page_size, default=_EVENT_PAGE, maximum=_MAX_EVENT_PAGE)
        found = await self._store.list_events(
            _project(request.project_id), _run(request.run_id), after=request.after_sequence, limit=size + 1
        )
        page = [event_to_proto(event) for event in found.events[:size]]
        return pb.ListRunEventsResponse(events=page, has_more=len(found.events) > size)

    async def FollowRun(self, request: pb.FollowRunRequest, context: Context) -> AsyncIterator[pb.FollowRunResponse]:
        """See the contract."""
        project_id, run_id = _project(request.project_id), _run(request.run_id)
        async for happened in self._runs.follow(project_id, run_id, request.after_sequence):
            reply, size = pb.FollowRunResponse(), 0
            for event in happened:
                message = event_to_proto(event) if isinstance(event, EventView) else token_to_event(event)
                more = message.ByteSize()
                if size and size + more > _FOLLOW_BYTES:
                    yield reply
                    reply, size = pb.FollowRunResponse(), 0
                reply.events.append(message)
                size += more
            yield reply

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        """See the contract."""
        run = await self._runs.cancel(_project(request.project_id), _run(request.run_id))
        return pb.CancelRunResponse(run=run_to_proto(run))

    async def ResumeNode(self, request: pb.ResumeNodeRequest, context: Context) -> pb.ResumeNodeResponse:
        """See the contract."""
        path, key = _place(request.place)
        by = Person(request.by.user_id, request.by.email, request.by.role)
        run = await self._answers.resume(
            _project(request.project_id),
            NodeRef(_run(request.run_id), key, path),
            Answer(request.decision, request.data.utf8 or b"null", by),
            request_id=request.request_id,
        )
        return pb.ResumeNodeResponse(run=run_to_proto(run))

    async def DeliverEvent(self, request: pb.DeliverEventRequest, context: Context) -> pb.DeliverEventResponse:
        """See the contract."""
        await self._answers.deliver(request.token, request.payload.utf8 or b"null", request_id=request.request_id)
        return pb.DeliverEventResponse()

    def _token(self, run_id: UUID, node: NodeExecutionView) -> str:
        if node.wait_epoch is None:
            return ""
        return self._answers.token(NodeRef(run_id, node.node_key, node.item_path), node.wait_epoch)

    async def ListNodeTypes(self, request: pb.ListNodeTypesRequest, context: Context) -> pb.ListNodeTypesResponse:
        """See the contract."""
        return pb.ListNodeTypesResponse(node_types=self._node_types)

    async def GetProjectLimits(
        self, request: pb.GetProjectLimitsRequest, context: Context
    ) -> pb.GetProjectLimitsResponse:
        """See the contract."""
        own, ceilings = await self._settings.limits.get(_project(request.project_id))
        return pb.GetProjectLimitsResponse(limits=limits_in_force(own, ceilings))

    async def SetProjectLimits(
        self, request: pb.SetProjectLimitsRequest, context: Context
    ) -> pb.SetProjectLimitsResponse:
        """See the contract."""
        own, ceilings = await self._settings.limits.set_own(
            _project(request.project_id), limits_from_proto(request.limits)
        )
        return pb.SetProjectLimitsResponse(limits=limits_in_force(own, ceilings))

    async def GetProjectVariables(
        self, request: pb.GetProjectVariablesRequest, context: Context
    ) -> pb.GetProjectVariablesResponse:
        """See the contract."""
        text = await self._settings.variables.get(_project(request.project_id))
        return pb.GetProjectVariablesResponse(variables=json_to_proto(text))

    async def SetProjectVariables(
        self, request: pb.SetProjectVariablesRequest, context: Context
    ) -> pb.SetProjectVariablesResponse:
        """See the contract."""
        text = await self._settings.variables.set(_project(request.project_id), request.variables.utf8 or b"{}")
        return pb.SetProjectVariablesResponse(variables=json_to_proto(text))

    async def GetProjectRetention(
        self, request: pb.GetProjectRetentionRequest, context: Context
    ) -> pb.GetProjectRetentionResponse:
        """See the contract."""
        days = await self._settings.retention.get(_project(request.project_id))
        return pb.GetProjectRetentionResponse(retention=self._retention(days))

    async def SetProjectRetention(
        self, request: pb.SetProjectRetentionRequest, context: Context
    ) -> pb.SetProjectRetentionResponse:
        """See the contract."""
        wanted = request.days if request.HasField("days") else None
        days = await self._settings.retention.set(_project(request.project_id), wanted)
        return pb.SetProjectRetentionResponse(retention=self._retention(days))

    def _retention(self, days: int | None) -> pb.Retention:
        return pb.Retention(days=days, default_days=self._settings.retention.default_days)


def _rerun(request: pb.RerunRunRequest) -> RerunAsk:
    return RerunAsk(
        start=_place(request.start) if request.HasField("start") else None,
        overrides={_place(given.place): given.output.utf8 or b"null" for given in request.overrides},
        input_json=request.input.utf8 or b"{}" if request.HasField("input") else None,
        vars_json=request.vars.utf8 or b"{}" if request.HasField("vars") else None,
        selector=_selector(request) if request.WhichOneof("selector") else None,
        confirm=request.confirm,
    )


def _place(place: pb.NodePlace) -> tuple[str, str]:
    return place.item_path, place.node_key


def _traceparent() -> str:
    return traceparent_of(trace.get_current_span())


def _selector(request: pb.StartRunRequest | pb.RerunRunRequest) -> VersionSelector:
    match request.WhichOneof("selector"):
        case "number":
            if request.number < 1:
                raise InvalidArgumentError("Version numbers start at 1.", reason="INVALID_VERSION")
            return VersionSelector(number=request.number)
        case "latest":
            return VersionSelector(latest=True)
        case "draft":
            return VersionSelector(draft=True)
    return VersionSelector()


def _project(text: str) -> UUID:
    return parse_id(text, resource="project")


def _run(text: str) -> UUID:
    try:
        return parse_id(text, resource="run")
    except NotFoundError as error:
        raise RunNotFoundError(text[:64]) from error


def _time(stamp: Timestamp) -> datetime:
    try:
        return datetime.fromisoformat(stamp.ToJsonString())
    except ValueError as error:
        raise InvalidArgumentError("A time is out of range.", reason="INVALID_TIME") from error
