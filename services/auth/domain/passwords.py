"""Passwords: what is accepted, and how they are hashed.

A stored hash is `v1$` and a bcrypt string over base64(HMAC-SHA384(pepper key, NFC of the password in UTF-8)). The
keyed pre-hash has three reasons: bcrypt reads 72 bytes and bcrypt 5 raises on more, a NUL would end what it reads, and
without the pepper a copy of the database cannot be attacked at all. The 64 characters of base64 are within bcrypt's
72.
"""

import asyncio
import base64
import functools
import hmac
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import bcrypt
import structlog

from services.kit.errors import ResourceExhaustedError, Violation

log = structlog.get_logger(__name__)

MIN_CHARACTERS = 8
MAX_CHARACTERS = 256
# No password within the limit is longer than this before it is composed; looked at first, composing costs time.
_MAX_RAW_CHARACTERS = 4 * MAX_CHARACTERS
_VERSION = "v1$"

T = TypeVar("T")


def password_violations(password: str, *, email: str, path: str) -> list[Violation]:
    """Everything that is wrong with a new password. Length counts, composition does not (ASVS 5, 6.2)."""
    if len(password) > _MAX_RAW_CHARACTERS or len(_composed(password)) > MAX_CHARACTERS:
        return [Violation("PASSWORD_TOO_LONG", f"must have at most {MAX_CHARACTERS} characters", path)]
    if len(_composed(password)) < MIN_CHARACTERS:
        return [Violation("PASSWORD_TOO_SHORT", f"must have at least {MIN_CHARACTERS} characters", path)]
    plain = password.casefold()
    if plain in _common_passwords() or plain in {email, email.partition("@")[0]} or len(set(plain)) == 1:
        return [Violation("PASSWORD_TOO_COMMON", "is one that is guessed first; choose another", path)]
    return []


class Passwords:
    """Hashes and checks passwords in threads of its own: one bcrypt of cost 12 takes about 0.3 s of a core.

    bcrypt lets go of the interpreter while it works. At most `queue_limit` wait beside those at work; beyond, callers
    are told to come back, because a queue that is longer only makes everyone time out.
    """

    def __init__(self, *, pepper_key: bytes, cost: int, threads: int | None = None, queue_limit: int = 32) -> None:
        self._key = pepper_key
        self._cost = cost
        self._threads = threads or max(1, (os.cpu_count() or 2) // 2)
        self._limit = self._threads + queue_limit
        self._under_way = 0
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="bcrypt")
        # Well-formed, of nobody's password: checking against it costs what any check costs.
        self._nobody = f"{_VERSION}$2b${cost:02d}${'.' * 53}"

    async def hash(self, password: str) -> str:
        """The hash to store. Raises ResourceExhaustedError when too many wait."""
        made = await self._in_pool(
            functools.partial(bcrypt.hashpw, self._prehash(password), bcrypt.gensalt(self._cost))
        )
        return _VERSION + made.decode()

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether it is the password of a stored hash. None, of an unknown user, takes as long and is False.

        Raises ResourceExhaustedError when too many wait.
        """
        possible = stored is not None and len(password) <= _MAX_RAW_CHARACTERS
        target = stored if stored is not None and possible else self._nobody
        try:
            equal = await self._in_pool(
                functools.partial(
                    bcrypt.checkpw,
                    self._prehash(password if possible else ""),
                    target.removeprefix(_VERSION).encode(),
                )
            )
        except ValueError:  # not a bcrypt string
            log.error("stored_password_hash_is_damaged")
            return False
        return equal and possible and target.startswith(_VERSION)

    def is_outdated(self, stored: str) -> bool:
        """The hash was made at another cost than is set now: hash the password anew when it is at hand."""
        return not stored.startswith(f"{_VERSION}$2b${self._cost:02d}$")

    def close(self) -> None:
        """Drop what waits, and the threads when they are done."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prehash(self, password: str) -> bytes:
        return base64.b64encode(hmac.digest(self._key, _composed(password).encode(), "sha384"))

    async def _in_pool(self, work: Callable[[], T]) -> T:
        if self._under_way >= self._limit:
            raise ResourceExhaustedError(
                "Too many passwords are being checked at the moment. Try again in a few seconds.",
                reason="TOO_MANY_LOGINS",
                retry_after=2.0,
            )
        self._under_way += 1
        loop = asyncio.get_running_loop()
        future: Future[T] = self._pool.submit(work)
        # Work that has begun goes on when its caller is gone, and counts until it is done.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        return await asyncio.wrap_future(future)

    def _done(self) -> None:
        self._under_way -= 1


def _composed(password: str) -> str:
    """One spelling for what looks the same (RFC 8265, OpaqueString): keyboards differ in how they write ä."""
    return unicodedata.normalize("NFC", password)


@functools.cache
def _common_passwords() -> frozenset[str]:
    return frozenset((Path(__file__).parent / "common_passwords.txt").read_text(encoding="utf-8").split())
