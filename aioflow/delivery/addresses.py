"""Which addresses are not on the public internet, each with the name of the rule that refuses it. No I/O.

The table is the special-purpose registries of IANA (RFC 6890 and its updates) and the addresses at which clouds answer
with their machines' credentials. What no row names and Python does not call global is refused as reserved, and so is
everything that carries another address inside (mapped, translated, tunnelled) unless that one is public.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

METADATA = (
    "169.254.169.254",  # AWS, Azure, Google Cloud and most others
    "169.254.170.2",  # AWS ECS
    "100.100.100.200",  # Alibaba Cloud
    "168.63.129.16",  # Azure's wire server: a public address that leads to the host
    "192.0.0.192",  # Oracle Cloud
    "fd00:ec2::254",  # AWS
    "fd20:ce::254",  # Google Cloud
)
"""Addresses of metadata services; some lie outside the networks below."""

V4: tuple[tuple[str, str], ...] = (
    ("unspecified", "0.0.0.0/8"),
    ("private", "10.0.0.0/8"),
    ("shared", "100.64.0.0/10"),
    ("loopback", "127.0.0.0/8"),
    ("link-local", "169.254.0.0/16"),
    ("private", "172.16.0.0/12"),
    ("reserved", "192.0.0.0/24"),
    ("documentation", "192.0.2.0/24"),
    ("tunnel", "192.88.99.0/24"),
    ("private", "192.168.0.0/16"),
    ("benchmarking", "198.18.0.0/15"),
    ("documentation", "198.51.100.0/24"),
    ("documentation", "203.0.113.0/24"),
    ("multicast", "224.0.0.0/4"),
    ("broadcast", "255.255.255.255/32"),
    ("reserved", "240.0.0.0/4"),
)
V6: tuple[tuple[str, str], ...] = (
    ("unspecified", "::/128"),
    ("loopback", "::1/128"),
    ("reserved", "::/96"),  # IPv4-compatible
    ("translated", "64:ff9b:1::/48"),  # NAT64 of somebody's own network (RFC 8215)
    ("discard", "100::/64"),
    ("tunnel", "2001::/32"),  # Teredo
    ("reserved", "2001::/23"),
    ("documentation", "2001:db8::/32"),
    ("tunnel", "2002::/16"),  # 6to4
    ("documentation", "3fff::/20"),
    ("private", "fc00::/7"),
    ("link-local", "fe80::/10"),
    ("site-local", "fec0::/10"),
    ("multicast", "ff00::/8"),
)

_METADATA = frozenset(ip_address(text) for text in METADATA)
_V4 = tuple((rule, IPv4Network(network)) for rule, network in V4)
_V6 = tuple((rule, IPv6Network(network)) for rule, network in V6)
_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")


def plain_address(text: str) -> Address:
    """The address, without its zone, and the IPv4 address where it is mapped. Raises ValueError where it is none."""
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def refusing_rule(address: Address) -> str | None:
    """The rule by which an address is not public; None where it is."""
    if address in _METADATA:
        return "metadata"
    if isinstance(address, IPv4Address):
        named = next((rule for rule, network in _V4 if address in network), None)
        return named or (None if address.is_global else "reserved")
    if address.ipv4_mapped is not None:
        return refusing_rule(address.ipv4_mapped)
    if address in _NAT64:  # as names without IPv6 resolve in networks that have nothing else (RFC 6147)
        return refusing_rule(IPv4Address(int(address) & 0xFFFFFFFF))
    named = next((rule for rule, network in _V6 if address in network), None)
    if named is None and (address not in _GLOBAL_UNICAST or not address.is_global):
        return "reserved"
    return named
