"""Registering, logging in and changing what a user is."""

from __future__ import annotations

import asyncio
import unicodedata

import pytest
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1 import auth_service_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.errors import (
    AlreadyExistsError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from tests.integration.auth.client import PASSWORD, Client, new_email


async def test_a_new_user_owns_a_personal_project(auth: Client) -> None:
    email = new_email()
    user = await auth.register(email=f"  {email.upper()} ", name=" Ada ")
    found = await auth.call(pb.GetUserRequest(user_id=user.id))
    assert (found.user.email, found.user.name) == (email, "Ada")
    assert [(each.id, each.role) for each in found.projects] == [(user.personal_project_id, auth_pb2.ROLE_OWNER)]


async def test_an_email_registers_once_however_it_is_written(auth: Client, ada: auth_pb2.User) -> None:
    with pytest.raises(AlreadyExistsError) as refused:
        await auth.register(email=ada.email.title())
    assert refused.value.reason == "EMAIL_TAKEN"


async def test_registering_at_once_makes_one_user_and_one_project(auth: Client, rows: AsyncEngine) -> None:
    email = new_email()
    results = await asyncio.gather(*(auth.register(email=email) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(each, auth_pb2.User) for each in results) == 1
    assert {type(each) for each in results} == {auth_pb2.User, AlreadyExistsError}
    async with rows.connect() as connection:
        orphans = await connection.exec_driver_sql(
            "SELECT count(*) FROM auth.projects WHERE id NOT IN (SELECT project_id FROM auth.memberships)"
        )
        assert orphans.scalar_one() == 0


async def test_a_repeated_registration_gives_the_same_user(auth: Client) -> None:
    fields = {"email": new_email(), "request_id": new_email()}
    users = await asyncio.gather(*(auth.register(**fields) for _ in range(3)))
    assert len({user.id for user in users}) == 1
    for other in ({"email": new_email()}, {"name": "Grace"}, {"password": "another good password"}):
        with pytest.raises(IdempotencyKeyReusedError):
            await auth.register(**fields | other)


async def test_everything_wrong_with_a_registration_is_told_at_once(auth: Client) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await auth.register(email="nobody", password="short", name="bell \x07")
    assert {(item.code, item.path) for item in refused.value.violations} == {
        ("INVALID_EMAIL", "email"),
        ("PASSWORD_TOO_SHORT", "password"),
        ("INVALID_CHARACTER", "name"),
    }


@pytest.mark.parametrize(
    "password",
    [
        "x" * 71 + "y",
        "x" * 72 + "y",
        "🔑🚪" * 32,
        "nul\x00inside",
        "e\u0301" * 200,
        "🔑" * 255 + "x",
        "  spaces count  ",
    ],
    ids=["72 bytes", "73 bytes", "64 emoji", "NUL", "200 decomposed", "256 characters", "spaces"],
)
async def test_every_character_of_a_password_counts(auth: Client, password: str) -> None:
    user = await auth.register(password=password)
    assert (await auth.login(user.email, password)).access_token
    for wrong in (password[:-1], password[:-1] + "z", password + "z"):
        with pytest.raises(UnauthenticatedError):
            await auth.login(user.email, wrong)


async def test_a_password_is_the_same_however_it_is_composed(auth: Client) -> None:
    user = await auth.register(password=unicodedata.normalize("NFC", "schöne grüße"))
    assert (await auth.login(user.email, unicodedata.normalize("NFD", "schöne grüße"))).access_token


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("1234567", "PASSWORD_TOO_SHORT"),
        ("🔑" * 257, "PASSWORD_TOO_LONG"),
        ("x" * 1_000_000, "PASSWORD_TOO_LONG"),
        ("Password123", "PASSWORD_TOO_COMMON"),
        ("zzzzzzzzzz", "PASSWORD_TOO_COMMON"),
    ],
    ids=["7 characters", "257 characters", "1 MB", "common", "one character"],
)
async def test_a_weak_password_is_refused(auth: Client, password: str, code: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await auth.register(password=password)
    assert refused.value.reason == "WEAK_PASSWORD"
    assert [item.code for item in refused.value.violations] == [code]
    assert password not in refused.value.message


async def test_wrong_password_and_unknown_user_look_the_same(auth: Client, ada: auth_pb2.User) -> None:
    told = []
    for email, password in (
        (ada.email, "not the password"),
        (ada.email, "x" * 1_000_000),
        (new_email(), PASSWORD),
        ("no e-mail at all", PASSWORD),
        ("", ""),
    ):
        with pytest.raises(UnauthenticatedError) as refused:
            await auth.login(email, password)
        told.append((refused.value.reason, refused.value.message))
    assert set(told) == {("INVALID_CREDENTIALS", "The e-mail or the password is wrong.")}


async def test_a_damaged_hash_refuses_the_login(auth: Client, ada: auth_pb2.User, rows: AsyncEngine) -> None:
    async with rows.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE auth.users SET password_hash = 'v1$nonsense' WHERE email = $1", (ada.email,)
        )
    with pytest.raises(UnauthenticatedError):
        await auth.login(ada.email)


async def test_a_new_password_needs_the_old_one_and_ends_all_sessions(auth: Client, ada: auth_pb2.User) -> None:
    tokens = await auth.login(ada.email)
    change = {"user_id": ada.id, "new_password": "the new password"}
    with pytest.raises(InvalidArgumentError):
        await auth.call(pb.UpdateUserRequest(**change))
    with pytest.raises(PermissionDeniedError) as refused:
        await auth.call(pb.UpdateUserRequest(**change, current_password="not it at all"))
    assert refused.value.reason == "INVALID_CREDENTIALS"
    await auth.call(pb.UpdateUserRequest(**change, current_password=PASSWORD))
    with pytest.raises(UnauthenticatedError):
        await auth.refresh(tokens.refresh_token)
    with pytest.raises(UnauthenticatedError):
        await auth.login(ada.email, PASSWORD)
    assert (await auth.login(ada.email, "the new password")).access_token


async def test_a_name_changes_alone(auth: Client, ada: auth_pb2.User) -> None:
    tokens = await auth.login(ada.email)
    changed = await auth.call(pb.UpdateUserRequest(user_id=ada.id, name="Countess"))
    assert changed.user.name == "Countess"
    assert (await auth.refresh(tokens.refresh_token)).access_token


async def test_an_unknown_user_is_not_found(auth: Client) -> None:
    for user_id in ("00000000-0000-7000-8000-000000000000", "nonsense", ""):
        with pytest.raises(NotFoundError) as refused:
            await auth.call(pb.GetUserRequest(user_id=user_id))
        assert refused.value.reason == "USER_NOT_FOUND"
