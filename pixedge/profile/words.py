"""How a profile's figures are written for people; what was not measured is empty."""

from collections.abc import Mapping
from typing import Any


def seconds(value: float | None) -> str:
    """Write a time with three digits and its unit.

    >>> seconds(0.0123), seconds(2.5), seconds(0.00042), seconds(151.0), seconds(None)
    ('12.3 ms', '2.50 s', '0.420 ms', '151 s', '')
    """
    if value is None:
        return ""
    return f"{digits(value)} s" if value >= 1 else f"{digits(1000 * value)} ms"


def rate(value: float | None, unit: str | None) -> str:
    """Write a rate.

    >>> rate(481.2, "tokens"), rate(4.43, "tokens"), rate(None, None)
    ('481 tokens/s', '4.43 tokens/s', '')
    """
    return "" if value is None else f"{digits(value)} {unit}/s"


def percent(share: float | None) -> str:
    """Write a share.

    >>> percent(0.894), percent(0.0042), percent(None)
    ('89%', '0.4%', '')
    """
    if share is None:
        return ""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def spread(row: Mapping[str, Any]) -> str:
    """Write how far a row's runs lie apart, as a share of its median.

    >>> spread({"seconds": 2.0, "spread": 0.05}), spread({"seconds": 2.0, "spread": None})
    ('± 2.5%', 'one run')
    """
    return "one run" if row["spread"] is None else f"± {row['spread'] / row['seconds']:.1%}"


def digits(value: float) -> str:
    """Write a number with three digits, or all before the point.

    >>> digits(0.12345), digits(43.21), digits(15324.8)
    ('0.123', '43.2', '15,325')
    """
    for places, least in ((0, 99.95), (1, 9.995), (2, 0.9995)):
        if value >= least:
            return f"{value:,.{places}f}"
    return f"{value:.3f}"
