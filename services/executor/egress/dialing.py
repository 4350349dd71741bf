"""From a name to an open connection: resolve once, check every address, dial a checked one."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, TypeVar

from services.executor.egress.addresses import is_address, is_public
from services.executor.egress.errors import EgressError
from services.executor.egress.rules import HostPort, Rules, denied, not_public

CONNECT_SECONDS = 10.0
"""Longest wait for a connection, TLS included, per address."""
_MAX_ADDRESSES = 4

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""All addresses of a host name."""
ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Dialer:
    """Opens connections to places that the rules admit.

    A name is resolved once per connection and the address that was checked is the one that is dialled, so a name that
    answers differently the next time (DNS rebinding) gains nothing. One bad address among several refuses them all.
    """

    def __init__(self, rules: Rules, *, resolve: Resolve = resolve_by_system) -> None:
        self.rules = rules
        self._resolve = resolve

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """TLS that checks certificate and name against the system's authorities (or SSL_CERT_FILE)."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    async def addresses(self, place: HostPort, *, operator_allowed: bool) -> list[str]:
        """Addresses of a place, all checked; at most four. Raises EgressError."""
        addresses = await self._look_up(place)
        if self.rules.deny:
            await self._check_denied(place, addresses)
        if not operator_allowed and not all(map(is_public, addresses)):
            raise not_public(place)
        return addresses[:_MAX_ADDRESSES]

    async def connect(
        self, make: Callable[[], ProtocolT], place: HostPort, *, operator_allowed: bool, tls: bool
    ) -> tuple[asyncio.Transport, ProtocolT]:
        """An open connection. Raises EgressError: refused, unresolved, unreachable, or a certificate that is wrong."""
        addresses = await self.addresses(place, operator_allowed=operator_allowed)
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"ssl": self.tls, "server_hostname": place.host} if tls else {}
        failure: Exception | None = None
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await loop.create_connection(make, address, place.port, **options)
            except ssl.SSLCertVerificationError as error:
                raise EgressError(
                    "TLS_FAILED", f"The TLS certificate of {place} is not valid: {error.verify_message}."
                ) from error
            except (OSError, TimeoutError) as error:
                failure = error
        why = "no answer in time" if isinstance(failure, TimeoutError) else (getattr(failure, "strerror", None) or "")
        raise EgressError(
            "CONNECTION_FAILED", f"No connection to {place}{f': {why}' if why else ''}.", retryable=True
        ) from failure

    async def _look_up(self, place: HostPort) -> list[str]:
        if is_address(place.host):
            return [place.host]
        cause: Exception | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if addresses := await self._resolve(place.host, place.port):
                    return addresses
        except (OSError, TimeoutError, UnicodeError) as error:
            cause = error
        raise EgressError(
            "HOST_NOT_FOUND", f"The host {place.host!r} cannot be found. Check its spelling.", retryable=True
        ) from cause

    async def _check_denied(self, place: HostPort, addresses: list[str]) -> None:
        for banned in self.rules.deny:
            if banned.port != place.port:
                continue
            try:
                forbidden = await self._look_up(banned)
            except EgressError as error:
                # Closed when in doubt; the name is the operator's business.
                raise EgressError(
                    "CONNECTION_FAILED", f"Whether {place} may be reached cannot be checked now.", retryable=True
                ) from error
            if not {banned.host, *forbidden}.isdisjoint({place.host, *addresses}):
                raise denied(place)
