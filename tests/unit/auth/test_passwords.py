"""Hashing off the event loop: bounded, and the same work whoever asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import bcrypt
import pytest

from services.auth.domain.passwords import Passwords, password_violations
from services.kit.errors import ResourceExhaustedError


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(pepper_key=b"k" * 32, cost=4, threads=1, queue_limit=2)
    yield made
    made.close()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """What bcrypt is asked to check, in order; it still does."""
    seen: list[tuple[bytes, bytes]] = []
    real = bcrypt.checkpw

    def checkpw(password: bytes, stored: bytes) -> bool:
        seen.append((password, stored))
        return real(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return seen


async def test_an_unknown_user_costs_the_same_hash(passwords: Passwords, checks: list[tuple[bytes, bytes]]) -> None:
    stored = await passwords.hash("a good password")
    assert await passwords.matches("a good password", stored)
    assert not await passwords.matches("a good password", None)
    assert not await passwords.matches("x" * 1_000_000, stored)
    costs = {(len(password), target[:7], len(target)) for password, target in checks}
    assert costs == {(64, b"$2b$04$", 60)}
    assert len(checks) == 3


async def test_the_pepper_is_part_of_the_hash(passwords: Passwords) -> None:
    other = Passwords(pepper_key=b"o" * 32, cost=4)
    assert not await other.matches("a good password", await passwords.hash("a good password"))
    other.close()


@pytest.mark.parametrize("damaged", ["", "v1$", "v1$$2b$04$short", "v2$" + "$2b$04$" + "." * 53, "💥", "v1$\x00"])
async def test_a_damaged_hash_matches_nothing(passwords: Passwords, damaged: str) -> None:
    assert not await passwords.matches("a good password", damaged)


async def test_a_hash_of_another_cost_is_outdated(passwords: Passwords) -> None:
    costlier = Passwords(pepper_key=b"k" * 32, cost=5)
    stored = await costlier.hash("a good password")
    assert await passwords.matches("a good password", stored)
    assert passwords.is_outdated(stored)
    assert not costlier.is_outdated(stored)
    costlier.close()


async def test_the_queue_is_bounded_and_the_loop_stays_free(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()

    def hashpw(password: bytes, salt: bytes) -> bytes:
        held.wait(10)
        return b"hash"

    monkeypatch.setattr(bcrypt, "hashpw", hashpw)
    tasks = [asyncio.create_task(passwords.hash("a good password")) for _ in range(3)]  # one at work, two waiting
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError) as refused:
        await passwords.hash("a good password")
    assert refused.value.retry_after
    tasks[2].cancel()  # a caller who gives up makes room
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    tasks[2] = asyncio.create_task(passwords.hash("a good password"))
    await asyncio.sleep(0)
    held.set()
    assert await asyncio.gather(*tasks) == ["v1$hash"] * 3
    assert await passwords.hash("a good password") == "v1$hash"


def test_a_password_is_not_the_email() -> None:
    for password in ("Ada.Lovelace", "ada.lovelace@example.com"):
        (violation,) = password_violations(password, email="ada.lovelace@example.com", path="password")
        assert violation.code == "PASSWORD_TOO_COMMON"
    assert not password_violations("ada.lovelace.1843", email="ada.lovelace@example.com", path="password")
