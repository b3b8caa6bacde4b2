"""``pixedge verify``: is a folder what was exported, and does it still compute what it did then."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pixedge.artifact import MANIFEST, REPORT, REPORT_PAGE, Artifact, hash_file, open_artifact
from pixedge.errors import PixedgeError
from pixedge.loading import load
from pixedge.model import Model
from pixedge.section import read_json
from pixedge.self_digest import is_as_signed
from pixedge.vision import VisionSession

MAX_DRIFT = 0.1
"""Nats by which the known picture's log-probabilities may differ on average from what the export measured.

bfloat16 activations cost a few hundredths; one damaged tensor costs whole nats.
"""


MAX_ENCODER_DRIFT = 0.05
"""How far the encoder's embeddings of the known picture may be off, as a share of their norm.

bfloat16 products cost about 1 %.
"""

_MANIFEST_KEYS = frozenset(
    ("format_version", "pixedge_version", "source", "recipe", "calibration", "known_picture", "files")
)
_REPORT_KEYS = frozenset(
    (
        *("source", "recipe", "calibration", "divergence_from_16_bits", "linear_errors", "vision_parity"),
        *("bytes", "seconds", "machine"),
    )
)
"""What manifests and reports had before they had digests."""

SAMPLED_EMBEDDINGS = 64
"""Values of the known picture's embeddings that an export keeps."""


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
    checks = [check_files(artifact, progress)]
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
    return [*checks, check_known_picture(artifact, model)]


def check_files(artifact: Artifact, progress: Callable[[str, int, int], None] | None = None) -> Check:
    """Compare every file's hash with the one that the export wrote down."""
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
    wrong += _unsigned(artifact)
    if wrong:
        return Check(
            "files", False, f"changed since the export: {', '.join(wrong)}; copy them again or export again"
        )
    return Check("files", True, f"{len(artifact.files)} files, {total:,} bytes, all sha256 as exported")


def _unsigned(artifact: Artifact) -> list[str]:
    """Name the manifest and the reports where they are not as they were signed, and weights that none lists.

    A file from before there were digests has no such key, and no other key that was not known then.
    """
    folder = artifact.folder
    wrong = [file.name for file in folder.glob("*.safetensors") if file.name not in artifact.files]
    if not artifact.manifest.keys() <= _MANIFEST_KEYS and not is_as_signed((folder / MANIFEST).read_bytes()):
        wrong.append(MANIFEST)
    if (folder / REPORT).is_file():
        try:
            report = read_json(folder / REPORT)
            old = isinstance(report, dict) and report.keys() <= _REPORT_KEYS
            if not old and not is_as_signed((folder / REPORT).read_bytes()):
                wrong.append(REPORT)
            elif not old and hash_file(folder / REPORT_PAGE) != report["page_sha256"]:
                wrong.append(REPORT_PAGE)
        except (OSError, PixedgeError):
            wrong.append(REPORT)
    return wrong


def check_known_picture(artifact: Artifact, model: Model) -> Check:
    """Score the known conversation again, and compare with what the export measured."""
    try:
        known = artifact.manifest["known_picture"]
        expected = _figures(known["logprobs"])
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


def _figures(values: object) -> torch.Tensor:
    """Return a list of numbers as float32; ValueError for anything else that a manifest may hold."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{values!r:.60} is not a list of numbers")
    try:
        return torch.tensor(values, dtype=torch.float32)
    except (OverflowError, RuntimeError) as error:  # a number too large
        raise ValueError(str(error)) from error


def sample_embeddings(embeddings: torch.Tensor) -> list[float]:
    """Take evenly spaced values of embeddings [patches, dim], rounded to five digits."""
    values = embeddings.flatten().float().cpu()
    places = torch.linspace(0, len(values) - 1, SAMPLED_EMBEDDINGS).round().long()
    return [float(f"{value:.5g}") for value in values[places].tolist()]


def check_encoder(artifact: Artifact, model: Model) -> Check:
    """Encode the known picture again, and compare with what the export stored.

    A folder from before exports stored it is held to its own float32 graph instead.
    """
    known = artifact.manifest.get("known_picture") or {}
    try:
        (pixels,) = model.tokenizer.encode(known["messages"]).images
        stored = _figures(known["embeddings"]) if "embeddings" in known else None
    except (KeyError, TypeError, ValueError, PixedgeError) as error:
        detail = f"{MANIFEST} does not hold a known picture ({error!r:.120}); export again"
        return Check("encoder", False, detail)
    found = torch.tensor(sample_embeddings(model.engine.vision.encode(pixels)))
    if stored is not None and len(stored) == SAMPLED_EMBEDDINGS:
        against, expected = "what the export stored", stored
    else:
        against = "its float32 graph"
        exact = VisionSession(artifact.folder, artifact.config, torch.device("cpu"), exact=True)
        expected = torch.tensor(sample_embeddings(exact.encode(pixels)))
    drift = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    ok = drift <= MAX_ENCODER_DRIFT  # not so where a value is NaN
    detail = (
        f"embeddings of a known picture are off by {drift:.2%} of {against} (limit {MAX_ENCODER_DRIFT:.0%})"
    )
    return Check("encoder", ok, detail if ok else f"{detail}; export again")
