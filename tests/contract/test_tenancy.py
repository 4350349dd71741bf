"""Two users, every operation, every id: what is one's is not there for the other."""

from __future__ import annotations

import re
from typing import Any

import pytest

from services.gateway.app import build_api
from services.gateway.openapi import openapi_document
from services.gateway.routing import PUBLIC, takes_project
from tests.contract.conftest import Inhabitant, settle

API = build_api()
DOCUMENT = openapi_document(API)
ROUTES = [(method, route) for route in API.routes for method in route.methods]
pytestmark = pytest.mark.timeout(300)  # the first test starts the stack

# In their own projects both have a collection `c` and a table `t`; names are looked up in the caller's project.
BY_ID = [(method, route.path_format) for method, route in ROUTES if re.search(r"_id\}", route.path_format)]
IN_PROJECT = [
    (method, route.path_format)
    for method, route in ROUTES
    if (method, route.path_format) not in PUBLIC and takes_project(route)
]


def named(part: str) -> str:
    return part.strip("/").replace("/", ".")


@pytest.fixture(scope="module")
async def stranger(inhabitant: Inhabitant) -> Inhabitant:
    return await settle(inhabitant.client)


def example_body(method: str, path: str) -> Any:
    """The documented example of a body; None where there is no body."""
    operation = DOCUMENT["paths"][path][method.lower()]
    if "requestBody" not in operation:
        return None
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    names = [candidate.get("$ref", "").rpartition("/")[2] for candidate in schema.get("anyOf", [schema])]
    return next(DOCUMENT["components"]["schemas"][name]["example"] for name in names if name)


async def ask(asker: Inhabitant, method: str, path: str, ids: dict[str, str], **headers: str) -> Any:
    url = re.sub(r"\{(\w+)\}", lambda match: ids.get(match[1], "x"), path)
    params = {"ids": "r"} if (method, path) == ("DELETE", "/api/v1/collections/{collection_id}/records") else {}
    body = example_body(method, path)
    return await asker.client.request(method, url, json=body, params=params, headers=asker.headers | headers)


@pytest.mark.parametrize(("method", "path"), BY_ID, ids=named)
async def test_what_is_anothers_is_404_by_its_id(inhabitant, stranger, method, path):
    reply = await ask(stranger, method, path, inhabitant.ids)
    assert reply.status_code == 404, reply.text
    assert reply.json()["reason"].endswith("_NOT_FOUND")
    # It is there for its owner, and still is.
    if method == "GET":
        assert (await ask(inhabitant, method, path, inhabitant.ids)).status_code == 200


@pytest.mark.parametrize(("method", "path"), IN_PROJECT, ids=named)
async def test_anothers_project_is_404_by_its_header(inhabitant, stranger, method, path):
    project = inhabitant.ids["project_id"]
    reply = await ask(stranger, method, path, stranger.ids, **{"X-Project-Id": project})
    assert (reply.status_code, reply.json()["reason"]) == (404, "PROJECT_NOT_FOUND")


async def test_a_mixture_of_own_and_foreign_ids_finds_nothing(inhabitant, stranger):
    for method, path in BY_ID:
        names = re.findall(r"\{(\w+)\}", path)
        if len(names) < 2 or "user_id" in names:
            continue
        mixed = stranger.ids | {names[0]: inhabitant.ids[names[0]]}
        assert (await ask(stranger, method, path, mixed)).status_code == 404, (method, path)
        if names[1] in ("node_id", "edge_id"):
            mixed = stranger.ids | {names[1]: inhabitant.ids[names[1]]}
            assert (await ask(stranger, method, path, mixed)).status_code == 404, (method, path)


async def test_an_idempotency_key_of_one_user_means_nothing_to_another(inhabitant, stranger):
    made = []
    for user in (inhabitant, stranger):
        headers = user.headers | {"Idempotency-Key": "the-same"}
        reply = await user.client.post("/api/v1/workflows", json={"name": "same"}, headers=headers)
        assert reply.status_code == 201
        made.append(reply.json()["id"])
    assert made[0] != made[1]


async def test_lists_hold_what_is_ones_own_only(inhabitant, stranger):
    for path in ("workflows", "runs", "collections", "credentials", "projects", "auth/api-keys"):
        found = []
        for user in (inhabitant, stranger):
            reply = await user.client.get(f"/api/v1/{path}", headers=user.headers)
            found.append({item["id"] for item in reply.json()["items"]})
        assert found[0], path
        assert not found[0] & found[1], path
