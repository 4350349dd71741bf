"""Every error that a service raises, as a client of the gateway meets it."""

from __future__ import annotations

import pytest

from services.gateway.problems import status_of
from services.kit import errors
from services.kit.errors import DomainError, Violation

STATUSES = {
    errors.InvalidArgumentError: 422,
    errors.IdempotencyKeyReusedError: 422,
    errors.UnauthenticatedError: 401,
    errors.PermissionDeniedError: 403,
    errors.NotFoundError: 404,
    errors.AlreadyExistsError: 409,
    errors.ConflictError: 409,
    errors.RevisionMismatchError: 412,
    errors.FailedPreconditionError: 409,
    errors.ResourceExhaustedError: 429,
    errors.UnavailableError: 503,
    errors.DeadlineExceededError: 504,
    errors.InternalError: 500,
}
WORKFLOW = "/api/v1/workflows/5bf8415b-db6d-42f8-b003-a921db43a1f7"


def test_the_table_covers_the_tree():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainError)}
    assert kinds - {DomainError} == STATUSES.keys()


@pytest.mark.parametrize(("kind", "status"), STATUSES.items(), ids=lambda value: getattr(value, "__name__", value))
async def test_an_error_of_a_service_reaches_the_client_with_its_reason(client, peers, kind, status):
    raised = kind("A sentence.")
    peers.replies["DeleteWorkflow"] = raised
    reply = await client.delete(WORKFLOW, headers={"X-Request-Id": "mine"})
    body = reply.json()
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert (body["status"], body["reason"], body["instance"]) == (status, raised.reason, WORKFLOW)
    assert body["request_id"] == reply.headers["X-Request-Id"] == "mine"
    assert ("Retry-After" in reply.headers) == (status in {429, 503})
    assert ("WWW-Authenticate" in reply.headers) == (status == 401)
    if kind is not errors.InternalError:
        assert body["detail"] == raised.message


async def test_all_issues_of_a_definition_are_named(client, peers):
    issues = tuple(
        Violation("UNKNOWN_NODE_TYPE", f"Type {n} is unknown.", f"nodes[{n}].type", node_key=f"n{n}") for n in range(3)
    )
    peers.replies["ListVersions"] = errors.InvalidArgumentError("x", reason="INVALID_DEFINITION", violations=issues)
    reply = await client.post(f"{WORKFLOW}/versions")
    assert reply.status_code == 422
    assert reply.json()["violations"] == [
        {
            "code": "UNKNOWN_NODE_TYPE",
            "message": f"Type {n} is unknown.",
            "path": f"nodes[{n}].type",
            "node_key": f"n{n}",
            "severity": "error",
        }
        for n in range(3)
    ]


async def test_a_wait_that_a_service_asks_for_is_rounded_up(client, peers):
    peers.replies["ListWorkflows"] = errors.ResourceExhaustedError("Slow down.", reason="QUEUE_FULL", retry_after=2.2)
    reply = await client.get("/api/v1/workflows")
    assert (reply.status_code, reply.headers["Retry-After"], reply.json()["reason"]) == (429, "3", "QUEUE_FULL")


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nowhere", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/v1/workflows/", 404, "ROUTE_NOT_FOUND"),
        ("DELETE", "/api/v1/workflows", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/workflows/not-an-id", 404, "WORKFLOW_NOT_FOUND"),
        ("GET", "/api/v1/runs/" + "0" * 32, 404, "RUN_NOT_FOUND"),
        ("GET", "/api/v1/runs/%00", 404, "NOT_FOUND"),
        ("GET", "/api/v1/workflows?name=%00", 422, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/workflows?page_size=x", 422, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/workflows?page_size=99999999999", 422, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/runs?status=asleep", 422, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/runs?created_after=yesterday", 422, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/runs?created_after=2026-01-01T00:00:00", 422, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/runs?created_after=0001-01-01T00:00:00%2B14:00", 422, "INVALID_ARGUMENT"),
        ("GET", f"{WORKFLOW}/versions/0", 404, "VERSION_NOT_FOUND"),
        ("GET", f"{WORKFLOW}/versions/99999999999999999999", 404, "VERSION_NOT_FOUND"),
        ("GET", "/api/v1/tables/t/rows?filter={", 422, "INVALID_ARGUMENT"),
    ],
)
async def test_what_no_service_is_asked_is_answered_in_the_same_form(client, method, path, status, reason):
    reply = await client.request(method, path)
    body = reply.json()
    assert (reply.status_code, body["reason"]) == (status, reason), body
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert (status == 405) == ("Allow" in reply.headers)


@pytest.mark.parametrize("value", ["0", '"0"', "-1", "x", '"x"', "1.5", "9" * 30, '"1", "2"', ""])
async def test_an_if_match_that_we_never_gave_matches_nothing(client, peers, value):
    reply = await client.delete(WORKFLOW, headers={"If-Match": value})
    assert (reply.status_code, reply.json()["reason"]) == (412, "REVISION_MISMATCH")
    assert not peers.asked["DeleteWorkflow"]


@pytest.mark.parametrize(("value", "revision"), [("7", 7), ('"7"', 7), ('W/"7"', 7), ("*", 0), (None, 0)])
async def test_the_expected_revision_reaches_the_service(client, peers, value, revision):
    peers.replies["DeleteWorkflow"] = errors.RevisionMismatchError(expected=revision, actual=9)
    reply = await client.delete(WORKFLOW, headers={"If-Match": value} if value else {})
    assert reply.status_code == 412
    assert [request.revision for request in peers.asked["DeleteWorkflow"]] == [revision]


async def test_an_exception_of_our_own_shows_an_incident_id_and_nothing_else(client, gateway, monkeypatch):
    def fail(*_):
        raise KeyError("secret-detail")

    monkeypatch.setattr(type(gateway.identity), "enter", fail)
    reply = await client.get("/api/v1/workflows")
    assert reply.status_code == 500
    assert "secret-detail" not in reply.text
    assert reply.json()["metadata"]["incident"]


def test_no_error_is_without_a_status():
    assert status_of(DomainError("x")) == 500
