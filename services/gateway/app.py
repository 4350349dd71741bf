"""The application: routes, error answers, middleware."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from services.gateway.access_log import access_log
from services.gateway.api import (
    api_keys,
    auth,
    collections,
    credentials,
    deliveries,
    edges,
    events,
    health,
    limits,
    models,
    node_types,
    nodes,
    project_settings,
    projects,
    records,
    runs,
    tables,
    versions,
    workflows,
)
from services.gateway.docs import add_documentation
from services.gateway.middleware import Edge
from services.gateway.problems import from_status, from_validation, problem_response
from services.gateway.routing import Gateway
from services.gateway.settings import Settings
from services.kit.errors import DomainError
from services.kit.settings import CommonSettings

# Routes are tried in this order: those asked most often first.
_ROUTERS = (
    runs.router,
    workflows.router,
    events.router,
    collections.router,
    records.router,
    models.router,
    nodes.router,
    edges.router,
    versions.router,
    tables.router,
    node_types.router,
    deliveries.router,
    health.router,
    auth.router,
    api_keys.router,
    projects.router,
    limits.router,
    project_settings.router,
    credentials.router,
)


def build_api() -> FastAPI:
    """The routes, without the services behind them: enough to describe them."""
    api = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        # The edge traces and measures; FastAPI's own would do it again.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    # Taken over rather than included: an included router is matched twice, route by route.
    routes: list[BaseRoute] = [route for router in _ROUTERS for route in router.routes]
    api.router.routes.extend(routes)
    api.add_exception_handler(DomainError, _answer_domain_error)
    api.add_exception_handler(RequestValidationError, _answer_validation_error)
    api.add_exception_handler(HTTPException, _answer_http_exception)
    return api


def build_app(gateway: Gateway) -> ASGIApp:
    """The application as a server runs it."""
    settings = gateway.settings
    api = build_api()
    api.state.gateway = gateway
    if settings.docs == "on":
        add_documentation(api)
    return _with_edge(api, settings)


def _with_edge(api: FastAPI, settings: Settings) -> ASGIApp:
    app: ASGIApp = api
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "If-Match",
                "Last-Event-ID",
                "X-API-Key",
                "X-Project-Id",
                "X-Request-Id",
            ],
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-Id"],
        )
    return Edge(
        app,
        max_requests=settings.max_requests,
        body_timeout_seconds=settings.body_timeout_seconds,
        trusted_proxies=settings.trusted_proxies,
        access_log=access_log(CommonSettings()) if settings.access_log else None,
    )


async def _answer_domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DomainError)  # noqa: S101 - what the handler is registered for
    return problem_response(error, request.scope)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
    return problem_response(from_validation(error.errors()), request.scope)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    return problem_response(from_status(error.status_code, error.headers), request.scope)
