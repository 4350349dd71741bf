"""Refresh tokens, access tokens and throttling."""

from __future__ import annotations

import asyncio
import json
import uuid

import jwt
import pytest
from headrace.auth.v1 import auth_pb2
from headrace.auth.v1 import auth_service_pb2 as pb
from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth.domain.sessions import GRACE_SECONDS
from services.auth.storage.postgres import PostgresStore
from services.kit.errors import ResourceExhaustedError, UnauthenticatedError
from tests.integration.auth.client import Client, new_email
from tests.support.waiting import await_until


async def pass_time(rows: AsyncEngine, user: auth_pb2.User, seconds: float) -> None:
    """Make everything about a user's sessions older."""
    async with rows.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE auth.refresh_families SET rotated_at = rotated_at - make_interval(secs => $1), "
            "idle_expires_at = idle_expires_at - make_interval(secs => $1), "
            "expires_at = expires_at - make_interval(secs => $1) WHERE user_id = CAST($2 AS text)::uuid",
            (seconds, user.id),
        )


async def assert_invalid(auth: Client, token: str) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        await auth.refresh(token)
    assert refused.value.reason == "INVALID_REFRESH_TOKEN"


async def test_an_access_token_verifies_with_the_published_keys(auth: Client, ada: auth_pb2.User) -> None:
    tokens = await auth.login(ada.email)
    jwks = json.loads((await auth.call(pb.GetJwksRequest())).jwks.utf8)
    header = jwt.get_unverified_header(tokens.access_token)
    (jwk,) = [each for each in jwks["keys"] if each["kid"] == header["kid"]]
    assert (header["typ"], header["alg"], jwk["use"], "d" in jwk) == ("at+jwt", "EdDSA", "sig", False)
    claims = jwt.decode(
        tokens.access_token,
        jwt.PyJWK(jwk).key,
        algorithms=["EdDSA"],
        audience="headrace",
        issuer="headrace",
        options={"require": ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"]},
    )
    assert (claims["sub"], claims["pid"]) == (ada.id, ada.personal_project_id)
    assert claims["exp"] - claims["iat"] == tokens.expires_in_seconds == 900


async def test_a_refresh_token_works_once_and_its_successor_next(auth: Client, ada: auth_pb2.User) -> None:
    first = await auth.login(ada.email)
    second = await auth.refresh(first.refresh_token)
    third = await auth.refresh(second.refresh_token)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3


async def test_a_token_used_again_after_the_grace_ends_the_family(
    auth: Client, ada: auth_pb2.User, rows: AsyncEngine
) -> None:
    first, other = await auth.login(ada.email), await auth.login(ada.email)
    second = await auth.refresh(first.refresh_token)
    await pass_time(rows, ada, GRACE_SECONDS + 1)
    await assert_invalid(auth, first.refresh_token)
    await assert_invalid(auth, second.refresh_token)
    assert (await auth.refresh(other.refresh_token)).access_token  # another login is another family


async def test_a_token_two_steps_back_ends_the_family_at_once(auth: Client, ada: auth_pb2.User) -> None:
    first = await auth.login(ada.email)
    second = await auth.refresh(first.refresh_token)
    third = await auth.refresh(second.refresh_token)
    await assert_invalid(auth, first.refresh_token)
    await assert_invalid(auth, third.refresh_token)


async def test_a_lost_reply_is_no_logout(auth: Client, ada: auth_pb2.User) -> None:
    first = await auth.login(ada.email)
    lost = await auth.refresh(first.refresh_token)
    again = await auth.refresh(first.refresh_token)
    assert again.refresh_token == lost.refresh_token
    assert (await auth.refresh(again.refresh_token)).access_token


async def test_refreshes_at_once_get_one_successor(auth: Client, ada: auth_pb2.User) -> None:
    token = (await auth.login(ada.email)).refresh_token
    for _ in range(5):
        pairs = await asyncio.gather(*(auth.refresh(token) for _ in range(4)))
        (token,) = {pair.refresh_token for pair in pairs}


async def test_a_family_ends_when_idle_and_in_the_end(auth: Client, ada: auth_pb2.User, rows: AsyncEngine) -> None:
    day = 86400.0
    token = (await auth.login(ada.email)).refresh_token
    for _ in range(2):
        await pass_time(rows, ada, 13 * day)
        token = (await auth.refresh(token)).refresh_token
    await pass_time(rows, ada, 5 * day)  # not idle, but 31 days old
    await assert_invalid(auth, token)
    idle = (await auth.login(ada.email)).refresh_token
    await pass_time(rows, ada, 15 * day)
    await assert_invalid(auth, idle)


async def test_logout_ends_the_family_by_any_of_its_tokens(auth: Client, ada: auth_pb2.User) -> None:
    first = await auth.login(ada.email)
    second = await auth.refresh(first.refresh_token)
    for _ in range(2):
        await auth.call(pb.LogoutRequest(refresh_token=first.refresh_token))
    await assert_invalid(auth, second.refresh_token)


async def test_forged_refresh_tokens_are_refused_and_end_nothing(auth: Client, ada: auth_pb2.User) -> None:
    token = (await auth.login(ada.email)).refresh_token
    place = len(token) // 2
    forged = [
        "",
        "hrt_",
        "hrt_💥",
        "hrt_" + "A" * 91,
        "x" * 1_000_000,
        token[4:],
        token[:-5],
        token + "AAAA",
        token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :],
    ]
    for text in forged:
        await assert_invalid(auth, text)
        await auth.call(pb.LogoutRequest(refresh_token=text))
    assert (await auth.refresh(token)).access_token


async def test_nothing_stored_is_a_token(auth: Client, ada: auth_pb2.User, rows: AsyncEngine) -> None:
    token = (await auth.login(ada.email)).refresh_token
    async with rows.connect() as connection:
        families = await connection.exec_driver_sql("SELECT f::text FROM auth.refresh_families f")
        text = " ".join(families.scalars())
    assert token not in text


async def test_guessing_is_slowed_and_the_password_still_works_from_elsewhere(auth: Client, ada: auth_pb2.User) -> None:
    refused: list[ResourceExhaustedError] = []
    for _ in range(15):
        try:
            await auth.login(ada.email, "a wrong guess", address="203.0.113.9")
        except UnauthenticatedError:
            assert not refused, "a try was let through after one was refused"
        except ResourceExhaustedError as error:
            refused.append(error)
    assert len(refused) == 5
    assert refused[0].reason == "TOO_MANY_ATTEMPTS"
    assert all(0 < (each.retry_after or 0) <= 10 for each in refused)  # waiting does not grow with impatience
    with pytest.raises(ResourceExhaustedError):
        await auth.login(ada.email, address="203.0.113.9")
    assert (await auth.login(ada.email, address="198.51.100.7")).access_token


async def test_unknown_accounts_are_throttled_like_known_ones(auth: Client) -> None:
    email = new_email()
    for _ in range(10):
        with pytest.raises(UnauthenticatedError):
            await auth.login(email, address="203.0.113.10")
    with pytest.raises(ResourceExhaustedError):
        await auth.login(email, address="203.0.113.10")


async def test_tries_are_earned_back(auth: Client, ada: auth_pb2.User, rows: AsyncEngine) -> None:
    for _ in range(10):
        with pytest.raises(UnauthenticatedError):
            await auth.login(ada.email, "a wrong guess", address="203.0.113.11")
    with pytest.raises(ResourceExhaustedError):
        await auth.login(ada.email, address="203.0.113.11")
    async with rows.begin() as connection:
        await connection.exec_driver_sql(
            "UPDATE auth.login_throttles SET busy_until = busy_until - interval '11 seconds'"
        )
    assert (await auth.login(ada.email, address="203.0.113.11")).access_token
    # And a success forgives the errors before it.
    for _ in range(10):
        with pytest.raises(UnauthenticatedError):
            await auth.login(ada.email, "a wrong guess", address="203.0.113.11")


async def test_successful_logins_are_not_throttled(auth: Client, ada: auth_pb2.User) -> None:
    for _ in range(15):
        assert (await auth.login(ada.email, address="203.0.113.12")).access_token


async def test_an_ipv6_client_is_its_network(auth: Client, ada: auth_pb2.User) -> None:
    for number in range(10):
        with pytest.raises(UnauthenticatedError):
            await auth.login(ada.email, "a wrong guess", address=f"2001:db8::{number:x}")
    with pytest.raises(ResourceExhaustedError):
        await auth.login(ada.email, address="2001:db8::ffff")


async def test_a_login_under_way_while_the_password_changes_starts_no_session(
    auth: Client, ada: auth_pb2.User, rows: AsyncEngine
) -> None:
    store, user_id = PostgresStore(rows), uuid.UUID(ada.id)

    async def start(password_hash: str) -> bool:
        async with store.transaction() as transaction:
            return await transaction.insert_family(
                family_id=uuid.uuid4(),
                user_id=user_id,
                seed=b"s" * 32,
                password_hash=password_hash,
                idle_days=1,
                days=1,
            )

    async def is_waiting() -> bool:
        async with rows.connect() as connection:
            result = await connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return bool(result.scalar_one())

    async with store.transaction() as transaction:
        account = await transaction.account(user_id)
        assert account is not None
        await transaction.replace_password(user_id, seen=account.password_hash, new="another")
        login = asyncio.create_task(start(account.password_hash))
        await await_until(is_waiting)
    assert not await login
    assert await start("another")
