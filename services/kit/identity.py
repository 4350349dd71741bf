"""Who calls a gRPC method: caller tokens between services, and grants for workers.

A caller token is `base64url(claims) . base64url(HMAC-SHA256)` under HEADRACE_INTERNAL_KEY, which services hold and
workers do not. A service mints its own, unbound. The executor mints grants for workers: bound to one project and one
run, ending soon after the claim. `grpc_server` verifies every call.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from services.kit.errors import UnauthenticatedError

TokenSource = Callable[[], str]
"""Gives the token to put on the next call."""

_SERVICE_TOKEN_SECONDS = 300
_CACHE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller. `project_id` is set for grants only: such a caller may act in that project alone."""

    service: str
    project_id: str | None
    run_id: str | None
    expires_at: float
    """Unix seconds."""

    @property
    def is_grant(self) -> bool:
        """Bound to one project."""
        return self.project_id is not None


class CallerTokens:
    """Mints caller tokens under one key (at least 32 bytes), and verifies those under it and under `accepted`."""

    def __init__(self, key: bytes, *accepted: bytes) -> None:
        if any(len(each) < 32 for each in (key, *accepted)):
            raise ValueError("internal keys must be at least 32 bytes, base64-encoded")
        self._keys = (key, *accepted)
        self._verified: OrderedDict[str, Caller] = OrderedDict()

    def mint(self, caller: Caller) -> str:
        """The token for a caller."""
        claims = {"s": caller.service, "p": caller.project_id, "r": caller.run_id, "e": caller.expires_at}
        body = base64.urlsafe_b64encode(orjson.dumps(claims))
        return f"{body.decode()}.{_signature(self._keys[0], body)}"

    def mint_grant(self, *, project_id: str, run_id: str, lifetime_seconds: float) -> str:
        """A worker's token for the claims of one run."""
        return self.mint(
            Caller(service="worker", project_id=project_id, run_id=run_id, expires_at=time.time() + lifetime_seconds)
        )

    def for_service(self, service: str) -> TokenSource:
        """Tokens for a service's own calls, minted afresh when half their life is over."""
        current, renew_at = "", 0.0

        def source() -> str:
            nonlocal current, renew_at
            now = time.time()
            if now >= renew_at:
                current = self.mint(
                    Caller(service=service, project_id=None, run_id=None, expires_at=now + _SERVICE_TOKEN_SECONDS)
                )
                renew_at = now + _SERVICE_TOKEN_SECONDS / 2
            return current

        return source

    def verify(self, token: str) -> Caller:
        """The caller that a token stands for. Raises UnauthenticatedError when it is forged, malformed or expired."""
        caller = self._verified.get(token)
        if caller is None:
            caller = self._parse(token)
            self._verified[token] = caller
            if len(self._verified) > _CACHE_SIZE:
                self._verified.popitem(last=False)
        if caller.expires_at < time.time():
            raise UnauthenticatedError("The caller token has expired.")
        return caller

    def _parse(self, token: str) -> Caller:
        body, _, signature = token.partition(".")
        wanted = (_signature(key, body.encode()).encode() for key in self._keys)
        if not any(hmac.compare_digest(each, signature.encode()) for each in wanted):
            raise UnauthenticatedError("The caller token is missing or not valid.")
        try:
            claims = orjson.loads(base64.urlsafe_b64decode(body))
        except (binascii.Error, orjson.JSONDecodeError) as error:
            raise UnauthenticatedError("The caller token is malformed.") from error
        return Caller(service=claims["s"], project_id=claims["p"], run_id=claims["r"], expires_at=float(claims["e"]))


def _signature(key: bytes, body: bytes) -> str:
    return base64.urlsafe_b64encode(hmac.digest(key, body, hashlib.sha256)).decode()
