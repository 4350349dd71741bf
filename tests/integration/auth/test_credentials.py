"""Credentials: written by people, read by workers alone, encrypted in between."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

import pytest
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1 import auth_service_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth.domain.credentials import Credentials
from services.auth.domain.envelope import KeyRing
from services.auth.settings import Settings
from services.auth.storage.postgres import PostgresStore
from services.kit.errors import (
    AlreadyExistsError,
    IdempotencyKeyReusedError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RevisionMismatchError,
)
from services.kit.settings import decode_key
from tests.integration.auth.client import Client, as_json

CANARY = "canary-4f1c"
POSTGRES = {"host": "db.example.com", "database": "d", "username": "u", "password": CANARY}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("http_bearer", {"token": CANARY}),
    ("http_basic", {"username": "u", "password": ""}),
    ("http_header", {"name": "X-Api-Key", "value": "two words"}),
    ("postgres", POSTGRES | {"port": 6432, "sslmode": "verify-full"}),
    ("llm_provider", {"base_url": "https://llm.example.com/v1", "api_key": CANARY}),
]


@pytest.fixture
def project(ada: auth_pb2.User) -> str:
    return ada.personal_project_id


@pytest.mark.parametrize(("kind", "data"), GOOD)
async def test_a_worker_gets_what_was_stored(auth: Client, project: str, kind: str, data: dict[str, Any]) -> None:
    made = await auth.credential(project, "secret", kind, data)
    assert (made.type, made.revision) == (kind, 1)
    assert await auth.resolve(project, "secret") == (kind, data)


async def test_defaults_are_filled_in(auth: Client, project: str) -> None:
    await auth.credential(project, "db", "postgres", POSTGRES)
    assert await auth.resolve(project, "db") == ("postgres", POSTGRES | {"port": 5432, "sslmode": "prefer"})


async def test_only_a_grant_of_the_project_resolves(auth: Client, project: str) -> None:
    await auth.credential(project, "secret", "http_bearer", {"token": CANARY})
    request = pb.ResolveCredentialRequest(project_id=project, name="secret")
    with pytest.raises(PermissionDeniedError):
        await auth.call(request)
    with pytest.raises(NotFoundError):
        await auth.call(request, grant_of_project=str(uuid.uuid4()))
    with pytest.raises(PermissionDeniedError):
        await auth.call(pb.ListCredentialsRequest(project_id=project), grant_of_project=project)


async def test_a_credential_does_not_exist_in_another_project(auth: Client, project: str) -> None:
    made = await auth.credential(project, "secret", "http_bearer", {"token": CANARY})
    other = (await auth.register()).personal_project_id
    for request in (
        pb.UpdateCredentialRequest(project_id=other, credential_id=made.id, name="mine"),
        pb.DeleteCredentialRequest(project_id=other, credential_id=made.id),
    ):
        with pytest.raises(NotFoundError):
            await auth.call(request)
    with pytest.raises(NotFoundError) as refused:
        await auth.resolve(other, "secret")
    assert refused.value.reason == "CREDENTIAL_NOT_FOUND"
    assert not (await auth.call(pb.ListCredentialsRequest(project_id=other))).credentials


async def test_a_repeated_create_is_one_credential(auth: Client, project: str) -> None:
    fields = ("secret", "http_bearer", {"token": CANARY})
    made = await asyncio.gather(*(auth.credential(project, *fields, request_id="r") for _ in range(3)))
    assert len({each.id for each in made}) == 1
    with pytest.raises(IdempotencyKeyReusedError):
        await auth.credential(project, "secret", "http_bearer", {"token": "other"}, request_id="r")
    with pytest.raises(AlreadyExistsError) as refused:
        await auth.credential(project, *fields)
    assert refused.value.reason == "CREDENTIAL_EXISTS"


async def test_an_update_replaces_data_or_name_and_raises_the_revision(auth: Client, project: str) -> None:
    made = await auth.credential(project, "old", "http_bearer", {"token": CANARY})
    await auth.credential(project, "taken", "http_bearer", {"token": CANARY})
    change = {"project_id": project, "credential_id": made.id}
    changed = await auth.call(
        pb.UpdateCredentialRequest(**change, name="new", data=as_json({"token": "next"}), revision=1)
    )
    assert (changed.credential.name, changed.credential.revision) == ("new", 2)
    assert await auth.resolve(project, "new") == ("http_bearer", {"token": "next"})
    with pytest.raises(RevisionMismatchError):
        await auth.call(pb.UpdateCredentialRequest(**change, name="newer", revision=1))
    with pytest.raises(AlreadyExistsError):
        await auth.call(pb.UpdateCredentialRequest(**change, name="taken"))
    with pytest.raises(InvalidArgumentError):
        await auth.call(pb.UpdateCredentialRequest(**change, data=as_json({"username": "u"})))
    await auth.call(pb.DeleteCredentialRequest(**change, revision=2))
    with pytest.raises(NotFoundError):
        await auth.resolve(project, "new")


@pytest.mark.parametrize(
    ("kind", "data", "paths"),
    [
        ("ssh", {}, {"type"}),
        ("http_bearer", [], {"data"}),
        ("http_bearer", {"token": "a\r\nX-Evil: 1"}, {"data.token"}),
        ("http_basic", {"username": "a:b"}, {"data.username", "data.password"}),
        ("http_header", {"name": "Host", "value": " a"}, {"data.name", "data.value"}),
        ("http_header", {"name": "a b", "value": "a\nb", "x": 1}, {"data.name", "data.value", "data.x"}),
        (
            "postgres",
            POSTGRES | {"host": "/run/pg", "port": "5432", "sslmode": "?"},
            {"data.host", "data.port", "data.sslmode"},
        ),
        ("postgres", POSTGRES | {"port": True, "database": 1}, {"data.port", "data.database"}),
        ("llm_provider", {"base_url": "file:///etc/passwd", "api_key": ""}, {"data.base_url", "data.api_key"}),
        ("llm_provider", {"base_url": "https://u:p@h/v1", "api_key": "k"}, {"data.base_url"}),
        ("llm_provider", {"base_url": "https://[h/v1", "api_key": "k"}, {"data.base_url"}),
    ],
)
async def test_everything_wrong_with_the_data_is_told_at_once(
    auth: Client, project: str, kind: str, data: object, paths: set[str]
) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await auth.credential(project, "bad", kind, data)
    assert refused.value.reason == "INVALID_CREDENTIAL_DATA"
    assert {item.path for item in refused.value.violations} == paths


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"token": "\\u0000"}', b"[" * 1000, b'{"token":"' + b"x" * 70_000 + b'"}']
)
async def test_data_that_is_no_sound_json_is_refused(auth: Client, project: str, text: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await auth.call(
            pb.CreateCredentialRequest(project_id=project, name="bad", type="http_bearer", data={"utf8": text})
        )
    assert refused.value.reason == "INVALID_CREDENTIAL_DATA"


async def test_nothing_stored_shows_the_secret(auth: Client, project: str, rows: AsyncEngine) -> None:
    await auth.credential(project, "secret", "http_bearer", {"token": CANARY}, request_id="r")
    async with rows.connect() as connection:
        for table in ("credentials", "data_keys"):
            result = await connection.exec_driver_sql(f"SELECT t::text FROM auth.{table} t")  # noqa: S608 - constants
            text = " ".join(result.scalars())
            assert CANARY not in text
            assert CANARY.encode().hex() not in text


async def test_a_ciphertext_opens_only_in_its_own_row(auth: Client, project: str, rows: AsyncEngine) -> None:
    other = (await auth.register()).personal_project_id
    for place, name in ((project, "a"), (project, "b"), (other, "a")):
        await auth.credential(place, name, "http_bearer", {"token": CANARY})
    for source in ("project_id = c.project_id AND name = 'b'", "project_id <> c.project_id AND name = 'a'"):
        async with rows.begin() as connection:
            await connection.exec_driver_sql(
                "UPDATE auth.credentials c SET ciphertext = "  # noqa: S608 - constants
                f"(SELECT ciphertext FROM auth.credentials WHERE {source} ORDER BY created_at DESC LIMIT 1) "
                "WHERE c.name = 'a' AND c.project_id = CAST($1 AS text)::uuid",
                (project,),
            )
        with pytest.raises(InternalError) as refused:
            await auth.resolve(project, "a")
        assert refused.value.metadata.keys() == {"incident"}


async def test_a_new_key_encryption_key_takes_over(
    auth: Client, project: str, rows: AsyncEngine, settings: Settings
) -> None:
    await auth.credential(project, "secret", "http_bearer", {"token": CANARY})
    present, following = decode_key(settings.credential_key), os.urandom(32)
    store = PostgresStore(rows)

    async def resolve(ring: KeyRing) -> tuple[str, bytes]:
        return await Credentials(store, ring=ring, hash_key=b"").resolve(uuid.UUID(project), "secret")

    with pytest.raises(InternalError):
        await resolve(KeyRing(following))
    both = await resolve(KeyRing(following, [present]))
    assert await resolve(KeyRing(following)) == both  # wrapped anew in passing
    with pytest.raises(InternalError):
        await auth.resolve(project, "secret")
    assert await resolve(KeyRing(present, [following])) == both
    assert (await auth.resolve(project, "secret"))[0] == "http_bearer"


async def test_all_projects_can_be_put_under_a_new_key_so_that_the_old_one_may_go(
    auth: Client, project: str, rows: AsyncEngine, settings: Settings
) -> None:
    await auth.credential(project, "secret", "http_bearer", {"token": CANARY})
    present, following = decode_key(settings.credential_key), os.urandom(32)
    store = PostgresStore(rows)

    def under(ring: KeyRing) -> Credentials:
        return Credentials(store, ring=ring, hash_key=b"")

    assert await under(KeyRing(following, [present])).rewrap_all() >= 1
    assert await under(KeyRing(following)).rewrap_all() == 0
    assert (await under(KeyRing(following)).resolve(uuid.UUID(project), "secret"))[0] == "http_bearer"
    assert await under(KeyRing(present, [following])).rewrap_all() >= 1
    assert await auth.resolve(project, "secret") == ("http_bearer", {"token": CANARY})
