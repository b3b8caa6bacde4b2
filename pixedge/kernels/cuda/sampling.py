# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Choosing tokens on the device: the most likely one, or a draw from one uniform number a row.

The order is that of ``pixedge.sampling``: temperature, min-p, top-k, top-p, then the draw, among candidates
in order of likelihood where top-k or top-p is on, and in order of ids where neither is. Sums are in float32
here and in float64 there: with the same number the same token comes out, unless the number lies within about
1e-6 of the border between two tokens. Penalties and log-probabilities are not computed here.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixedge.kernels.cuda import tuning

CHUNK = 4096
"""Logits that a program compares at a time."""

NOT_FINITE = -1
"""The token of a row that has a logit which is not finite."""


@dataclass(frozen=True)
class Draws:
    """How each row is drawn; all tensors [rows], on the device.

    temperatures: float32, above 0. top_k: int32, 0 keeps all. top_p, min_p: float32, 1 and 0 keep all.
    uniforms: float32 in [0, 1), one number for each row.
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
def _best_of_chunk(logits, best, ids, vocab, chunks, CHUNK: tl.constexpr):
    """Find the best of one chunk of one row; infinity stands for a chunk with a logit that is not finite."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * vocab + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    broken = tl.sum(((tl.abs(x) < float("inf")) == (at >= vocab)).to(tl.int32), axis=0) > 0
    tl.store(ids + row * chunks + chunk, chunk * CHUNK + tl.argmax(x, axis=0, tie_break_left=True))
    tl.store(best + row * chunks + chunk, tl.where(broken, float("inf"), tl.max(x, axis=0)))


@triton.jit
def _best_of_chunks(best, ids, out, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    x = tl.load(best + row * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
    chosen = tl.load(ids + row * chunks + tl.argmax(x, axis=0, tie_break_left=True))
    tl.store(out + row, tl.where(tl.max(x, axis=0) == float("inf"), -1, chosen))


@dataclass(frozen=True)
class Room:
    """Scratch of ``greedy``: best float32 and ids int32, [rows, chunks]."""

    best: Tensor
    ids: Tensor

    @classmethod
    def allocate(cls, rows: int, vocab: int, device: torch.device) -> "Room":
        """Make room for rows of ``vocab`` logits."""
        shape = (rows, -(-vocab // CHUNK))
        return cls(
            *(torch.empty(shape, dtype=dtype, device=device) for dtype in (torch.float32, torch.int32))
        )


def greedy(logits: Tensor, room: Room, out: Tensor) -> Tensor:
    """Write the id of the highest logit of each row of logits [rows, vocab] to out, int32 [rows].

    The lowest id wins among equals, and a row with a logit that is not finite gives -1.
    """
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    tuning.check_device(logits, room.best, out)
    assert logits.is_contiguous() and logits.is_floating_point()
    assert room.best.shape == room.ids.shape == (rows, chunks), f"room {tuple(room.best.shape)}"
    assert out.shape == (rows,) and out.dtype == torch.int32
    _best_of_chunk[(rows, chunks)](logits, room.best, room.ids, vocab, chunks, CHUNK=CHUNK, num_warps=8)
    _best_of_chunks[(rows,)](
        room.best, room.ids, out, chunks, CHUNKS=triton.next_power_of_2(chunks), num_warps=1
    )
    return out


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
    if chosen >= 0:
        start_of_row = row.to(tl.int64) * vocab
        top = tl.load(logits + start_of_row + chosen).to(tl.float32)
        temperature = tl.load(temperatures + row)
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


def draw(logits: Tensor, draws: Draws, room: Room, out: Tensor, *, ordered: bool) -> Tensor:
    """Draw one id for each row of logits float32 [rows, vocab] into out, int32 [rows].

    ordered: whether any row uses top-k or top-p, which needs the logits sorted; a host knows that of its
    requests without asking the device. A row with a logit that is not finite gives -1.
    """
    rows, vocab = logits.shape
    draws.check(rows)
    assert logits.dtype == torch.float32, f"logits are {logits.dtype}"
    greedy(logits, room, out)
    best = out.clone()
    values = order = None
    if ordered:
        values, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    _draw[(rows,)](
        logits,
        values,
        order,
        best,
        draws.temperatures,
        draws.top_k,
        draws.top_p,
        draws.min_p,
        draws.uniforms,
        out,
        vocab,
        ORDERED=ordered,
        CHUNK=CHUNK,
        num_warps=8,
    )
    return out
