"""Tell whether an IP address belongs to the public internet, whatever form it is written in.

Every range of IANA's registries of special-purpose addresses is refused, also those that are marked as
globally reachable (AS112, anycast relays): a network may answer there itself, and no picture is served from
one. Beside them stand an address of a cloud's own agents and the forms of IPv6 that carry an IPv4 address,
which are as public as the address inside.

Sources: iana.org/assignments/iana-ipv4-special-registry, iana-ipv6-special-registry and
ipv6-address-space; RFC 6052 (NAT64), RFC 5214 (ISATAP).
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by a provider's customers
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's agents, which is not in the registry
            "169.254.0.0/16",  # link-local; where clouds tell machines their secrets
            "172.16.0.0/12",
            "192.0.0.0/24",  # the protocols' own
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT relays
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)

# Only this is given out as unicast addresses of the internet: not loopback, ::/96, 100::/64, 5f00::/16,
# unique local, link-local, site-local or multicast.
_UNICAST = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # the protocols' own: Teredo, ORCHID, AMT, DRIP
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: what answers there is whoever plays the relay
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_LOW_32 = (1 << 32) - 1


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address is public; an IPv6 form of an IPv4 address is as public as that one."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address.scope_id is not None:
        return False
    number = int(address)
    inner = IPv4Address(number & _LOW_32)
    if address in _MAPPED or address in _NAT64:
        return is_public(inner)
    # ISATAP: the lower half is 0000:5efe or 0200:5efe and an IPv4 address, with any bits for "universal" and
    # "group"
    if (number >> 32) & 0xFCFFFFFF == 0x5EFE and not is_public(inner):
        return False
    return address in _UNICAST and not any(address in network for network in _SPECIAL_V6)
