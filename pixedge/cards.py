"""Graphics cards by name, with the figures their makers publish: memory, bandwidth, 16-bit products.

Products are those of bfloat16 matrices without sparsity, summed in float32: GeForce cards make half as many
of these as of sums in float16. Sources: NVIDIA's data sheets and architecture whitepapers. No share of a
limit was measured on any of them: predictions assume what ``ASSUMED`` says, and are marked.
"""

import re

from pixedge.errors import UsageError
from pixedge.prediction import Machine

# name: GiB of memory, GB/s, TFLOP/s
_CARDS = {
    "RTX 3060 12GB": (12, 360, 25.5),
    "RTX 3090": (24, 936, 71.0),
    "RTX 4060 Ti 16GB": (16, 288, 44.0),
    "RTX 4080": (16, 717, 97.5),
    "RTX 4090": (24, 1008, 165.2),
    "RTX 5080": (16, 960, 112.6),
    "RTX 5090": (32, 1792, 209.5),
    "A100 40GB": (40, 1555, 312.0),
    "A100 80GB": (80, 2039, 312.0),
    "H100": (80, 3350, 989.0),
    "H200": (140, 4800, 989.0),
}
CARDS = tuple(_CARDS)

ASSUMED = {"decode": 0.6, "prefill": 0.5, "encode": 0.4}
"""Shares of the limits that predictions for a card assume."""


CPU_REFERENCE = Machine(
    "a 2-core Xeon with AMX",
    bandwidth=30.0e9,
    operations=2.34e12,
    decode=((1, 0.90), (2, 0.72), (4, 0.67), (8, 0.545), (16, 0.40)),
    prefill=0.76,
    encode=0.725,
    measured=True,
    attention=0.38,
)
"""The machine of docs/performance.md, with the shares of its limits that were measured there."""


def find_card(name: str) -> tuple[Machine, int]:
    """Return a card's limits and its bytes of memory; UsageError lists the cards where none is meant.

    Case, spaces, hyphens and the maker's prefixes do not matter.

    >>> find_card("GeForce RTX-4090")[1] >> 30
    24
    """
    wanted = _plain(name)
    matches = [card for card in _CARDS if _plain(card) == wanted]
    if not matches and len(wanted) >= 4:
        matches = [card for card in _CARDS if wanted in _plain(card)]
    if len(matches) != 1:
        raise UsageError(
            f"{name!r:.60} is {'more than one card' if matches else 'no card that is known'}; give "
            f"--bandwidth and --tflops, or one of {', '.join(matches or CARDS)}"
        )
    gibibytes, bandwidth, products = _CARDS[matches[0]]
    return card_machine(matches[0], bandwidth * 1e9, products * 1e12), gibibytes << 30


def card_machine(name: str, bandwidth: float, operations: float) -> Machine:
    """Return a GPU of these limits, with the assumed shares."""
    shares = (((1, ASSUMED["decode"]),), ASSUMED["prefill"], ASSUMED["encode"])
    return Machine(name, bandwidth, operations, *shares, measured=False)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())
