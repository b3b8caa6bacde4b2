"""``pixedge verify``: is a folder what was exported, and does it still compute what it did then."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pixedge.artifact import MANIFEST, Artifact, hash_file, open_artifact
from pixedge.errors import PixedgeError
from pixedge.loading import load
from pixedge.model import Model

MAX_DRIFT = 0.1
"""Nats by which the known picture's log-probabilities may differ on average from what the export measured.

bfloat16 activations cost a few hundredths; one damaged tensor costs whole nats.
"""


@dataclass(frozen=True)
class Check:
    """One thing that was checked, whether it held, and the figures."""

    name: str
    ok: bool
    detail: str


def verify_artifact(
    folder: Path | str,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> list[Check]:
    """Check the files' hashes, the tensors' names and shapes, and the known picture's log-probabilities.

    progress(phase, done, total) reports hashing and loading. Raises ArtifactError when the folder is no
    complete export; later checks are left out where an earlier one fails.
    """
    artifact = open_artifact(folder)
    checks = [_hashes(artifact, progress)]
    if not checks[-1].ok:
        return checks
    try:
        model = load(folder, device=device, threads=threads, progress=progress)
    except PixedgeError as error:
        return [*checks, Check("tensors", False, str(error))]
    layers, names = artifact.config.decoder.n_layers, len(artifact.weight_map)
    checks.append(
        Check("tensors", True, f"{names} tensors, {layers} layers, all names and shapes as the config says")
    )
    return [*checks, _known_picture(artifact, model)]


def _hashes(artifact: Artifact, progress: Callable[[str, int, int], None] | None) -> Check:
    total = sum(entry.bytes for entry in artifact.files.values())
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress("hash", done, total)

    wrong = [
        name
        for name, entry in artifact.files.items()
        if hash_file(artifact.folder / name, step) != entry.sha256
    ]
    if wrong:
        return Check(
            "files", False, f"changed since the export: {', '.join(wrong)}; copy them again or export again"
        )
    return Check("files", True, f"{len(artifact.files)} files, {total:,} bytes, all sha256 as exported")


def _known_picture(artifact: Artifact, model: Model) -> Check:
    try:
        known = artifact.manifest["known_picture"]
        expected = torch.tensor(known["logprobs"], dtype=torch.float32)
        prompt = model.tokenizer.encode(known["messages"])
        if not 0 < len(expected) < len(prompt.ids):
            raise ValueError(f"{len(expected)} figures")
    except (KeyError, TypeError, ValueError, PixedgeError) as error:
        detail = f"{MANIFEST} does not hold a known conversation ({error!r:.120}); export again"
        return Check("known picture", False, detail)
    # the export kept the words behind the picture
    found = model.engine.score(prompt)[-len(expected) :]
    drift = float((found - expected).abs().mean())
    ok = drift <= MAX_DRIFT  # not so where a value is NaN
    detail = (
        f"{len(expected)} words of a known conversation drift by {drift:.4f} nats on average "
        f"(limit {MAX_DRIFT})"
    )
    return Check("known picture", ok, detail if ok else f"{detail}; export again")
