"""Ids: time-ordered random ones, and ones derived from an idempotency key."""

import hashlib
import os
import time
from functools import lru_cache
from uuid import UUID

from services.kit.errors import IdempotencyKeyReusedError, NotFoundError

# Namespace for derived ids; any fixed random UUID serves.
_NAMESPACE = UUID("5f0c8a52-0d3c-4c0e-9a55-3d1a7a0b7f11").bytes


known_id = lru_cache(maxsize=4096)(UUID)
"""The UUID of a text, for texts that come again and again: to read one costs ten times as much as to find it."""


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, the rest random. Ids sort by time to the millisecond."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def derived_text(scope: UUID | str, kind: str, request_id: str) -> str:
    """The id, as text, of what a create call with this idempotency key makes: the same for each repetition of the call.

    A UUIDv5 (RFC 9562 §5.5).

    `scope` is the project (or user) whose key it is, so that no one meets another's things; `kind` names the resource.
    """
    # uuid.uuid5 without its detours, which cost many times as much; every claimed node execution takes one.
    name = f"{scope}\x00{kind}\x00{request_id}".encode()
    digits = hashlib.sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def derived_id(scope: UUID | str, kind: str, request_id: str) -> UUID:
    """`derived_text` as a UUID."""
    return UUID(derived_text(scope, kind, request_id))


def id_for_create(scope: UUID | str, kind: str, request_id: str) -> UUID:
    """A derived id when there is an idempotency key, else a new one."""
    return derived_id(scope, kind, request_id) if request_id else new_id()


def request_hash(*parts: bytes | str) -> bytes:
    """SHA-256 over the content of a create call, each part with its length, to tell a repetition from a reuse."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def require_same_request(stored: bytes | None, offered: bytes) -> None:
    """Raise IdempotencyKeyReusedError unless the stored hash is that of the offered request."""
    if stored != offered:
        raise IdempotencyKeyReusedError


def parse_id(text: str, *, resource: str) -> UUID:
    """The UUID in `text`; NotFoundError with reason `<RESOURCE>_NOT_FOUND` when it is none.

    A malformed id names nothing that exists, so callers need not tell the two apart. Only the canonical form with
    hyphens is an id: other spellings would be second names for the same thing.
    """
    try:
        value = UUID(text)
    except ValueError:
        value = None
    if value is None or str(value) != text.lower():
        raise NotFoundError(
            f"There is no {resource.replace('_', ' ')} with the id {text[:64]!r}.",
            reason=f"{resource.upper()}_NOT_FOUND",
        )
    return value
