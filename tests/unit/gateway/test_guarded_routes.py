"""What every route does before its endpoint: ask who it is, look at the body, refuse what it does not name."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from fastapi.routing import APIRoute
from headrace.auth.v1 import auth_pb2

from services.gateway.app import build_api
from services.gateway.openapi import openapi_document
from services.gateway.routing import PUBLIC, GuardedRoute

API = build_api()
DOCUMENT = openapi_document(API)
OPERATIONS = sorted((method, route.path_format) for route in API.routes for method in route.methods)
PROTECTED = [operation for operation in OPERATIONS if operation not in PUBLIC]
ID = "5bf8415b-db6d-42f8-b003-a921db43a1f7"


def described(method: str, path: str) -> dict[str, Any]:
    return DOCUMENT["paths"][path][method.lower()]


def named(part: str) -> str:
    return part.strip("/").replace("/", ".")


WITH_BODY = [operation for operation in OPERATIONS if "requestBody" in described(*operation)]
WITH_OBJECT = [operation for operation in WITH_BODY if operation != ("POST", "/api/v1/events/{token}")]
"""Events may be any JSON."""


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", ID, path)


def body_of(method: str, path: str) -> Any:
    """The documented example of a body."""
    schema = described(method, path)["requestBody"]["content"]["application/json"]["schema"]
    names = [candidate.get("$ref", "").rpartition("/")[2] for candidate in schema.get("anyOf", [schema])]
    return next(DOCUMENT["components"]["schemas"][name]["example"] for name in names if name)


def test_every_route_guards_itself_and_public_ones_are_a_short_list():
    assert all(isinstance(route, GuardedRoute) for route in API.routes if isinstance(route, APIRoute))
    assert len(PROTECTED) >= 55
    documentation = {("GET", path) for path in ("/openapi.json", "/docs", "/docs/{name}")}
    assert set(OPERATIONS) >= PUBLIC - documentation


@pytest.mark.parametrize(("method", "path"), PROTECTED, ids=named)
async def test_a_protected_route_without_a_credential_is_401_before_anything_else(anonymous, peers, method, path):
    reply = await anonymous.request(method, filled(path), content=b"{", headers={"Content-Type": "text/plain"})
    assert (reply.status_code, reply.json()["reason"]) == (401, "UNAUTHENTICATED")
    assert not peers.asked


OTHER_TYPES = (
    None,
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/xml",
    "application/json; charset=utf-16",
    "application/json+x",
    "*/*",
)


@pytest.mark.parametrize(("method", "path"), WITH_BODY, ids=named)
async def test_a_body_of_another_type_is_415(client, peers, method, path):
    for content_type in OTHER_TYPES:
        headers = {"Content-Type": content_type} if content_type else {}
        reply = await client.request(method, filled(path), content=b'{"a": 1}', headers=headers)
        assert (reply.status_code, reply.json()["reason"]) == (415, "UNSUPPORTED_MEDIA_TYPE"), content_type
    assert set(peers.asked) <= {"GetJwks"}


UNSAFE_BODIES = (
    (b"{", 400),
    (b"\xff\xfe{}", 400),
    (b"NaN", 400),
    (b'{"a": 1e999}', 400),
    (b"[" * 100 + b"]" * 100, 422),
    (b'{"a": "\\u0000"}', 422),
    (b'{"a\\u0000": 1}', 422),
    (b'{"a": "\\ud800"}', 400),
    (b"[1, 2]", 422),
    (b'"x"', 422),
    (b"1", 422),
)


@pytest.mark.parametrize(("method", "path"), WITH_OBJECT, ids=named)
async def test_a_body_that_is_no_safe_json_object_is_refused(client, peers, method, path):
    headers = {"Content-Type": "application/json"}
    for content, status in UNSAFE_BODIES:
        reply = await client.request(method, filled(path), content=content, headers=headers)
        assert reply.status_code == status, (content, reply.text)
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json()["violations"] if status == 422 else reply.json()["reason"] == "INVALID_JSON"
    assert set(peers.asked) <= {"GetJwks"}


STRANGE = ("id", "project_id", "user_id", "owner", "role", "created_at", "is_admin", "workspaceId", "__proto__")
STRICT = [operation for operation in WITH_OBJECT if not operation[1].startswith("/v1/")]


@pytest.mark.parametrize(("method", "path"), STRICT, ids=named)
async def test_fields_that_are_not_the_clients_are_refused_by_name(client, peers, method, path):
    good = body_of(method, path)
    for name in STRANGE:
        if name in good:
            continue
        content = orjson.dumps({**good, name: ID})
        reply = await client.request(
            method, filled(path), content=content, headers={"Content-Type": "application/json"}
        )
        assert reply.status_code == 422, (name, reply.text)
        assert any(item["path"].endswith(name) for item in reply.json()["violations"]), reply.text
    assert set(peers.asked) <= {"GetJwks"}


@pytest.mark.parametrize(("method", "path"), WITH_BODY, ids=named)
async def test_the_documented_example_of_a_body_is_accepted(client, peers, method, path):
    peers.roles[ID] = auth_pb2.ROLE_OWNER
    reply = await client.request(method, filled(path), json=body_of(method, path))
    # The scripted services answer nothing, which is the end of the way through the gateway.
    assert reply.status_code == 500, reply.text
    assert set(peers.asked) - {"GetJwks", "GetProject"}


@pytest.mark.parametrize("key", ["", "a b", "\u00e9".encode("latin-1"), "x" * 256, "a\tb"])
async def test_an_idempotency_key_is_visible_ascii_of_at_most_255(client, key):
    reply = await client.post("/api/v1/workflows", json={"name": "w"}, headers={"Idempotency-Key": key})
    assert (reply.status_code, reply.json()["violations"][0]["path"]) == (422, "Idempotency-Key")


async def test_an_idempotency_key_reaches_the_service(client, peers):
    await client.post("/api/v1/workflows", json={"name": "w"}, headers={"Idempotency-Key": "k" * 255})
    assert [request.request_id for request in peers.asked["CreateWorkflow"]] == ["k" * 255]


async def test_every_answer_has_security_headers_and_a_request_id(client):
    for path in ("/healthz", "/nowhere", "/api/v1/workflows/x", "/docs", "/openapi.json"):
        reply = await client.get(path)
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert len(reply.headers["X-Request-Id"]) == 36


@pytest.mark.parametrize("offered", ["a b", "x" * 129, "\u00e9".encode("latin-1"), "a\x7f", '"', ""])
async def test_an_odd_request_id_is_replaced(client, offered):
    reply = await client.get("/healthz", headers={"X-Request-Id": offered})
    assert len(reply.headers["X-Request-Id"]) == 36


async def test_the_documentation_loads_nothing_from_elsewhere(client):
    page = (await client.get("/docs")).text
    assert "http" not in page
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        reply = await client.get("/" + asset)
        assert (reply.status_code, bool(reply.content)) == (200, True)
    assert (await client.get("/docs/../../etc/passwd")).status_code == 404
    assert (await client.get("/docs/secrets.py")).status_code == 404
    assert (await client.get("/openapi.json")).json() == DOCUMENT
