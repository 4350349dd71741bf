"""What counts as one place on the network when tries are counted."""

import ipaddress


def network_of(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one, as whoever has one address there has them all."""
    try:
        parsed = ipaddress.ip_address(address.strip())
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))
    return str(parsed)
