"""Events from outside: whoever has the address of a wait may answer it, once."""

from typing import Annotated

from fastapi import Path
from headrace.executor.v1 import executor_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import IdempotencyKey, gateway_of
from services.gateway.convert.common import json_to_proto
from services.gateway.routing import new_router
from services.gateway.schemas.runs import EventPayload
from services.kit.errors import NotFoundError

router = new_router("/api/v1/events", "runs")

Token = Annotated[str, Path(max_length=8192, description="The last part of a node execution's `resume_url`.")]


@router.post("/{token}", status_code=204)
async def deliver_event(
    request: Request, token: Token, body: EventPayload | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answer a `wait_for_event` with this payload, or an `approval` with `{"decision": …, "data": …}`.

    No login: the address is the secret, good for one answer. 409 NODE_NOT_WAITING when there was one, or the time is
    over.
    """
    gateway = gateway_of(request)
    address = request.scope["headrace.client_address"]
    gateway.guesses.admit(address)
    asked = pb.DeliverEventRequest(
        token=token, payload=json_to_proto(body.root if body else None), request_id=idempotency_key or ""
    )
    try:
        await gateway.clients.call(gateway.clients.executor.DeliverEvent, asked)
    except NotFoundError:
        gateway.guesses.was_wrong(address)
        raise
    return Response(status_code=204)
