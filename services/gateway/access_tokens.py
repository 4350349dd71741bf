"""Access tokens, checked without a call: EdDSA-signed JWTs (RFC 9068) under the public keys that auth publishes."""

import asyncio
import base64
import binascii
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.kit.errors import DomainError, UnauthenticatedError, UnavailableError

log = structlog.get_logger(__name__)

MAX_TOKEN_BYTES = 4096
MAX_LIFETIME_SECONDS = 15 * 60
CLOCK_SKEW_SECONDS = 5
"""How far the clocks of auth and gateway may be apart."""

_ALGORITHM = "EdDSA"
_TYPE = "at+jwt"
_HEADER_FIELDS = {"alg", "kid", "typ"}
_REQUIRED_CLAIMS = ["iss", "aud", "sub", "jti", "iat", "nbf", "exp", "pid"]
_CACHE_SIZE = 10_000
_REFRESH_SECONDS = 300.0
"""Keys that auth no longer publishes are forgotten after this time."""
_MIN_REFRESH_SECONDS = 5.0
"""Tokens with made-up key ids cause one call in this time, not one each."""

FetchKeys = Callable[[], Awaitable[bytes]]
"""Returns auth's JSON Web Key Set as text. Raises DomainError."""


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a valid token says."""

    user_id: str
    personal_project_id: str
    expires_at: int
    """Unix seconds."""


class KeySet:
    """Auth's public keys by id; re-read every five minutes, and when a token names an unknown one."""

    def __init__(self, fetch: FetchKeys) -> None:
        self._fetch = fetch
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._loaded_at: float | None = None
        self._tried_at = float("-inf")
        self._loading = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self.document = b""
        """The set as auth published it, for /.well-known/jwks.json; empty before it was read once."""

    async def key(self, key_id: str) -> Ed25519PublicKey | None:
        """The key of that id, None when there is none. Raises UnavailableError while no set could be read at all."""
        if key_id not in self._keys or self._loaded_at is None:
            await self.refresh()
        elif time.monotonic() - self._loaded_at > _REFRESH_SECONDS and not self._loading.locked():
            # Beside the request: while auth is slow or away, the keys at hand are good.
            self._refreshing = asyncio.create_task(self.refresh())
        return self._keys.get(key_id)

    async def refresh(self) -> None:
        """Read the keys anew, unless that was tried just now. Raises UnavailableError when there never were any."""
        async with self._loading:
            if time.monotonic() - self._tried_at >= (_MIN_REFRESH_SECONDS if self._loaded_at else 0.2):
                self._tried_at = time.monotonic()
                try:
                    document = await self._fetch()
                    self._keys = _read_keys(document)
                    self.document = document
                    self._loaded_at = time.monotonic()
                except DomainError as error:
                    log.warning("keys_not_read", reason=error.reason, message=error.message)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    log.error("keys_malformed", error=repr(error))
        if self._loaded_at is None:
            raise UnavailableError("Access tokens cannot be checked at the moment. Try again shortly.", retry_after=1.0)


class AccessTokens:
    """Verifies access tokens. A verified token is remembered by its hash until it expires."""

    def __init__(self, keys: KeySet, *, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._verified: OrderedDict[bytes, AccessClaims] = OrderedDict()

    async def verify(self, token: str) -> AccessClaims:
        """What a token says. Raises UnauthenticatedError; the reason is INVALID_TOKEN or TOKEN_EXPIRED."""
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            _refuse("it is too long or holds odd characters")
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(digest)
        if claims is not None:
            if claims.expires_at > time.time():
                return claims
            del self._verified[digest]
        claims = await self._check(token)
        self._verified[digest] = claims
        if len(self._verified) > _CACHE_SIZE:
            self._verified.popitem(last=False)
        return claims

    async def _check(self, token: str) -> AccessClaims:
        header = _header(token)
        # Names of keys elsewhere (jku, x5u, jwk, x5c), compression and critical extensions are all in this refusal.
        if header.keys() != _HEADER_FIELDS or header["alg"] != _ALGORITHM or header["typ"] != _TYPE:
            _refuse("its header is not that of an access token")
        key_id = header["kid"]
        if not isinstance(key_id, str) or not 0 < len(key_id) <= 128:
            _refuse("its key id is malformed")
        key = await self._keys.key(key_id)
        if key is None:
            _refuse("it is signed by an unknown key")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": _REQUIRED_CLAIMS, "strict_aud": True},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("The access token has expired. Refresh it.", reason="TOKEN_EXPIRED") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            # What PyJWT lets slip on malformed claims is no server error either.
            log.info("token_refused", error=type(error).__name__)
            _refuse("its signature or claims are wrong")
        return _claims(claims)


def _claims(claims: dict[str, Any]) -> AccessClaims:
    issued, starts, expires = claims["iat"], claims["nbf"], claims["exp"]
    if any(type(moment) is not int for moment in (issued, starts, expires)):
        _refuse("its times are not whole numbers")
    if not 0 < expires - issued <= MAX_LIFETIME_SECONDS + CLOCK_SKEW_SECONDS:
        _refuse("it lives too long")
    if not isinstance(claims["jti"], str) or not claims["jti"]:
        _refuse("its id is malformed")
    return AccessClaims(user_id=_uuid(claims["sub"]), personal_project_id=_uuid(claims["pid"]), expires_at=expires)


def _uuid(value: Any) -> str:
    try:
        return str(UUID(value)) if isinstance(value, str) else _refuse("an id in it is malformed")
    except ValueError:
        _refuse("an id in it is malformed")


def _header(token: str) -> dict[str, Any]:
    segment, *others = token.split(".")
    if len(others) != 2:
        _refuse("it is not a signed JWT")
    try:
        header = orjson.loads(base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        _refuse("its header cannot be read")
    if not isinstance(header, dict):
        _refuse("its header cannot be read")
    return header


def _read_keys(document: bytes) -> dict[str, Ed25519PublicKey]:
    """Ed25519 keys for signatures (RFC 8037); other kinds are passed over."""
    keys = {}
    for entry in orjson.loads(document)["keys"]:
        if (entry.get("kty"), entry.get("crv")) == ("OKP", "Ed25519") and entry.get("use", "sig") == "sig":
            public = base64.urlsafe_b64decode(entry["x"] + "=" * (-len(entry["x"]) % 4))
            keys[str(entry["kid"])] = Ed25519PublicKey.from_public_bytes(public)
    return keys


def _refuse(why: str) -> NoReturn:
    raise UnauthenticatedError(f"The access token is not valid: {why}.", reason="INVALID_TOKEN")
