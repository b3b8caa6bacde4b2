"""Addresses of the private network in every form; Python's ipaddress and IANA's registries are the judges."""

import ipaddress
import random

import pytest

from pixedge.public_address import is_public

# The address blocks of IANA's two registries of special-purpose addresses, all rows, and of multicast.
REGISTRY = [
    *("0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8"),
    *("169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32"),
    *("192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24"),
    *("192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16"),
    *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4"),
    *("240.0.0.0/4", "255.255.255.255/32", "::1/128", "::/128", "::ffff:0:0/104"),
    *("64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32"),
    *("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32"),
    *("2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32"),
    *("2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7"),
    *("fe80::/10", "fec0::/10", "ff00::/8"),
]

CLOUDS = [
    "168.63.129.16",  # Azure
    "169.254.169.254",  # most
    "100.100.100.200",  # Alibaba
    "192.0.0.192",  # Oracle
    "fd00:ec2::254",  # AWS
    "fd20:ce::254",  # Google
]

PRIVATE_V4 = ["10.1.2.3", "127.0.0.1", "169.254.169.254", "172.31.255.255", "192.168.0.1", "168.63.129.16"]

# How IPv6 carries an IPv4 address.
FORMS = {
    "mapped": lambda four: 0xFFFF << 32 | four,
    "compatible": lambda four: four,
    "translated": lambda four: 0xFFFF << 48 | four,
    "NAT64": lambda four: 0x64_FF9B << 96 | four,
    "local NAT64": lambda four: 0x64_FF9B_0001 << 80 | four,
    "6to4": lambda four: 0x2002 << 112 | four << 80 | 1,
    "Teredo, as its client": lambda four: 0x2001_0000 << 96 | 0x0808_0808 << 64 | four ^ 0xFFFF_FFFF,
    "Teredo, as its server": lambda four: 0x2001_0000 << 96 | four << 64 | 0xF7F7_F7F7,
    "ISATAP": lambda four: 0x2606_4700 << 96 | 0x5EFE << 32 | four,
    "ISATAP, universal": lambda four: 0x2606_4700 << 96 | 0x200_5EFE << 32 | four,
    "ISATAP, group": lambda four: 0x2606_4700 << 96 | 0x100_5EFE << 32 | four,
    "ISATAP, link-local": lambda four: 0xFE80 << 112 | 0x5EFE << 32 | four,
}


@pytest.mark.parametrize("block", REGISTRY)
def test_no_address_of_the_registries_is_public(block):
    network = ipaddress.ip_network(block)
    rng = random.Random(1)
    for at in (0, network.num_addresses - 1, *(rng.randrange(network.num_addresses) for _ in range(50))):
        assert not is_public(network[at])


@pytest.mark.parametrize("address", CLOUDS)
def test_no_address_where_clouds_tell_secrets_is_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("four", PRIVATE_V4)
def test_no_form_of_a_private_address_is_public(four, form):
    assert not is_public(ipaddress.IPv6Address(form(int(ipaddress.IPv4Address(four)))))


@pytest.mark.parametrize("address", ["2606:4700::1%eth0", "fe80::1%1"])
def test_an_address_with_a_scope_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "93.184.216.34", "168.63.129.15", "192.88.98.255", "223.255.255.255", "100.63.255.255"),
        *("2606:4700:4700::1111", "2a00:1450:4001:82a::200e", "2001:4860:4860::8888", "2001:200::1"),
        "::ffff:1.1.1.1",  # some resolvers write IPv4 like this
        "64:ff9b::101:101",  # how networks without IPv4 reach it
    ],
)
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


def test_what_python_does_not_call_global_is_not_public():
    """A partial judge: it knows the registries of its release, and no ISATAP."""
    rng = random.Random(2)
    public = 0
    for _ in range(20_000):
        four = ipaddress.IPv4Address(rng.getrandbits(32))
        six = ipaddress.IPv6Address(rng.getrandbits(128) >> rng.choice([0, 0, 2, 80]))
        near = ipaddress.IPv6Address(0x2001 << 112 | rng.getrandbits(32) << 80 | rng.getrandbits(64))
        for address in (four, six, near):
            public += is_public(address)
            assert address.is_global or not is_public(address) or address in NAT64, address
    assert public > 20_000  # most of IPv4, an eighth of IPv6


NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
