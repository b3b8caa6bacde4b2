"""An exported folder: opened by its manifest, loaded layer by layer, verified by its hashes.

pixedge.json is written last and names every other file with its size and sha256, so a folder that has it is
complete. Everything that the runtime must know stands in it or in params.json; nothing is guessed from names.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pixedge.config import ModelConfig
from pixedge.decoder import Decoder
from pixedge.errors import ArtifactError
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import unpack_gptq

MANIFEST = "pixedge.json"
INDEX = "model.safetensors.index.json"
FORMAT_VERSION = 1
DECODER = "language_model.model."
HEAD = "language_model.lm_head.weight"
PACKED = ("qweight", "qzeros", "scales", "g_idx")

Progress = Callable[[int, int], None]
"""Called with units done and in all."""


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says about one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """An exported folder whose files are all there and as long as the manifest says."""

    folder: Path
    config: ModelConfig
    manifest: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    group_size: int
    weight_map: Mapping[str, str]

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Read the tensors whose names begin with ``prefix``, by the rest of their names."""
        by_file: dict[str, list[str]] = {}
        for name, file in self.weight_map.items():
            if name.startswith(prefix):
                by_file.setdefault(file, []).append(name)
        found: dict[str, Tensor] = {}
        for file, names in by_file.items():
            try:
                with safe_open(self.folder / file, framework="pt") as shard:
                    for name in names:
                        found[name.removeprefix(prefix)] = shard.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise ArtifactError(
                    f"{self.folder / file} cannot be read ({error}); run `pixedge verify {self.folder}` "
                    "and export again"
                ) from error
        return found


def open_artifact(folder: Path | str) -> Artifact:
    """Open an exported folder; ArtifactError when it is none, incomplete, or of a newer format."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; export a checkpoint first: pixedge export CHECKPOINT")
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{folder} has no {MANIFEST}, so it is not a finished export; make one: pixedge export CHECKPOINT"
        )
    manifest = _read_json(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version!r} and this pixedge reads {FORMAT_VERSION}; "
            "export again, or install the pixedge that wrote it"
        )
    try:
        files = {
            name: FileEntry(int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in manifest["files"].items()
        }
        group_size = int(manifest["recipe"]["group_size"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}); export again") from error
    for name, entry in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise ArtifactError(
                f"{file} {state}, expected {entry.bytes:,} bytes; copy the folder again or export again"
            )
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ArtifactError(f"{folder / INDEX} has no weight_map; export again")
    return Artifact(folder, ModelConfig.load(folder), manifest, files, group_size, weight_map)


def load_decoder(
    artifact: Artifact, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> Decoder:
    """Build the decoder with 4-bit linears and an 8-bit head, reading one layer at a time.

    dtype is that of activations, norms and embeddings. Every tensor of the folder's decoder must find its
    place, and every place its tensor: ArtifactError names those that do not.
    """
    config = artifact.config.decoder
    with torch.device("meta"):
        decoder = Decoder(config)
    total = config.n_layers + 2
    layers = [f"{DECODER}layers.{index}." for index in range(config.n_layers)]
    known = (*layers, f"{DECODER}norm.", f"{DECODER}embed_tokens.", HEAD)
    extra = sorted(
        name
        for name in artifact.weight_map
        if name.startswith("language_model.") and not name.startswith(known)
    )
    if extra:
        raise ArtifactError(
            f"{artifact.folder / INDEX} names {len(extra)} tensors for which the config has no place, such as "
            f"{extra[0]}; export again"
        )

    def place(module: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Fill one module from its tensors by relative name; linears become 4-bit ones."""
        left = dict(tensors)
        for path, child in list(module.named_modules()):
            if not isinstance(child, nn.Linear):
                continue
            packed = {key: left.pop(f"{path}.{key}") for key in PACKED if f"{path}.{key}" in left}
            quantized = unpack_gptq(packed, artifact.group_size, f"{name}{path}")
            found = (quantized.out_features, quantized.in_features)
            expected = (child.out_features, child.in_features)
            if found != expected:
                raise ArtifactError(f"{name}{path} is {list(found)}, expected {list(expected)}; export again")
            module.set_submodule(path, Int4Linear(quantized, dtype, device))
        for path, parameter in list(module.named_parameters()):
            tensor = left.pop(path, None)
            if tensor is None or tensor.shape != parameter.shape:
                found_shape = "missing" if tensor is None else list(tensor.shape)
                raise ArtifactError(
                    f"{name}{path} is {found_shape}, expected {list(parameter.shape)}; export again"
                )
            owner, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(owner), leaf, _frozen(tensor.to(device, dtype)))
        if left:
            raise ArtifactError(
                f"{name} has tensors that pixedge does not know: {', '.join(sorted(left)[:3])}; export again"
            )

    for index, (prefix, layer) in enumerate(zip(layers, decoder.layers, strict=True)):
        place(layer, prefix, artifact.tensors(prefix))
        if progress:
            progress(index + 1, total)
    place(decoder.norm, DECODER + "norm.", artifact.tensors(DECODER + "norm."))
    place(decoder.embed_tokens, DECODER + "embed_tokens.", artifact.tensors(DECODER + "embed_tokens."))
    if progress:
        progress(total - 1, total)
    head = artifact.tensors(HEAD).get("")
    if head is None or head.shape != (config.vocab_size, config.dim):
        raise ArtifactError(f"{HEAD} is missing or misshapen; export again")
    decoder.lm_head = Int8Linear(head, dtype, device)
    if progress:
        progress(total, total)
    return decoder.eval().requires_grad_(False)


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file in hexadecimal; progress gets the bytes of every block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); export again") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is not a JSON object; export again")
    return data
