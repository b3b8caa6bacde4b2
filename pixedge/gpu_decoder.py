"""The decoder as the GPU's kernels run it, loaded from an exported folder without ever being there twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pixedge.artifact import Artifact, Progress
from pixedge.config import DecoderConfig
from pixedge.kernels.cuda import tuning
from pixedge.kernels.cuda.int4_weight import UnsuitedWeightError
from pixedge.kernels.cuda.norm import MAX_COLUMNS
from pixedge.kernels.cuda.staging import Staging
from pixedge.kernels.cuda.step import StepWeights
from pixedge.kernels.int8 import quantize_rows
from pixedge.packing import GptqWeight
from pixedge.tensor_shapes import DECODER, HEAD

if TYPE_CHECKING:
    from pixedge.kernels.cuda.graph import Capture

ROWS = 8192
"""Rows of the output head that are rounded at a time."""


@dataclass(frozen=True)
class GpuDecoder:
    """A decoder's packed weights; ``pixedge.gpu_runner`` runs tokens through them.

    table: embeddings [vocab, dim] in host memory, of any 16-bit type or float32; None where they lie on the
    device, in ``weights``. capture: how steps are repeated; None makes CUDA graphs where there is a GPU.
    """

    config: DecoderConfig
    weights: StepWeights
    table: Tensor | None
    capture: "Capture | None" = None


def load_gpu_decoder(
    artifact: Artifact,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    *,
    host_embeddings: bool = False,
) -> GpuDecoder:
    """Read a folder, whose tensors have been checked, into the kernels' layout, one tensor at a time.

    dtype: float16 or bfloat16, of activations, norms and embeddings. host_embeddings: leave the table in the
    mapped file. Raises ArtifactError for a damaged tensor, and UnsuitedWeightError where the kernels cannot
    hold what the folder has.
    """
    config = artifact.config.decoder
    if config.dim > MAX_COLUMNS:
        raise UnsuitedWeightError(f"rows of {config.dim} values")
    staging = Staging(device)
    total = 7 * config.n_layers + 2
    done = 0

    def count() -> None:
        nonlocal done
        if progress:
            progress(done, total)
        done += 1

    def linear(name: str) -> GptqWeight:
        count()
        found = artifact.unpack(artifact.tensors(f"{DECODER}{name}."), f"{DECODER}{name}")
        return replace(
            found,
            words=staging.send(found.words),
            scales=found.scales.to(device),
            zeros=None if found.zeros is None else found.zeros.to(device),
            order=None if found.order is None else found.order.to(device),
        )

    def norm(name: str) -> Tensor:
        return artifact.tensors(f"{DECODER}{name}.")["weight"].to(device, dtype)

    table = artifact.tensors(f"{DECODER}embed_tokens.")["weight"]
    with tuning.on(device), _trimmed(device):
        head = _read_head(artifact, staging)
        count()
        embeddings = None if host_embeddings else _send_rows(table, staging, dtype)
        count()
        weights = StepWeights.assemble(config, linear, norm, head, embeddings)
    if progress:
        progress(total, total)
    return GpuDecoder(config, weights, table if host_embeddings else None)


def _read_head(artifact: Artifact, staging: Staging) -> tuple[Tensor, Tensor]:
    """Round the head to int8 [vocab, dim] and scales bfloat16 [vocab], on the device, some rows at a time."""
    rows = artifact.tensors(HEAD)[""]
    head = torch.empty(rows.shape, dtype=torch.int8, device=staging.device)
    scales = torch.empty(len(rows), dtype=torch.bfloat16, device=staging.device)
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        head[part], scales[part] = quantize_rows(staging.send(rows[part]))
    return head, scales


def _send_rows(table: Tensor, staging: Staging, dtype: torch.dtype) -> Tensor:
    """Bring a table [rows, n] to the device in ``dtype``, some rows at a time."""
    out = torch.empty(table.shape, dtype=dtype, device=staging.device)
    for start in range(0, len(table), ROWS):
        out[start : start + ROWS] = staging.send(table[start : start + ROWS])
    return out


@contextmanager
def _trimmed(device: torch.device) -> Iterator[None]:
    """Give back, at the end, what laying weights out took beside them."""
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
