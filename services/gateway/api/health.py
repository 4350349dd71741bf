"""Health, and the public keys. Open to all, like the paths at the root that others read."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.api.parameters import gateway_of
from services.gateway.routing import Json, new_router
from services.gateway.schemas.health import Health, JwkSet, Readiness

router = new_router("", "health")


@router.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """The process lives. Asks nothing of other services."""
    return Json({"status": "ok"})


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Some dependency does not answer."}},
)
async def readyz(request: Request) -> Response:
    """Whether every service that the gateway needs answers, each by name."""
    gateway = gateway_of(request)
    health = await gateway.clients.health()
    ready = all(health.values()) and not gateway.stopping.is_set()
    return Json(
        {
            "status": "ready" if ready else "not_ready",
            "dependencies": {name: {"ready": is_ready} for name, is_ready in health.items()},
        },
        status_code=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
    )


@router.get("/.well-known/jwks.json", response_model=JwkSet)
async def get_jwks(request: Request) -> Response:
    """Public keys under which access tokens are signed (RFC 7517)."""
    keys = gateway_of(request).keys
    if not keys.document:
        await keys.refresh()
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(keys.document, media_type="application/json", headers=headers)
