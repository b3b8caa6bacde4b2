# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Choosing tokens on the device: the most likely one, or a draw from one uniform number a row.

The order is that of ``pixedge.sampling``: temperature, min-p, top-k, top-p, then the draw, among candidates
in order of likelihood where top-k or top-p is on, and in order of ids where neither is. Sums are in float32
here and in float64 there: with the same number the same token comes out, unless the number lies within about
1e-6 of the border between two tokens. Penalties and log-probabilities are not computed here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.layout import LOGITS as CHUNK

NOT_FINITE = -1
"""The token of a row that has a logit which is not finite."""


@dataclass(frozen=True)
class Draws:
    """How each row is drawn; all tensors [rows], on the device.

    temperatures: float32, 0 takes the most likely. top_k: int32, 0 keeps all. top_p, min_p: float32, 1 and 0
    keep all. uniforms: float32 in [0, 1), one number for each row.
    """

    temperatures: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniforms: Tensor

    def check(self, rows: int) -> None:
        """Assert what the kernel relies on."""
        for each in (self.temperatures, self.top_p, self.min_p, self.uniforms):
            assert each.shape == (rows,) and each.dtype == torch.float32 and each.is_contiguous()
        assert self.top_k.shape == (rows,) and self.top_k.dtype == torch.int32 and self.top_k.is_contiguous()


def greedy_reference(logits: Tensor) -> Tensor:
    """Return the id of the highest of logits [rows, vocab], the lowest among equals; -1 for broken rows."""
    ids = logits.float().argmax(-1).to(torch.int32)
    return torch.where(logits.isfinite().all(-1), ids, NOT_FINITE)


def draw_reference(logits: Tensor, draws: Draws) -> Tensor:
    """Do what ``draw`` does, row by row in float64."""
    ids = []
    for index, row in enumerate(logits.double()):
        if not bool(row.isfinite().all()):
            ids.append(NOT_FINITE)
            continue
        if float(draws.temperatures[index]) == 0:
            ids.append(int(row.argmax()))
            continue
        scores = (row - row.max()) / float(draws.temperatures[index])
        weights = torch.where(scores >= float(draws.min_p[index].double().log()), scores.exp(), 0.0)
        order = torch.arange(len(row), device=row.device)
        top_k, top_p = int(draws.top_k[index]), float(draws.top_p[index])
        if top_k or top_p < 1.0:
            order = torch.sort(row, descending=True, stable=True).indices[: top_k or len(row)]
            reached = weights[order].cumsum(0)
            if top_p < 1.0:
                order = order[: int(torch.nonzero(reached >= top_p * reached[-1])[0, 0]) + 1]
        cumulative = weights[order].cumsum(0)
        wanted = (cumulative > float(draws.uniforms[index]) * cumulative[-1]) | (cumulative >= cumulative[-1])
        ids.append(int(order[torch.nonzero(wanted)[0, 0]]))
    return torch.tensor(ids, dtype=torch.int32, device=logits.device)


@triton.jit
def _best_of_chunk(logits, best, ids, sums, vocab, chunks, CHUNK: tl.constexpr):
    """Find the best of one chunk of one row; infinity stands for a chunk with a logit that is not finite.

    sums get the chunk's sum of exp(logit - best).
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * vocab + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    broken = tl.sum(((tl.abs(x) < float("inf")) == (at >= vocab)).to(tl.int32), axis=0) > 0
    tl.store(ids + row * chunks + chunk, chunk * CHUNK + tl.argmax(x, axis=0, tie_break_left=True))
    most = tl.max(x, axis=0)
    tl.store(best + row * chunks + chunk, tl.where(broken, float("inf"), most))
    x = tl.where(broken, 0.0, x)
    tl.store(sums + row * chunks + chunk, tl.sum(tl.exp(x - tl.where(broken, 0.0, most)), axis=0))


@triton.jit
def _best_of_chunks(best, ids, sums, totals, out, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    x = tl.load(best + row * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
    chosen = tl.load(ids + row * chunks + tl.argmax(x, axis=0, tie_break_left=True))
    most = tl.max(x, axis=0)
    broken = most == float("inf")
    tl.store(out + row, tl.where(broken, -1, chosen))
    share = tl.exp(tl.where(broken, 0.0, x) - tl.where(broken, 0.0, most))
    weight = tl.sum(tl.load(sums + row * chunks + chunk, mask=chunk < chunks, other=0.0) * share, axis=0)
    tl.store(totals + row, tl.where(broken, 0.0, most + tl.log(weight)))


@triton.jit
def _tell(logits, ids, totals, told, vocab):
    """Write a row's id and its log-probability, whose bits stand for an integer, side by side."""
    row = tl.program_id(0)
    chosen = tl.load(ids + row)
    found = tl.load(logits + row.to(tl.int64) * vocab + tl.maximum(chosen, 0)).to(tl.float32)
    tl.store(told + 2 * row, chosen)
    tl.store(told + 2 * row + 1, (found - tl.load(totals + row)).to(tl.int32, bitcast=True))


@dataclass(frozen=True)
class Room:
    """What ``greedy`` writes beside ids: best float32, ids int32 and sums float32, all [rows, chunks].

    totals: float32 [rows], the logarithm of each row's sum of exp(logit).
    """

    best: Tensor
    ids: Tensor
    sums: Tensor
    totals: Tensor

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device) -> "Room":
        """Make room for rows of ``vocab`` logits."""
        shape = (rows, -(-vocab // CHUNK))
        types = (torch.float32, torch.int32, torch.float32)
        best, ids, sums = (torch.empty(shape, dtype=dtype, device=device) for dtype in types)
        return cls(best, ids, sums, torch.empty(rows, dtype=torch.float32, device=device))

    def first(self, rows: int) -> "Room":
        """Return the part of it for ``rows`` rows."""
        return Room(self.best[:rows], self.ids[:rows], self.sums[:rows], self.totals[:rows])


def greedy(logits: Tensor, room: Room, out: Tensor) -> Tensor:
    """Write the id of the highest logit of each row of logits [rows, vocab] to out, int32 [rows].

    The lowest id wins among equals, and a row with a logit that is not finite gives -1. ``room.totals`` gets
    what makes log-probabilities of logits.
    """
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    tuning.check_device(logits, room.best, out)
    assert logits.is_contiguous() and logits.is_floating_point()
    assert room.best.shape == room.ids.shape == (rows, chunks), f"room {tuple(room.best.shape)}"
    assert out.shape == (rows,) and out.dtype == torch.int32
    _best_of_chunk[(rows, chunks)](
        logits, room.best, room.ids, room.sums, vocab, chunks, CHUNK=CHUNK, num_warps=8
    )
    _best_of_chunks[(rows,)](
        room.best,
        room.ids,
        room.sums,
        room.totals,
        out,
        chunks,
        CHUNKS=triton.next_power_of_2(chunks),
        num_warps=1,
    )
    return out


def tell(logits: Tensor, ids: Tensor, totals: Tensor, told: Tensor) -> Tensor:
    """Write each row's id and the bits of its float32 log-probability to told, int32 [rows, 2].

    logits: [rows, vocab]. ids: int32 [rows]; what -1 is told with means nothing. totals: of ``Room``.
    """
    rows, vocab = logits.shape
    tuning.check_device(logits, ids, totals, told)
    assert ids.shape == totals.shape == (rows,) and told.shape == (rows, 2) and logits.is_contiguous()
    assert ids.dtype == told.dtype == torch.int32 and told.is_contiguous()
    _tell[(rows,)](logits, ids, totals, told, vocab, num_warps=1)
    return told


@triton.jit
def _reached(values, start, kept, top, temperature, least, before, CHUNK: tl.constexpr):
    """Return the running sum of the weights of one chunk of candidates, ``before`` included."""
    at = start + tl.arange(0, CHUNK)
    x = tl.load(values + at, mask=at < kept, other=float("-inf")).to(tl.float32)
    score = tl.div_rn(x - top, temperature)
    weight = tl.where((at < kept) & (score >= least), tl.exp(score), 0.0)
    return before + tl.cumsum(weight, axis=0)


@triton.jit
def _draw(
    logits,
    ordered,
    order,
    best,
    temperatures,
    top_k,
    top_p,
    min_p,
    uniforms,
    out,
    vocab,
    ORDERED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0)
    chosen = tl.load(best + row)
    temperature = tl.load(temperatures + row)
    if (chosen >= 0) & (temperature > 0):
        start_of_row = row.to(tl.int64) * vocab
        top = tl.load(logits + start_of_row + chosen).to(tl.float32)
        wanted_p = tl.load(top_p + row)
        wanted_k = tl.load(top_k + row)
        share = tl.load(min_p + row)
        least = tl.where(share > 0, tl.log(tl.where(share > 0, share, 1.0)), float("-inf"))
        by_likelihood = (wanted_k > 0) | (wanted_p < 1.0)
        values = logits + start_of_row
        if ORDERED:
            values = tl.where(by_likelihood, ordered, logits) + start_of_row
        kept = tl.where(wanted_k > 0, tl.minimum(wanted_k, vocab), vocab)

        total = 0.0
        for start in range(0, kept, CHUNK):
            total = tl.max(_reached(values, start, kept, top, temperature, least, total, CHUNK), axis=0)

        mass = total
        if wanted_p < 1.0:
            before = 0.0
            start = 0
            enough = wanted_p * total
            while (start < kept) & (before < enough):
                reached = _reached(values, start, kept, top, temperature, least, before, CHUNK)
                mass = tl.min(tl.where(reached >= enough, reached, total), axis=0)
                before = tl.max(reached, axis=0)
                start += CHUNK

        target = tl.load(uniforms + row) * mass
        before = 0.0
        start = 0
        index = 0
        found = False
        while (start < kept) & (not found):
            reached = _reached(values, start, kept, top, temperature, least, before, CHUNK)
            # the sum itself is the last candidate's, should rounding carry the product up to it
            past = (reached > target) | (reached >= mass)
            found = tl.max(past.to(tl.int32), axis=0) > 0
            index = start + tl.argmax(past.to(tl.int32), axis=0, tie_break_left=True)
            before = tl.max(reached, axis=0)
            start += CHUNK
        chosen = index
        if ORDERED:
            likely = tl.load(order + start_of_row + index).to(tl.int32)
            chosen = tl.where(by_likelihood, likely, index)
    tl.store(out + row, chosen)


@dataclass(frozen=True)
class Sorted:
    """Room for sorted logits: values float32 and order int64, [rows, vocab]."""

    values: Tensor
    order: Tensor

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device) -> "Sorted":
        """Make room for rows of ``vocab`` logits."""
        types = (torch.float32, torch.int64)
        return cls(*(torch.empty(rows, vocab, dtype=dtype, device=device) for dtype in types))

    def sort(self, logits: Tensor, rows: Iterable[int]) -> None:
        """Sort some rows, the highest first, equal ones by id; one by one, which bounds the scratch."""
        for row in rows:
            out = (self.values[row], self.order[row])
            torch.sort(logits[row], dim=-1, descending=True, stable=True, out=out)


def draw(
    logits: Tensor, draws: Draws, likely: Tensor, out: Tensor, by_likelihood: Sorted | None = None
) -> Tensor:
    """Draw one id for each row of logits float32 [rows, vocab] into out, int32 [rows].

    likely: what ``greedy`` found, int32 [rows]; where that is -1 so is the id drawn. by_likelihood: sorted,
    at least the rows that use top-k or top-p; a host knows of its requests whether there are any.
    """
    rows, vocab = logits.shape
    tuning.check_device(logits, likely, out)
    draws.check(rows)
    assert logits.dtype == torch.float32 and logits.is_contiguous(), f"logits are {logits.dtype}"
    assert likely.shape == out.shape == (rows,) and likely.dtype == out.dtype == torch.int32
    _draw[(rows,)](
        logits,
        None if by_likelihood is None else by_likelihood.values,
        None if by_likelihood is None else by_likelihood.order,
        likely,
        draws.temperatures,
        draws.top_k,
        draws.top_p,
        draws.min_p,
        draws.uniforms,
        out,
        vocab,
        ORDERED=by_likelihood is not None,
        CHUNK=CHUNK,
        num_warps=8,
    )
    return out
