"""Amounts of memory as people write them: 24GiB, 800MB, 12.5 GiB."""

import re

from pixedge.errors import UsageError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str, name: str = "the amount of memory") -> int:
    """Return the bytes that a number with a unit stands for; name is what errors call it.

    GB is 10^9 bytes and GiB is 2^30, and so is G alone, as cards are sold: one "of 24 GB" has 24 GiB. Case
    does not matter. Raises UsageError for anything else, and for less than a byte.

    >>> parse_bytes("24GiB") == parse_bytes("24g") == 24 * 2**30, parse_bytes("1.5 GB")
    (True, 1500000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]?)(I?)(B?))\s*", text, re.ASCII | re.IGNORECASE)
    if found is None or not (found[2] or found[4]) or (found[3] and not found[2]):
        raise UsageError(f"{name} is {text!r:.40}; give a number with a unit, such as 24GiB, 12GB or 800MB")
    base = 1000 if found[4] and not found[3] else 1024
    amount = int(float(found[1]) * base ** _POWERS[found[2].upper()])
    if amount < 1:
        raise UsageError(f"{name} is {text!r:.40}, which is not one byte; give more")
    return amount


def write_bytes(amount: int, places: int = 2) -> str:
    """Write an amount of memory for people, in powers of 1024 as memory is built.

    >>> write_bytes(24 * 2**30), write_bytes(300 * 2**20), write_bytes(5)
    ('24.00 GiB', '300.00 MiB', '5 B')
    """
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if abs(amount) >= 1024**power:
            return f"{amount / 1024**power:,.{places}f} {unit}"
    return f"{amount} B"
