"""Choosing a step's tokens on the device: what comes back is an id and a log-probability a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.kernels.cuda import footprint, sampling
from pixedge.kernels.cuda.step import StepBuffers, make

LARGEST = 1.0 - 2.0**-24
"""The largest float32 below 1."""


@dataclass(frozen=True)
class Rule:
    """How one row's token is drawn, as ``sampling.Draws`` has it; temperature 0 takes the most likely one."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0

    @property
    def ordered(self) -> bool:
        """Whether candidates are taken in order of likelihood."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1.0)


class Chooser:
    """Draws and reads tokens in memory that was taken once."""

    def __init__(self, config: DecoderConfig, rows: int, device: torch.device) -> None:
        """Take room for up to ``rows`` rows."""
        made = make(footprint.draw_shapes(config, rows), torch.float16, device)
        pinned = device.type == "cuda"
        self._numbers = made["numbers"].zero_()
        self._drawn = made["drawn"]
        self._sorted = sampling.Sorted(made["values"], made["order"])
        self._host = torch.zeros(5, rows, dtype=torch.int32, pin_memory=pinned)
        self._told = torch.zeros(rows, 2, dtype=torch.int32, pin_memory=pinned)

    def choose(self, buffers: StepBuffers, rules: Sequence[Rule]) -> tuple[NDArray[np.int32], list[float]]:
        """Return an id for each rule, and its log-probability; -1 for logits that are not finite.

        buffers: logits in their first rows, with what ``sampling.greedy`` and ``tell`` made of them.
        """
        rows = len(rules)
        logits, told = buffers.logits[:rows], buffers.told[:rows]
        if any(rule.temperature > 0 for rule in rules):
            sorts = [row for row, rule in enumerate(rules) if rule.ordered]
            self._sorted.sort(logits, sorts)
            draws = self._send(rules)
            drawn = self._drawn[:rows]
            likely, totals = buffers.chosen[:rows], buffers.totals[:rows]
            sampling.draw(logits, draws, likely, drawn, self._sorted if sorts else None)
            sampling.tell(logits, drawn, totals, told)
        return self.read(told)

    def read(self, told: Tensor) -> tuple[NDArray[np.int32], list[float]]:
        """Bring ids and log-probabilities, int32 [rows, 2], to the host."""
        host = self._told[: len(told)]
        host.copy_(told)
        found = host.numpy()
        return found[:, 0].copy(), found[:, 1].view(np.float32).tolist()

    def _send(self, rules: Sequence[Rule]) -> sampling.Draws:
        numbers = self._host.numpy()
        for row, rule in enumerate(rules):
            numbers[1, row] = min(rule.top_k, 2**31 - 1)
            for place, value in ((0, rule.temperature), (2, rule.top_p), (3, rule.min_p), (4, rule.uniform)):
                numbers[place, row] = np.float32(value if place != 4 else min(value, LARGEST)).view(np.int32)
        self._numbers.copy_(self._host, non_blocking=True)
        each = self._numbers[:, : len(rules)]
        reals = each.view(torch.float32)
        return sampling.Draws(reals[0], each[1], reals[2], reals[3], reals[4])
