"""The keys and values of all sequences, in pages of 16 tokens, written once and read by every later token."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.kernels.attention import PAGE, Stored, attend_pages, causal_mask, write_pages
from pixedge.kernels.cpu.flash import flash_pages


@dataclass(frozen=True)
class PagePool:
    """Keys and values of every layer; who holds which page is told by a ``PagedStep``.

    keys, values: [layers, pages, kv_heads, 16, head_dim] of the activations' dtype, or int8 with key_scales
    and value_scales float16 [layers, pages, kv_heads, 16], one scale a token and head (see quantize_rows).
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def allocate(
        cls, config: DecoderConfig, pages: int, dtype: torch.dtype, device: torch.device, *, bits: int = 16
    ) -> Self:
        """Make room for ``pages`` pages; bits 8 stores int8, 16 the activations' dtype (float32 included).

        Nothing is zeroed: on a CPU the system gives a page its memory when it is first written.
        """
        assert bits in (8, 16), f"a cache of {bits} bits"
        shape = (config.n_layers, pages, config.n_kv_heads, PAGE, config.head_dim)
        stored = torch.int8 if bits == 8 else dtype
        keys, values = (torch.empty(shape, dtype=stored, device=device) for _ in range(2))
        if bits == 16:
            return cls(keys, values)
        scales = (torch.empty(shape[:-1], dtype=torch.float16, device=device) for _ in range(2))
        return cls(keys, values, *scales)

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return self.keys.shape[1]

    def layer(self, index: int) -> tuple[Stored, Stored]:
        """Return one layer's keys with their scales, and its values with theirs."""
        if self.key_scales is None or self.value_scales is None:
            return (self.keys[index], None), (self.values[index], None)
        return (self.keys[index], self.key_scales[index]), (self.values[index], self.value_scales[index])


class PagedStep:
    """One step's tokens of several sequences, side by side in x; an ``Attend`` for the decoder.

    Token t of sequence i sees all that the sequence holds and the step's tokens up to itself.
    """

    def __init__(
        self, pool: PagePool, tables: Tensor, starts: Tensor, counts: Tensor, *, prompt: bool = False
    ) -> None:
        """Lay the step out; the tensors are int32 on the CPU and are copied to the pool's device.

        tables [sequences, max_pages]: each sequence's pages in order, anything behind its last one. starts
        [sequences]: tokens already held. counts [sequences]: tokens of this step, at least 1 each. prompt:
        the tokens are prompts', and kernels that round otherwise for few tokens than for many shall not do
        so, or what is left of a known prompt would be computed unlike the whole.
        """
        for tensor, ndim in ((tables, 2), (starts, 1), (counts, 1)):
            assert tensor.dtype == torch.int32 and tensor.ndim == ndim and tensor.is_contiguous()
        assert len(tables) == len(starts) == len(counts) > 0
        self.pool, self.prompt = pool, prompt
        device = pool.keys.device
        self.tables, self.starts, self.counts = (each.to(device) for each in (tables, starts, counts))
        self.spans = list(zip(starts.tolist(), counts.tolist(), strict=True))
        """(start, count) of each sequence, for loops on the host."""
        assert all(count >= 1 and start >= 0 for start, count in self.spans)
        assert max(start + count for start, count in self.spans) <= tables.shape[1] * PAGE
        self.tokens = sum(count for _, count in self.spans)
        self._masks: list[Tensor | None] | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as ``Attend`` says: store the step's k and v, then read."""
        self.write(layer, k, v)
        return self.attend(layer, q)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store k and v [tokens, kv_heads, head_dim] of the step."""
        assert len(k) == len(v) == self.tokens, f"{len(k)} keys in a step of {self.tokens} tokens"
        keys, values = self.pool.layer(layer)
        write_pages(*keys, k, *self._places)
        write_pages(*values, v, *self._places)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attend with q [tokens, heads, head_dim]; the step's own keys and values are stored by now."""
        assert len(q) == self.tokens, f"{len(q)} queries in a step of {self.tokens} tokens"
        keys, values = self.pool.layer(layer)
        out = [
            self._attend_one(index, part, keys, values)
            for index, part in enumerate(torch.split(q, [count for _, count in self.spans]))
        ]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _attend_one(self, index: int, q: Tensor, keys: Stored, values: Stored) -> Tensor:
        """Attend with one sequence's q, in the library where it has a kernel for that."""
        start = self.spans[index][0]
        found = flash_pages(q, keys, values, self.tables[index], start)
        if found is not None:
            return found
        if self._masks is None:  # the same in every layer
            self._masks = [causal_mask(*span, q.dtype, q.device) for span in self.spans]
        return attend_pages(q, keys, values, self.tables[index], start, self._masks[index])

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """The page and the offset in it at which each of the step's tokens is written, int64 [tokens].

        Made when first asked for: a fused layer finds the places itself.
        """
        device = self.tables.device
        places = torch.cat([torch.arange(start, start + count, device=device) for start, count in self.spans])
        sequences = torch.arange(len(self.spans), device=device)
        # its size is known here: asking a GPU for it would wait for all that is queued there
        rows = torch.repeat_interleave(sequences, self.counts.long(), output_size=self.tokens)
        return self.tables[rows, places // PAGE].long(), places % PAGE
