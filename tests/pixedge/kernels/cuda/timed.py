"""Time every kernel in Pixtral-12B's shape beside the bytes it must move; one JSON object a line.

    python timed.py              # on a GPU: figures, and what other launch shapes would give
    python timed.py --tiny       # anywhere: only that it runs

A kernel is captured many times over in one CUDA graph, on weights that together are larger than the cache,
and the median of several replays is taken. "share" is the part of the copy bandwidth measured first.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from pixedge.kernels.cuda import activation, decoding, int4, int8, norm, rotary, sampling, tuning, unpacking
from pixedge.kernels.cuda.pages import LayerPages
from pixedge.packing import QuantizedWeight

DTYPE = torch.bfloat16
BEYOND_CACHE = 400 << 20
"""Bytes of weights to go round, several times the largest L2 cache."""


@dataclass(frozen=True)
class Shape:
    """The decoder's numbers."""

    dim: int = 5120
    ffn: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 131072
    contexts: tuple[int, ...] = (512, 8192, 131072)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) by name."""
        width = self.heads * self.head_dim
        return {
            "qkv": (width + 2 * self.kv_heads * self.head_dim, self.dim),
            "o": (self.dim, width),
            "gate_up": (2 * self.ffn, self.dim),
            "down": (self.dim, self.ffn),
        }


TINY = Shape(64, 96, 4, 2, 16, 300, (40,), (1, 9))


class Bench:
    """Times calls and prints what they reach."""

    def __init__(self, device: torch.device, tiny: bool) -> None:
        self.device, self.tiny, self.bandwidth = device, tiny, float("inf")

    def seconds(self, calls: Sequence[Callable[[], object]], *, captured: bool = True) -> float:
        """Return the median time of one of the calls, made in turn, in a graph or launched one by one."""
        if self.device.type == "cpu":
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) / len(calls)
        for call in calls:
            call()
        torch.cuda.synchronize()
        repeats = max(1, 20 // len(calls))

        def all_calls() -> None:
            for call in [*calls] * repeats:
                call()

        replay = all_calls
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                all_calls()
            replay = graph.replay
        times = []
        for _ in range(7):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / repeats / len(calls))
        return statistics.median(times[1:])

    def report(
        self,
        name: str,
        calls: Sequence[Callable[[], object]],
        moved: int,
        *,
        captured: bool = True,
        **facts: object,
    ) -> None:
        """Print a kernel's time, given the bytes that one call must move."""
        seconds = self.seconds(calls, captured=captured)
        share = moved / seconds / self.bandwidth
        record = {
            "kernel": name,
            **facts,
            "us": round(seconds * 1e6, 2),
            "gb_s": round(moved / seconds / 1e9, 1),
        }
        print(json.dumps({**record, "share": round(share, 3)}), flush=True)

    def copies(self, of: int) -> int:
        """How many buffers of so many bytes go round."""
        return 1 if self.tiny else max(1, min(64, -(-BEYOND_CACHE // of)))

    def random(self, *shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(dtype)


def time_products(bench: Bench, shape: Shape, shapes: Sequence[tuning.Matmul]) -> None:
    facts = tuning.device(bench.device)
    for name, (outputs, inputs) in shape.products.items():
        q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        group = 128 if inputs % 128 == 0 else inputs
        weight = int4.Int4Weight.pack(
            QuantizedWeight(q, torch.rand(outputs, inputs // group), group), bench.device
        )
        moved = outputs * inputs // 2 + weight.scales.nbytes
        weights = [replace(weight, words=weight.words.clone()) for _ in range(bench.copies(moved))]
        for rows, launch in itertools.product(shape.rows, (None, *shapes)):
            if launch is not None and (rows not in (1, 16) or bench.tiny):
                continue
            chosen = facts.shapes if launch is None else replace(facts.shapes, int4=launch, int4_wide=launch)
            tuning.device = lambda of, chosen=chosen: replace(facts, shapes=chosen)
            x, splits = bench.random(rows, inputs), int4.splits_for(weight, rows)
            out = torch.empty(splits, rows, outputs, device=bench.device)
            calls = [partial(int4.few_rows, x, w, out, splits) for w in weights]
            told = {} if launch is None else {"launch": str(launch)}
            bench.report("few_rows", calls, moved, product=name, rows=rows, splits=splits, **told)
        tuning.device = lambda of: facts
        scratch = torch.empty(outputs * inputs, dtype=DTYPE, device=bench.device)
        calls = [partial(unpacking.unpack, w, scratch) for w in weights]
        bench.report("unpack", calls, moved + 2 * outputs * inputs, product=name)


def time_head(bench: Bench, shape: Shape) -> None:
    weight = torch.randint(-127, 128, (shape.vocab, shape.dim), dtype=torch.int8, device=bench.device)
    scales, moved = torch.ones(shape.vocab, dtype=torch.bfloat16, device=bench.device), weight.nbytes
    for rows in shape.rows:
        x, logits = bench.random(rows, shape.dim), bench.random(rows, shape.vocab, dtype=torch.float32)
        bench.report("head", [partial(int8.head, x, weight, scales, logits)], moved, rows=rows)
        room = sampling.Room.allocate(rows, shape.vocab, bench.device)
        chosen = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        bench.report("greedy", [partial(sampling.greedy, logits, room, chosen)], logits.nbytes, rows=rows)
        numbers, top_k = torch.full((rows,), 0.9, device=bench.device), chosen.clone()
        draws = sampling.Draws(numbers, top_k, numbers, torch.zeros_like(numbers), numbers)
        drawn, ordered = torch.zeros_like(chosen), sampling.Sorted.allocate(rows, shape.vocab, bench.device)

        def sort_and_draw(logits=logits, draws=draws, chosen=chosen, drawn=drawn, ordered=ordered) -> None:
            ordered.sort(logits, range(len(logits)))
            sampling.draw(logits, draws, chosen, drawn, ordered)

        # the sort takes scratch of its own
        bench.report("sort and draw", [sort_and_draw], logits.nbytes, captured=False, rows=rows)


def time_attention(bench: Bench, shape: Shape) -> None:
    for context, eight, batch in itertools.product(shape.contexts, (False, True), (1, 4, 16)):
        if context * batch > 131072:
            continue
        count = -(-context // 16)
        size = (count * batch, shape.kv_heads, 16, shape.head_dim)
        if eight:
            stored = torch.randint(-127, 128, size, dtype=torch.int8, device=bench.device)
            pages = LayerPages(stored, stored.clone(), *(bench.random(*size[:3]).half() for _ in range(2)))
        else:
            pages = LayerPages(bench.random(*size), bench.random(*size))
        order = torch.randperm(count * batch, device=bench.device).view(batch, count).to(torch.int32)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=bench.device)
        q = bench.random(batch, shape.heads, shape.head_dim)
        parts = decoding.Parts.allocate(batch, shape.heads, shape.head_dim, shape.kv_heads, bench.device)
        out = torch.empty_like(q)
        moved = (
            2 * context * batch * shape.kv_heads * (shape.head_dim * pages.keys.element_size() + 2 * eight)
        )
        facts = {"context": context, "batch": batch, "bits": 8 if eight else 16}
        calls = [partial(decoding.attend, q, pages, order, lengths, parts, out)]
        bench.report("attend", calls, moved, **facts)


def time_small(bench: Bench, shape: Shape) -> None:
    """Time what stands between the products, where the launch is what costs."""
    for rows in shape.rows:
        residual, normed = bench.random(rows, shape.dim, dtype=torch.float32), bench.random(rows, shape.dim)
        for splits in (1, 4, 8):
            partials = bench.random(splits, rows, shape.dim, dtype=torch.float32)
            weight = bench.random(shape.dim)
            calls = [partial(norm.add_norm, residual, partials, weight, 1e-5, normed)]
            bench.report("add_norm", calls, partials.nbytes, rows=rows, splits=splits)
        gate_up = bench.random(1, rows, 2 * shape.ffn, dtype=torch.float32)
        out = bench.random(rows, shape.ffn)
        calls = [partial(activation.silu_mul, gate_up, out)]
        bench.report("silu_mul", calls, gate_up.nbytes, rows=rows)
        size = (rows, shape.kv_heads, 16, shape.head_dim)
        pages = LayerPages(bench.random(*size), bench.random(*size))
        index = torch.arange(rows, dtype=torch.int32, device=bench.device)
        angles = bench.random(rows, shape.head_dim // 2, dtype=torch.float32)
        qkv = bench.random(4, rows, shape.products["qkv"][0], dtype=torch.float32)
        queries = bench.random(rows, shape.heads, shape.head_dim)
        at, tables = index % 16, index[:, None].contiguous()
        calls = [partial(rotary.rotate_and_write, qkv, angles, angles, at, index, tables, pages, queries)]
        bench.report("rotate_and_write", calls, qkv.nbytes, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    bench = Bench(torch.device("cpu" if tuning.interpreted() else "cuda:0"), tiny)
    shape = TINY if tiny else Shape()
    size = 1 << (10 if tiny else 31)
    source = torch.ones(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.bandwidth = 2 * size / bench.seconds([partial(target.copy_, source)])
    print(json.dumps({"copy_gb_s": round(bench.bandwidth / 1e9, 1)}), flush=True)
    del source, target
    shapes = [
        tuning.Matmul(outputs, warps, stages, programs)
        for outputs, warps in ((32, 2), (64, 4), (128, 4), (128, 8))
        for stages in (3, 4, 6)
        for programs in (2, 4, 8)
    ]
    time_products(bench, shape, shapes)
    time_head(bench, shape)
    time_attention(bench, shape)
    time_small(bench, shape)


if __name__ == "__main__":
    main()
