"""Which URLs, hosts and ports may be named, before anything is resolved.

The rules are stricter than RFC 3986: every spelling of a host that two parsers could read differently is refused
rather than repaired.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote

import idna

from services.executor.egress.addresses import is_address, is_public
from services.executor.egress.errors import EgressError

MAX_URL_LENGTH = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
_SPLIT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL | re.ASCII)
# Names of the machine or its network, whatever they resolve to.
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".onion", ".arpa")
# What may stand unescaped in a path and a query (RFC 3986 §3.3, §3.4); a percent sign is the author's own escape.
_PATH_SAFE = "/:@!$&'()*+,;=-._~%"
_QUERY_SAFE = _PATH_SAFE + "?"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host as it is written in a URL (lower case, IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Url:
    """A URL that may be requested, taken apart. `target` is path and query, ASCII, for the request line."""

    scheme: str
    place: HostPort
    target: str
    operator_allowed: bool
    """The operator lists exactly this host and port: its addresses are not checked."""

    @property
    def origin(self) -> tuple[str, HostPort]:
        """What two URLs share that may see each other's secrets."""
        return self.scheme, self.place

    @property
    def host_header(self) -> str:
        """RFC 9110 §7.2: the port only where it is not the scheme's own."""
        if self.place.port == _DEFAULT_PORTS[self.scheme]:
            return str(self.place).rpartition(":")[0]
        return str(self.place)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.target}"


class Rules:
    """The operator's lists, applied to what users name.

    `allow` are the only private or unusual places that may be reached, by exactly that host and port. `deny` are never
    reached, by name or by address, even when allowed (the platform's own database).
    """

    def __init__(self, allow: Iterable[HostPort] = (), deny: Iterable[HostPort] = ()) -> None:
        self._allow = frozenset(allow)
        self.deny = frozenset(deny)

    def parse_url(self, text: str) -> Url:
        """Take a URL apart. Raises EgressError with reason INVALID_URL, URL_NOT_ALLOWED or HOST_NOT_ALLOWED."""
        if len(text) > MAX_URL_LENGTH:
            raise EgressError("INVALID_URL", f"The URL has {len(text)} characters; the limit is {MAX_URL_LENGTH}.")
        if bad := _FORBIDDEN.search(text):
            raise EgressError(
                "INVALID_URL",
                f"The URL holds the character {bad.group()!r} at position {bad.start()}. "
                "Remove spaces, line breaks and backslashes, or percent-encode them.",
            )
        match = _SPLIT.fullmatch(text)
        if match is None:
            raise EgressError("INVALID_URL", "The URL must start with http:// or https:// and name a host.")
        scheme, authority, path, query = match.groups()
        scheme = scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise EgressError("URL_NOT_ALLOWED", f"The scheme {scheme[:32]!r} is not allowed. Use http or https.")
        place = self._authority(authority, _DEFAULT_PORTS[scheme])
        allowed = self.check_place(place)
        if not allowed and place.port not in _DEFAULT_PORTS.values():
            raise EgressError(
                "PORT_NOT_ALLOWED",
                f"Port {place.port} is not allowed; only 80 and 443 are. "
                f"The operator can allow it with HEADRACE_EGRESS_ALLOW={place}.",
            )
        target = quote(path or "/", safe=_PATH_SAFE)
        if query is not None:
            target += "?" + quote(query, safe=_QUERY_SAFE)
        return Url(scheme, place, target, allowed)

    def check_place(self, place: HostPort) -> bool:
        """Whether the operator lists it. Raises EgressError HOST_NOT_ALLOWED for hosts that nobody may name."""
        if place in self.deny:
            raise denied(place)
        if place in self._allow:
            return True
        host = place.host
        if is_address(host):
            if not is_public(host):
                raise not_public(place)
            return False
        if "." not in host or host.endswith(_LOCAL_SUFFIXES):
            raise EgressError(
                "HOST_NOT_ALLOWED",
                f"The host {host!r} is a name of a local network; only public hosts are allowed. "
                f"The operator can allow it with HEADRACE_EGRESS_ALLOW={place}.",
            )
        return False

    def _authority(self, authority: str, default_port: int) -> HostPort:
        if "@" in authority:
            raise EgressError(
                "URL_NOT_ALLOWED", "The URL holds a user name or password. Use the node's `credential` instead."
            )
        if "%" in authority:
            raise EgressError("INVALID_URL", "The host holds a percent sign. Write the host in plain letters.")
        if authority.startswith("["):
            literal, bracket, rest = authority[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise EgressError("INVALID_URL", "The IPv6 address in the URL has no closing bracket.")
            return HostPort(_ipv6(literal), _port(rest, default_port))
        host, colon, port = authority.partition(":")
        return HostPort(normal_host(host), _port(colon + port, default_port))


def not_public(place: HostPort) -> EgressError:
    """What a place with a private address is refused with. The address of a name stays unsaid: it would tell strangers
    about the network inside.
    """
    return EgressError(
        "ADDRESS_NOT_ALLOWED",
        f"The host {place.host!r} has an address that is not public; only public addresses are allowed. "
        f"The operator can allow it with HEADRACE_EGRESS_ALLOW={place}.",
    )


def denied(place: HostPort) -> EgressError:
    """What a place on the operator's deny list is refused with."""
    return EgressError("HOST_NOT_ALLOWED", f"The operator of this platform does not allow connections to {place}.")


def normal_host(host: str) -> str:
    """A host name in its one ASCII spelling, or a canonical IPv4 address. Raises EgressError INVALID_URL."""
    name = host
    if not host.isascii():
        try:
            name = idna.encode(host, uts46=True, transitional=False).decode()
        except (idna.IDNAError, UnicodeError) as error:
            raise EgressError("INVALID_URL", f"The host {host[:64]!r} is not a valid international name.") from error
    name = name.lower()
    labels = name.split(".")
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise EgressError("INVALID_URL", f"The host {host[:64]!r} is not a valid host name (no trailing dot either).")
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        # Other parsers read 127.1, 0177.0.0.1, 0x7f.1 and 2130706433 as addresses; here only four decimals are one.
        if not host.isascii():
            raise EgressError("INVALID_URL", f"The host {host[:64]!r} hides an address.")
        return _ipv4(name)
    return name


def _ipv4(text: str) -> str:
    try:
        canonical = str(IPv4Address(text))
    except AddressValueError:
        canonical = ""
    if canonical != text:
        raise EgressError("INVALID_URL", f"The host {text[:64]!r} is not an IPv4 address of four decimal numbers.")
    return canonical


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError as error:
        raise EgressError("INVALID_URL", f"{text[:64]!r} is not an IPv6 address.") from error
    if address.scope_id is not None:
        raise EgressError("INVALID_URL", "An IPv6 address with a zone is not allowed.")
    return str(address)


def _port(text: str, default: int) -> int:
    if not text:
        return default
    digits = text[1:]
    if not re.fullmatch(r"[1-9][0-9]{0,4}", digits, re.ASCII) or int(digits) > 65535:
        raise EgressError("INVALID_URL", f"The port {digits[:16]!r} is not a number from 1 to 65535.")
    return int(digits)


def parse_host_ports(text: str) -> frozenset[HostPort]:
    """Read a list such as `127.0.0.1:8080,[::1]:8080,receiver:9000`. Raises ValueError for what is no host:port."""
    places = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        host, colon, port = item.rpartition(":")
        try:
            if not colon or not host:
                raise EgressError("INVALID_URL", "no port")
            name = _ipv6(host[1:-1]) if host.startswith("[") and host.endswith("]") else normal_host(host)
            places.add(HostPort(name, _port(":" + port, 0)))
        except EgressError as error:
            raise ValueError(f"{item!r} is not host:port, such as 127.0.0.1:8080 or [::1]:8080") from error
    return frozenset(places)
