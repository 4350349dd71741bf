"""Projects, roles and API keys."""

from __future__ import annotations

import time

import httpx
import pytest
from headrace.auth.v1 import auth_pb2, auth_service_pb2
from headrace.workflows.v1 import workflow_service_pb2

from services.gateway.app import build_app
from services.kit.errors import UnavailableError
from tests.unit.gateway.peers import HOME, SHARED, USER, access_token

WORKFLOWS = "/api/v1/workflows"
CREDENTIALS = "/api/v1/credentials"
SECRET = {"name": "c", "type": "http_bearer", "data": {"token": "t"}}


async def status(client: httpx.AsyncClient, method: str, path: str, **options: object) -> int:
    return (await client.request(method, path, **options)).status_code


@pytest.fixture(autouse=True)
def answers(peers):
    peers.replies["ListWorkflows"] = workflow_service_pb2.ListWorkflowsResponse()
    peers.replies["CreateWorkflow"] = workflow_service_pb2.CreateWorkflowResponse()
    peers.replies["CreateCredential"] = auth_service_pb2.CreateCredentialResponse()


async def test_the_project_is_the_own_one_unless_the_header_names_another(client, peers):
    peers.roles[SHARED] = auth_pb2.ROLE_VIEWER
    for headers in ({}, {"X-Project-Id": HOME}, {"X-Project-Id": SHARED}):
        assert await status(client, "GET", WORKFLOWS, headers=headers) == 200
    assert [request.project_id for request in peers.asked["ListWorkflows"]] == [HOME, HOME, SHARED]


@pytest.mark.parametrize(
    "project", ["3d6f1a52-58c4-4a5c-9a0c-2d1c4b7e9f04", "x", "", HOME[:-1], "%00", HOME + "\u00e9"]
)
async def test_a_project_that_is_not_the_callers_does_not_exist(client, peers, project):
    reply = await client.get(WORKFLOWS, headers={"X-Project-Id": project.encode()})
    assert (reply.status_code, reply.json()["reason"]) == (404, "PROJECT_NOT_FOUND")
    assert not peers.asked["ListWorkflows"]


@pytest.mark.parametrize(
    ("role", "expected"),
    [("viewer", (200, 403, 403)), ("editor", (200, 201, 403)), ("admin", (200, 201, 201)), ("owner", (200, 201, 201))],
)
async def test_what_each_role_may_do(client, peers, role, expected):
    peers.roles[SHARED] = auth_pb2.Role.Value(f"ROLE_{role.upper()}")
    headers = {"X-Project-Id": SHARED}
    assert expected == (
        await status(client, "GET", WORKFLOWS, headers=headers),
        await status(client, "POST", WORKFLOWS, headers=headers, json={"name": "w"}),
        await status(client, "POST", CREDENTIALS, headers=headers, json=SECRET),
    )


async def test_a_role_is_asked_for_once_and_a_change_counts_soon(client, peers, monkeypatch):
    peers.roles[SHARED] = auth_pb2.ROLE_VIEWER
    headers = {"X-Project-Id": SHARED}
    for _ in range(5):
        await client.get(WORKFLOWS, headers=headers)
    assert len(peers.asked["GetProject"]) == 1
    del peers.roles[SHARED]
    clock = time.monotonic() + 6
    monkeypatch.setattr("services.gateway.cache.time.monotonic", lambda: clock)
    assert await status(client, "GET", WORKFLOWS, headers=headers) == 404


@pytest.mark.parametrize(
    ("scopes", "role", "expected"),
    [
        ((), "owner", (200, 201, 201)),
        (("write",), "owner", (200, 201, 403)),
        (("read", "write"), "owner", (200, 201, 403)),
        (("read",), "owner", (200, 403, 403)),
        (("write",), "viewer", (200, 403, 403)),
        (("unheard-of",), "owner", (200, 403, 403)),
    ],
)
async def test_a_keys_scopes_leave_at_most_its_owners_role(anonymous, peers, scopes, role, expected):
    key = peers.add_api_key(*scopes, role=auth_pb2.Role.Value(f"ROLE_{role.upper()}"))
    headers = {"X-API-Key": key}
    assert expected == (
        await status(anonymous, "GET", WORKFLOWS, headers=headers),
        await status(anonymous, "POST", WORKFLOWS, headers=headers, json={"name": "w"}),
        await status(anonymous, "POST", CREDENTIALS, headers=headers, json=SECRET),
    )
    assert len(peers.asked["VerifyApiKey"]) == 1


async def test_a_key_reaches_no_project_but_its_own(anonymous, peers):
    peers.roles |= {HOME: auth_pb2.ROLE_OWNER, SHARED: auth_pb2.ROLE_OWNER}
    headers = {"X-API-Key": peers.add_api_key(project=SHARED)}
    assert await status(anonymous, "GET", WORKFLOWS, headers=headers) == 200
    assert await status(anonymous, "GET", WORKFLOWS, headers=headers | {"X-Project-Id": HOME}) == 404
    assert await status(anonymous, "GET", f"/api/v1/projects/{HOME}", headers=headers) == 404
    assert await status(anonymous, "GET", f"/api/v1/projects/{SHARED}", headers=headers) == 200
    projects = (await anonymous.get("/api/v1/projects", headers=headers)).json()["items"]
    assert [project["id"] for project in projects] == [SHARED]
    assert {request.project_id for request in peers.asked["ListWorkflows"]} == {SHARED}


async def test_a_key_shows_of_its_owner_only_its_own_project(anonymous, peers):
    both = [auth_pb2.Project(id=HOME, role=auth_pb2.ROLE_OWNER), auth_pb2.Project(id=SHARED, role=auth_pb2.ROLE_OWNER)]
    peers.replies["GetUser"] = auth_service_pb2.GetUserResponse(user=auth_pb2.User(id=USER), projects=both)
    by_key = (await anonymous.get("/api/v1/auth/me", headers={"X-API-Key": peers.add_api_key()})).json()
    by_token = (await anonymous.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {access_token()}"})).json()
    assert [project["id"] for project in by_key["projects"]] == [HOME]
    assert [project["id"] for project in by_token["projects"]] == [HOME, SHARED]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/auth/api-keys", {"name": "k"}),
        ("DELETE", f"/api/v1/auth/api-keys/{HOME}", None),
        ("PATCH", "/api/v1/auth/me", {"name": "n"}),
        ("POST", "/api/v1/projects", {"name": "p"}),
        ("DELETE", f"/api/v1/projects/{HOME}", None),
        ("PUT", f"/api/v1/projects/{HOME}/members/{USER}", {"role": "owner"}),
    ],
)
async def test_a_key_makes_no_keys_and_changes_no_account(anonymous, peers, method, path, body):
    reply = await anonymous.request(method, path, json=body, headers={"X-API-Key": peers.add_api_key()})
    assert (reply.status_code, reply.json()["reason"]) == (403, "LOGIN_REQUIRED")


async def test_an_openai_client_may_send_the_key_as_bearer(anonymous, peers):
    headers = {"Authorization": f"Bearer {peers.add_api_key()}"}
    assert await status(anonymous, "GET", WORKFLOWS, headers=headers) == 200


async def test_unknown_and_expired_keys_are_401_and_not_remembered_for_long(anonymous, peers, monkeypatch):
    unknown = {"X-API-Key": "hr_unknown"}
    assert await status(anonymous, "GET", WORKFLOWS, headers=unknown) == 401
    assert await status(anonymous, "GET", WORKFLOWS, headers=unknown) == 401
    assert len(peers.asked["VerifyApiKey"]) == 1
    expired = peers.add_api_key()
    peers.api_keys[expired].expires_at.FromSeconds(int(time.time()) - 1)
    assert await status(anonymous, "GET", WORKFLOWS, headers={"X-API-Key": expired}) == 401
    peers.api_keys["hr_unknown"] = peers.api_keys[peers.add_api_key()]
    clock = time.monotonic() + 1.5
    monkeypatch.setattr("services.gateway.cache.time.monotonic", lambda: clock)
    assert await status(anonymous, "GET", WORKFLOWS, headers=unknown) == 200


async def test_auth_being_away_is_no_verdict_on_a_key(anonymous, peers):
    peers.replies["VerifyApiKey"] = UnavailableError("Gone.")
    assert await status(anonymous, "GET", WORKFLOWS, headers={"X-API-Key": "hr_some"}) == 503


async def test_a_login_takes_a_form_or_json_and_the_clients_address(anonymous, peers):
    pair = auth_pb2.TokenPair(access_token="a", refresh_token="r", expires_in_seconds=900)
    peers.replies["Login"] = auth_service_pb2.LoginResponse(tokens=pair)
    fields = {"username": "ada@example.org", "password": "pass w\u00f6rd&=+"}
    spoofed = {"X-Forwarded-For": "203.0.113.9"}
    for body in ({"data": {**fields, "grant_type": "password"}}, {"json": fields}):
        reply = await anonymous.post("/api/v1/auth/login", headers=spoofed, **body)
        assert reply.json() == {
            "access_token": "a",
            "refresh_token": "r",
            "token_type": "bearer",
            "expires_in": 900,
        }
    assert [(r.email, r.password, r.client_address) for r in peers.asked["Login"]] == [
        (fields["username"], fields["password"], "192.0.2.1")
    ] * 2


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "203.0.113.9", "192.0.2.1"),
        (1, "203.0.113.9", "203.0.113.9"),
        (1, "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        (2, "1.1.1.1, 198.51.100.7, 203.0.113.9", "198.51.100.7"),
        (2, "203.0.113.9", "192.0.2.1"),
        (1, "", "192.0.2.1"),
    ],
)
async def test_a_clients_address_is_what_the_outermost_trusted_proxy_saw(peers, gateway, proxies, forwarded, address):
    gateway.settings.trusted_proxies = proxies
    peers.replies["Login"] = auth_service_pb2.LoginResponse()
    transport = httpx.ASGITransport(build_app(gateway), client=("192.0.2.1", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        headers = {"X-Forwarded-For": forwarded}
        await client.post("/api/v1/auth/login", json={"username": "a", "password": "b"}, headers=headers)
    assert [request.client_address for request in peers.asked["Login"]] == [address]


@pytest.mark.parametrize(
    "content",
    [b"", b"username=a", b"username=a&username=b&password=c", b"username=a&password=%00", b"a=1&" * 40, b"\xff=\xff"],
)
async def test_a_bad_login_form_is_422_and_does_not_echo_it(anonymous, content):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await anonymous.post("/api/v1/auth/login", content=content, headers=headers)
    assert reply.status_code == 422
