"""Runs: start, look at, cancel."""

from typing import Annotated

from fastapi import Path, Query
from headrace.auth.v1 import auth_service_pb2
from headrace.executor.v1 import executor_service_pb2 as pb
from headrace.workflows.v1 import workflow_service_pb2
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import (
    Editor,
    IdempotencyKey,
    PageSize,
    PageToken,
    RunId,
    Viewer,
    WorkflowId,
    clients_of,
)
from services.gateway.convert.common import json_to_proto, page_to_json, seconds_to_proto, time_to_proto
from services.gateway.convert.runs import (
    RUN_STATUSES,
    is_terminal,
    node_execution_to_json,
    run_summary_to_json,
    run_to_json,
)
from services.gateway.identity import Access, Role
from services.gateway.routing import Json, new_router
from services.gateway.schemas.common import Time
from services.gateway.schemas.runs import (
    NodeExecutionPage,
    RerunInput,
    ResumeInput,
    Run,
    RunInput,
    RunPage,
    RunStatusName,
)

router = new_router("/api/v1", "runs")

StatusFilter = Annotated[
    list[RunStatusName] | None, Query(alias="status", description="Any of these; may be repeated.")
]
CreatedAfter = Annotated[Time | None, Query(description="RFC 3339, exclusive.", examples=["2026-01-31T12:00:00Z"])]
CreatedBefore = Annotated[Time | None, Query(description="RFC 3339, exclusive.", examples=["2026-12-31T12:00:00Z"])]
WorkflowFilter = Annotated[
    str,
    Query(
        pattern=r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})?$",
        description="UUID of a workflow.",
    ),
]
NodeKey = Annotated[str, Path(min_length=1, max_length=64, description="Key of a node.")]
ItemPath = Annotated[
    str,
    Query(
        max_length=1024,
        description="Place inside maps, loops and sub-workflows, as in the node execution.",
        examples=["each[3]"],
    ),
]
Wait = Annotated[
    float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for the run to end, at most 60.")
]


@router.get("/runs/{run_id}", response_model=Run)
async def get_run(request: Request, access: Viewer, run_id: RunId) -> Response:
    """Get a run with input and output."""
    clients = clients_of(request)
    may_answer = access.role >= Role.EDITOR
    asked = pb.GetRunRequest(project_id=access.project_id, run_id=run_id, with_resume_tokens=may_answer)
    reply = await clients.call(clients.executor.GetRun, asked)
    return Json(run_to_json(reply.run, with_resume_urls=may_answer))


@router.post(
    "/workflows/{workflow_id}/runs",
    status_code=202,
    response_model=Run,
    responses={200: {"model": Run, "description": "The run ended within the wait."}},
)
async def start_run(
    request: Request,
    access: Editor,
    workflow_id: WorkflowId,
    body: RunInput | None = None,
    wait: Wait = 0.0,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a run. When this is answered the run is committed, and will end."""
    clients = clients_of(request)
    asked = pb.StartRunRequest(
        project_id=access.project_id,
        workflow_id=workflow_id,
        request_id=idempotency_key or "",
        started_by=access.user_id,
    )
    if body is not None:
        asked.priority = body.priority
        if body.input is not None:
            asked.input.CopyFrom(json_to_proto(body.input))
        if body.vars:
            asked.vars.CopyFrom(json_to_proto(body.vars))
        _select(asked, body.version)
    if wait:
        asked.wait.CopyFrom(seconds_to_proto(wait))
    reply = await clients.call(clients.executor.StartRun, asked, timeout=wait + clients.rpc_timeout_seconds)
    status = 200 if wait and is_terminal(reply.run) else 202
    return Json(run_to_json(reply.run), status_code=status, headers={"Location": f"/api/v1/runs/{reply.run.id}"})


@router.get("/runs", response_model=RunPage)
async def list_runs(
    request: Request,
    access: Viewer,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    status: StatusFilter = None,
    workflow_id: WorkflowFilter = "",
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
) -> Response:
    """List runs without input and output, newest first."""
    asked = _list_request(access, page_size, page_token, status, created_after, created_before)
    asked.workflow_id = workflow_id.lower()
    return Json(await _list(request, asked))


@router.get("/workflows/{workflow_id}/runs", response_model=RunPage)
async def list_workflow_runs(
    request: Request,
    access: Viewer,
    workflow_id: WorkflowId,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    status: StatusFilter = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
) -> Response:
    """List a workflow's runs without input and output, newest first."""
    asked = _list_request(access, page_size, page_token, status, created_after, created_before)
    asked.workflow_id = workflow_id
    page = await _list(request, asked)
    if not page["items"] and not page_token:
        # The executor does not know workflows that never ran. Tell those from what does not exist.
        clients = clients_of(request)
        wanted = workflow_service_pb2.GetWorkflowRequest(project_id=access.project_id, workflow_id=workflow_id)
        await clients.call(clients.workflows.GetWorkflow, wanted)
    return Json(page)


@router.get("/runs/{run_id}/nodes", response_model=NodeExecutionPage)
async def list_node_executions(
    request: Request, access: Viewer, run_id: RunId, page_size: PageSize = 0, page_token: PageToken = ""
) -> Response:
    """List a run's node executions by the time they became ready."""
    clients = clients_of(request)
    asked = pb.ListNodeExecutionsRequest(
        project_id=access.project_id,
        run_id=run_id,
        page_size=page_size,
        page_token=page_token,
        with_resume_tokens=access.role >= Role.EDITOR,
    )
    reply = await clients.call(clients.executor.ListNodeExecutions, asked)
    items = [node_execution_to_json(execution) for execution in reply.node_executions]
    return Json(page_to_json(items, reply.next_page_token))


@router.post("/runs/{run_id}/nodes/{node_key}/resume", response_model=Run)
async def resume_node(
    request: Request,
    access: Editor,
    run_id: RunId,
    node_key: NodeKey,
    body: ResumeInput,
    item_path: ItemPath = "",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer an `approval` or a `wait_for_event`, or decide about an outcome that nobody knows. One answer wins.

    409 NODE_NOT_WAITING when there was one; 403 NOT_AN_APPROVER for those whom the node's `approvers` do not include.
    """
    clients = clients_of(request)
    user = await clients.call(clients.auth.GetUser, auth_service_pb2.GetUserRequest(user_id=access.user_id))
    asked = pb.ResumeNodeRequest(
        project_id=access.project_id,
        run_id=run_id,
        place=pb.NodePlace(node_key=node_key, item_path=item_path),
        decision=body.decision,
        data=json_to_proto(body.data),
        by=pb.Person(user_id=access.user_id, email=user.user.email, role=access.role.name.lower()),
        request_id=idempotency_key or "",
    )
    reply = await clients.call(clients.executor.ResumeNode, asked)
    return Json(run_to_json(reply.run))


@router.post("/runs/{run_id}/cancel", status_code=202, response_model=Run)
async def cancel_run(request: Request, access: Editor, run_id: RunId) -> Response:
    """Cancel a run: nodes not started are cancelled at once. Repeating it changes nothing."""
    clients = clients_of(request)
    asked = pb.CancelRunRequest(project_id=access.project_id, run_id=run_id)
    reply = await clients.call(clients.executor.CancelRun, asked)
    return Json(run_to_json(reply.run), status_code=202)


@router.post("/runs/{run_id}/rerun", status_code=202, response_model=Run)
async def rerun_run(
    request: Request,
    access: Editor,
    run_id: RunId,
    body: RerunInput | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Go again over a run that has ended, as a new run that uses its recorded results again.

    A node runs again if it is asked for, did not succeed, has changed in the version to run, reads an input that was
    changed, or comes after such a node. Where that would repeat effects, this answers 409 EFFECTS_WOULD_REPEAT and
    names them, until `confirm` is true.
    """
    clients = clients_of(request)
    asked = pb.RerunRunRequest(
        project_id=access.project_id, run_id=run_id, request_id=idempotency_key or "", started_by=access.user_id
    )
    if body is not None:
        _fill_rerun(asked, body)
    reply = await clients.call(clients.executor.RerunRun, asked)
    headers = {"Location": f"/api/v1/runs/{reply.run.id}"}
    return Json(run_to_json(reply.run), status_code=202, headers=headers)


def _fill_rerun(asked: pb.RerunRunRequest, body: RerunInput) -> None:
    if body.from_node is not None:
        asked.start.CopyFrom(_place(body.from_node))
    for name, output in body.overrides.items():
        asked.overrides.add(place=_place(name), output=json_to_proto(output))
    if "input" in body.model_fields_set:
        asked.input.CopyFrom(json_to_proto({} if body.input is None else body.input))
    if "vars" in body.model_fields_set:
        asked.vars.CopyFrom(json_to_proto(body.vars))
    _select(asked, body.version)
    asked.confirm = body.confirm


def _place(name: str) -> pb.NodePlace:
    path, _, key = name.rpartition("/")
    return pb.NodePlace(node_key=key, item_path=path)


def _select(asked: pb.StartRunRequest | pb.RerunRunRequest, version: int | str | None) -> None:
    if version == "draft":
        asked.draft = True
    elif version == "latest":
        asked.latest = True
    elif isinstance(version, int):
        asked.number = version


def _list_request(
    access: Access,
    page_size: int,
    page_token: str,
    status: list[RunStatusName] | None,
    created_after: Time | None,
    created_before: Time | None,
) -> pb.ListRunsRequest:
    asked = pb.ListRunsRequest(
        project_id=access.project_id,
        page_size=page_size,
        page_token=page_token,
        statuses=[RUN_STATUSES[name] for name in dict.fromkeys(status or ())],
    )
    if created_after is not None:
        asked.created_after.CopyFrom(time_to_proto(created_after))
    if created_before is not None:
        asked.created_before.CopyFrom(time_to_proto(created_before))
    return asked


async def _list(request: Request, asked: pb.ListRunsRequest) -> dict[str, object]:
    clients = clients_of(request)
    reply = await clients.call(clients.executor.ListRuns, asked)
    return page_to_json([run_summary_to_json(run) for run in reply.runs], reply.next_page_token)
