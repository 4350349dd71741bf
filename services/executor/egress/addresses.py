"""Which IP addresses are public.

Python's `ipaddress.is_global` and `is_private` are not enough: both let IPv4-compatible, NAT64, 6to4, site-local and
multicast addresses and some cloud metadata servers through. So this is a list of what is allowed, minus exceptions.
Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries; the cloud vendors' metadata addresses.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_V4_REFUSED = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is Alibaba's metadata server
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the usual metadata server
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata server
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_V6_GLOBAL = IPv6Network("2000::/3")
_V6_REFUSED = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, among them Teredo, which embeds IPv4 addresses
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, embeds IPv4 addresses
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the former 6bone
        "3fff::/20",  # documentation
    )
)
# RFC 5214: interface identifiers that embed an IPv4 address (ISATAP).
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


def is_address(text: str) -> bool:
    """Whether the text is an IP address rather than a name."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_public(address: str | IPv4Address | IPv6Address) -> bool:
    """Whether anyone may be connected to this address. False for what is no address at all."""
    try:
        parsed = ip_address(address) if isinstance(address, str) else address
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _V4_REFUSED)
    return (
        parsed.scope_id is None
        and parsed in _V6_GLOBAL
        and (int(parsed) >> 32) & 0xFFFF_FFFF not in _ISATAP
        and not any(parsed in network for network in _V6_REFUSED)
    )
