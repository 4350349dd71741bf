"""API keys: shown once, bound to a project, gone at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1 import auth_service_pb2 as pb
from headrace.auth.v1.auth_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_OWNER
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.errors import (
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from tests.integration.auth.client import Client


async def create(auth: Client, user: auth_pb2.User, **fields: object) -> pb.CreateApiKeyResponse:
    request = {"user_id": user.id, "project_id": user.personal_project_id, "name": "key"} | fields
    response: pb.CreateApiKeyResponse = await auth.call(pb.CreateApiKeyRequest(**request))
    return response


async def verify(auth: Client, secret: str) -> pb.VerifyApiKeyResponse:
    response: pb.VerifyApiKeyResponse = await auth.call(pb.VerifyApiKeyRequest(secret=secret))
    return response


async def test_a_key_stands_for_its_owner_in_its_project(auth: Client, ada: auth_pb2.User, rows: AsyncEngine) -> None:
    made = await create(auth, ada, scopes=["read"])
    holder = await verify(auth, made.secret)
    assert (holder.user_id, holder.project_id, holder.role) == (ada.id, ada.personal_project_id, ROLE_OWNER)
    assert (holder.api_key_id, list(holder.scopes)) == (made.api_key.id, ["read"])
    assert made.secret.startswith(made.api_key.prefix)
    assert made.secret.startswith("hr_")
    async with rows.connect() as connection:
        stored = await connection.exec_driver_sql("SELECT k::text FROM auth.api_keys k")
        assert made.secret not in " ".join(stored.scalars())


async def test_a_repeated_create_gives_the_same_secret(auth: Client, ada: auth_pb2.User) -> None:
    first = await create(auth, ada, request_id="r", scopes=["write", "read"])
    again = await create(auth, ada, request_id="r", scopes=["read", "write"])
    assert (again.secret, again.api_key.id) == (first.secret, first.api_key.id)
    with pytest.raises(IdempotencyKeyReusedError):
        await create(auth, ada, request_id="r", name="another")
    assert (await create(auth, ada)).secret != (await create(auth, ada)).secret


async def test_last_use_is_noted_to_the_minute(auth: Client, ada: auth_pb2.User, rows: AsyncEngine) -> None:
    made = await create(auth, ada)
    who = {"user_id": ada.id, "project_id": ada.personal_project_id}

    async def last_used() -> datetime | None:
        (key,) = (await auth.call(pb.ListApiKeysRequest(**who))).api_keys
        return key.last_used_at.ToDatetime(tzinfo=UTC) if key.HasField("last_used_at") else None

    assert await last_used() is None
    await verify(auth, made.secret)
    noted = await last_used()
    assert noted is not None
    await verify(auth, made.secret)
    assert await last_used() == noted
    async with rows.begin() as connection:
        await connection.exec_driver_sql("UPDATE auth.api_keys SET last_used_at = last_used_at - interval '61 s'")
    await verify(auth, made.secret)
    later = await last_used()
    assert later is not None
    assert later > noted


async def test_deleted_expired_and_invented_keys_are_refused_alike(
    auth: Client, ada: auth_pb2.User, rows: AsyncEngine
) -> None:
    deleted, expired = (
        await create(auth, ada),
        await create(auth, ada, expires_at=datetime.now(UTC) + timedelta(days=1)),
    )
    who = {"user_id": ada.id, "project_id": ada.personal_project_id}
    await auth.call(pb.DeleteApiKeyRequest(**who, api_key_id=deleted.api_key.id))
    with pytest.raises(NotFoundError):
        await auth.call(pb.DeleteApiKeyRequest(**who, api_key_id=deleted.api_key.id))
    assert (await verify(auth, expired.secret)).HasField("expires_at")
    async with rows.begin() as connection:
        await connection.exec_driver_sql("UPDATE auth.api_keys SET expires_at = now() WHERE expires_at IS NOT NULL")
    told = set()
    for secret in (deleted.secret, expired.secret, "hr_" + "A" * 43, "", "hr_", "💥" * 46, "x" * 1_000_000):
        with pytest.raises(UnauthenticatedError) as refused:
            await verify(auth, secret)
        told.add((refused.value.reason, refused.value.message))
    assert len(told) == 1
    assert told.pop()[0] == "INVALID_API_KEY"


async def test_a_key_follows_the_membership_of_its_owner(auth: Client, ada: auth_pb2.User) -> None:
    bob, project = await auth.register(), await auth.project(ada)
    await auth.put_member(ada, project, bob, ROLE_EDITOR)
    with pytest.raises(PermissionDeniedError):
        await create(auth, bob, project_id=project.id)
    await auth.put_member(ada, project, bob, ROLE_ADMIN)
    made = await create(auth, bob, project_id=project.id)
    await auth.put_member(ada, project, bob, ROLE_EDITOR)
    assert (await verify(auth, made.secret)).role == ROLE_EDITOR
    await auth.call(pb.DeleteMemberRequest(user_id=ada.id, project_id=project.id, member_user_id=bob.id))
    await auth.put_member(ada, project, bob, ROLE_EDITOR)
    with pytest.raises(UnauthenticatedError):  # coming back does not bring the key back
        await verify(auth, made.secret)


async def test_keys_of_others_cannot_be_seen_or_deleted(auth: Client, ada: auth_pb2.User) -> None:
    bob, project = await auth.register(), await auth.project(ada)
    await auth.put_member(ada, project, bob, ROLE_ADMIN)
    made = await create(auth, ada, project_id=project.id)
    assert not (await auth.call(pb.ListApiKeysRequest(user_id=bob.id, project_id=project.id))).api_keys
    with pytest.raises(NotFoundError):
        await auth.call(pb.DeleteApiKeyRequest(user_id=bob.id, project_id=project.id, api_key_id=made.api_key.id))


async def test_everything_wrong_with_a_key_is_told_at_once(auth: Client, ada: auth_pb2.User) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await create(auth, ada, name=" ", scopes=["admin"], expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert {item.code for item in refused.value.violations} == {"REQUIRED", "UNKNOWN_SCOPE", "IN_THE_PAST"}
