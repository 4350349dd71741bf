"""The OpenAPI document: what FastAPI derives, with every error status and the credentials of each operation."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from services.gateway.problems import MEDIA_TYPE
from services.gateway.routing import PUBLIC, takes_project
from services.gateway.schemas.auth import LoginInput
from services.gateway.schemas.common import Problem

TITLE = "Headrace"
VERSION = "1"
DESCRIPTION = """\
Workflows of language models, HTTP calls, searches and databases, run durably.

Errors are `application/problem+json` (RFC 9457) with a stable `reason`. Lists take `page_size` and `page_token`.
`X-Project-Id` picks the project; what belongs to another project is 404. `Idempotency-Key` makes a POST happen once.
Answers carry `revision`; send it as `If-Match`, and a stale one is 412.
"""
TAGS = [
    {"name": "auth", "description": "Registration, login, the own account, API keys."},
    {"name": "projects", "description": "The unit of tenancy, and its members."},
    {"name": "workflows", "description": "What people edit."},
    {"name": "nodes", "description": "Nodes of a draft, one by one."},
    {"name": "edges", "description": "Edges of a draft, one by one."},
    {"name": "versions", "description": "Published, immutable definitions."},
    {"name": "node types", "description": "What a node can be."},
    {"name": "runs", "description": "Executions of a version."},
    {"name": "collections", "description": "Records searched together."},
    {"name": "records", "description": "What a collection holds."},
    {"name": "tables", "description": "A project's own tables, the default target of `db_write`."},
    {"name": "credentials", "description": "Named secrets for nodes."},
    {"name": "models", "description": "Compatible with OpenAI's clients: the base URL is this server's `/v1`."},
    {"name": "health", "description": "For probes and verifiers."},
]

_SECURITY_SCHEMES = {
    "accessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "From login."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`hr_…`"},
}
_PROJECT_HEADER = {
    "name": "X-Project-Id",
    "in": "header",
    "required": False,
    "description": "The project; absent = your own.",
    "schema": {"type": "string", "format": "uuid"},
}
_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "No valid credential.",
    403: "The role in the project does not reach.",
    404: "It does not exist, or not for you.",
    408: "The body did not come in time.",
    409: "In conflict with the present state.",
    412: "If-Match is stale.",
    413: "The body is too large.",
    415: "The body is of another type.",
    422: "The input is not valid; `violations` says what, all of it.",
    431: "The request line with all headers is too large.",
    429: "Too much at once; Retry-After says when to come again.",
    503: "A part of the system does not answer; Retry-After says when to come again.",
    504: "A part of the system did not answer in time.",
}
_ALWAYS = (422, 429, 431, 503, 504)
_WITH_BODY = (400, 408, 413, 415)
_LOGIN_PATHS = {"/api/v1/auth/register", "/api/v1/auth/login", "/api/v1/auth/refresh", "/api/v1/auth/logout"}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document, the same for the same code."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=TITLE,
            version=VERSION,
            description=DESCRIPTION,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            routes=app.routes,
            tags=TAGS,
            servers=[{"url": "/"}],
        )
        components = document["components"]
        components["securitySchemes"] = _SECURITY_SCHEMES
        schemas = components["schemas"]
        for model in (Problem, LoginInput):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        components["responses"] = {f"Problem{status}": _problem(text) for status, text in _DESCRIPTIONS.items()}
        routes = {
            (method, route.path_format): route
            for route in app.routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if takes_project(routes[method.upper(), path]):
                    operation.setdefault("parameters", []).append(_PROJECT_HEADER)
                _complete(path, method.upper(), operation)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        app.openapi_schema = document
    return app.openapi_schema


def _problem(description: str) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = {"X-Request-Id": {"schema": {"type": "string"}, "description": "As in `request_id`."}}
    return {"description": description, "headers": headers, "content": content}


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """Say which errors the operation answers with, and which credentials it takes."""
    responses = operation["responses"]
    responses.pop("422", None)
    operation.pop("x-form-body", None)
    statuses = set(_ALWAYS)
    if (method, path) in PUBLIC:
        operation["security"] = []
    else:
        operation["security"] = [{"accessToken": []}, {"apiKey": []}]
        statuses |= {401, 403, 404}
    if path == "/api/v1/events/{token}":
        statuses |= {404, 409}
    if path in _LOGIN_PATHS:
        statuses |= {401, 409}
    if "requestBody" in operation:
        statuses |= set(_WITH_BODY)
    if method != "GET":
        statuses.add(409)
    if any(parameter["name"] == "If-Match" for parameter in operation.get("parameters", ())):
        statuses.add(412)
    for status in sorted(statuses):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})
    operation["responses"] = dict(sorted(responses.items()))
