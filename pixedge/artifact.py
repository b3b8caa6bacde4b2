"""An exported folder: opened by its manifest, loaded layer by layer, verified by its hashes.

pixedge.json is written last and names every other file with its size and sha256, so a folder that has it is
complete. Only the two reports are left out: they hold how long the export took, and with them the same export
would give another pixedge.json every time. Everything that the runtime must know stands in pixedge.json or in
params.json; nothing is guessed from names.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pixedge.config import PARAMS_FILE, ModelConfig
from pixedge.decoder import Decoder, DecoderLayer
from pixedge.errors import ArtifactError, CheckpointError
from pixedge.kernels.cpu.compiled import announce, release
from pixedge.kernels.cpu.fused_layer import fuse
from pixedge.kernels.cuda import available
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.packing import GptqWeight, QuantizedWeight, read_gptq, read_imported_gptq
from pixedge.plain_name import is_plain_name, leads_out
from pixedge.section import MAX_JSON_BYTES, read_json
from pixedge.tensor_shapes import DECODER, HEAD, exported_shapes
from pixedge.terminal import complain

if TYPE_CHECKING:
    from pixedge.gpu_decoder import GpuDecoder

MANIFEST = "pixedge.json"
INDEX = "model.safetensors.index.json"
REPORT = "export_report.json"
REPORT_PAGE = "export_report.html"
REPORTS = (REPORT, REPORT_PAGE)
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20
"""Pixtral-12B's has 30 kB. Its known conversation is tokenised, which takes time by its length."""
_OPTIONAL = ("vision_encoder_fused.onnx",)
_READ = (PARAMS_FILE, "tekken.json", INDEX, "vision_encoder.onnx", "vision_encoder_cpu.onnx", *_OPTIONAL)
"""What is opened by its name; older folders lack the optional ones."""
PACKED = ("qweight", "qzeros", "scales", "g_idx")
IMPORTED = "imported"
"""The recipe's method where pixedge did not quantise: any zero points, groups of any inputs."""
ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What a checkpoint_format takes from a zero point to store it."""

Progress = Callable[[int, int], None]
"""Called with units done and in all."""

Unpack = Callable[[Mapping[str, Tensor], str], QuantizedWeight | GptqWeight]
"""Reads a 4-bit weight from its four tensors; the linear's name is for errors."""


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says about one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """An exported folder whose files are all there and as long as the manifest says.

    manifest: pixedge.json. weight_map: tensor name -> file name. group_size: inputs that share a scale; -1,
    in an imported folder only, for all inputs of a linear. zero_offset: what was taken from each zero point
    to store it in an imported folder; None where pixedge made the weights.
    """

    folder: Path
    config: ModelConfig
    manifest: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    group_size: int
    zero_offset: int | None
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
                raise _unreadable(self.folder / file, self.folder, error) from error
        return found

    def unpack(self, tensors: Mapping[str, Tensor], name: str) -> GptqWeight:
        """Read a 4-bit weight from its four tensors; ArtifactError names the linear where they are wrong."""
        if self.zero_offset is None:
            return read_gptq(tensors, self.group_size, name)
        return read_imported_gptq(tensors, self.group_size, self.zero_offset, name)


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
    if leads_out(path):
        raise ArtifactError(f"{path} is a link out of the folder; copy the folder with its files")
    manifest = _read_json(path, MAX_MANIFEST_BYTES)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version!r:.40} and this pixedge reads {FORMAT_VERSION}; "
            "export again, or install the pixedge that wrote it"
        )
    try:
        files = {
            name: FileEntry(_whole(entry["bytes"]), str(entry["sha256"]))
            for name, entry in manifest["files"].items()
        }
        recipe = manifest["recipe"]
        group_size = _whole(recipe["group_size"])
        imported = recipe.get("method") == IMPORTED
        if group_size < 1 and not (imported and group_size == -1):
            raise ValueError(f"group_size is {group_size}")
        zero_offset = ZERO_OFFSETS[recipe["checkpoint_format"]] if imported else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r:.120}); export again") from error
    strange = [name for name in files if not is_plain_name(name)]
    if strange:
        raise ArtifactError(f"{path} lists {strange[0]!a:.80}, which is not a file's name; export again")
    for name in _READ:
        if name not in files and (name not in _OPTIONAL or os.path.lexists(folder / name)):
            raise ArtifactError(f"{path} does not list {name}; export again")
    for name, entry in files.items():
        file = folder / name
        if leads_out(file):
            raise ArtifactError(f"{file} is a link out of the folder; copy the folder with its files")
        found = file.stat().st_size if file.is_file() else None
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise ArtifactError(
                f"{file} {state}, expected {entry.bytes:,} bytes; copy the folder again or export again"
            )
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ArtifactError(f"{folder / INDEX} has no weight_map; export again")
    strange = [name for name, file in weight_map.items() if not isinstance(file, str) or file not in files]
    if strange:
        raise ArtifactError(
            f"{folder / INDEX} has {strange[0]} in {weight_map[strange[0]]!r:.80}, which {MANIFEST} does not "
            "list; export again"
        )
    return Artifact(folder, ModelConfig.load(folder), manifest, files, group_size, zero_offset, weight_map)


def check_tensors(artifact: Artifact) -> None:
    """Compare the names, shapes and types in every shard's header with the config and with the index.

    Raises ArtifactError for the first tensor that is missing, extra, misshapen or somewhere else.
    """
    expected = exported_shapes(artifact.config, artifact.group_size)
    found: dict[str, str] = {}
    for file in sorted(set(artifact.weight_map.values())):
        path = artifact.folder / file
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118  # a shard is no mapping
                    view = shard.get_slice(name)
                    _check_tensor(path, name, view.get_dtype(), tuple(view.get_shape()), expected.get(name))
                    found[name] = file
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, artifact.folder, error) from error
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        raise ArtifactError(f"{artifact.folder} lacks {missing[0]}{more}; export again")
    wrong = sorted(name for name, _ in found.items() ^ artifact.weight_map.items())
    if wrong:
        raise ArtifactError(
            f"{artifact.folder / INDEX} has {wrong[0]} in {artifact.weight_map.get(wrong[0], 'no file')}, "
            f"but it is in {found.get(wrong[0], 'none')}; export again"
        )


def load_any_decoder(
    artifact: Artifact,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    *,
    host_embeddings: bool = False,
) -> "Decoder | GpuDecoder":
    """Load the decoder as it runs best: by the GPU's kernels where they can, else as ``load_decoder`` does.

    host_embeddings: keep the table of embeddings in host memory, which the GPU's kernels allow. Where they
    cannot run on a GPU with 16-bit activations, stderr tells why.
    """
    if device.type != "cuda" or dtype.itemsize != 2:
        return load_decoder(artifact, dtype, device, progress)
    if available(device):
        from pixedge.gpu_decoder import load_gpu_decoder
        from pixedge.kernels.cuda.int4_weight import UnsuitedWeightError

        check_tensors(artifact)
        try:
            return load_gpu_decoder(artifact, dtype, device, progress, host_embeddings=host_embeddings)
        except UnsuitedWeightError as error:
            reason = f"this folder has {error}, which the GPU kernels do not take"
    else:
        reason = "the GPU kernels need triton and a GPU of compute capability 8.0 or later"
    complain(f"{reason}, so answers will be slower")
    return load_decoder(artifact, dtype, device, progress)


def load_decoder(
    artifact: Artifact, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
) -> Decoder:
    """Build the decoder with 4-bit linears and an 8-bit head, reading one layer at a time.

    dtype is that of activations, norms and embeddings; 16-bit embeddings stay in the mapped file. A layer's
    tensors are let go of when it is packed, so that no second copy of the weights builds up. Every tensor of
    the folder must find its place, and every place its tensor: ArtifactError names one that does not, before
    any is read.
    """
    check_tensors(artifact)
    if device.type == "cpu":
        announce()
    config = artifact.config.decoder
    with torch.device("meta"):
        decoder = Decoder(config)
    parts = [f"layers.{index}." for index in range(config.n_layers)] + ["norm.", "embed_tokens."]
    for done, part in enumerate(parts):
        if progress:
            progress(done, len(parts) + 1)
        tensors = artifact.tensors(DECODER + part)
        module = decoder.get_submodule(part.removesuffix("."))
        fill(module, tensors, DECODER + part, artifact.unpack, dtype, device)
        for name, tensor in tensors.items():
            if name.endswith("qweight"):
                release(tensor)
    if progress:
        progress(len(parts), len(parts) + 1)
    fuse([layer for layer in decoder.layers if isinstance(layer, DecoderLayer)])
    head = artifact.tensors(HEAD)[""]
    decoder.lm_head = Int8Linear(head, dtype, device)
    release(head)
    if progress:
        progress(len(parts) + 1, len(parts) + 1)
    return decoder.eval().requires_grad_(False)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    name: str,
    unpack: Unpack,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give a module on the meta device its tensors, by their names in it; linears become 4-bit ones.

    name is the module's own, for the errors that ``unpack`` raises.
    """
    for path, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            packed = {key: tensors[f"{path}.{key}"] for key in PACKED}
            quantized = unpack(packed, f"{name}{path}")
            module.set_submodule(path, Int4Linear(quantized, dtype, device))
    for path, _ in list(module.named_parameters()):
        owner, _, leaf = path.rpartition(".")
        value = nn.Parameter(tensors[path].to(device, dtype), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, value)


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file in hexadecimal; progress gets the bytes of every block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def _check_tensor(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    """Compare one header entry with what the config asks for."""
    if expected is None:
        raise ArtifactError(f"{path} holds {name}, for which the config has no place; export again")
    if shape != expected:
        raise ArtifactError(f"{path}: {name} is {list(shape)}, expected {list(expected)}; export again")
    if name.endswith(PACKED):
        return  # read_gptq knows their types
    # the vision graphs read their weights by offset, as float16
    allowed = ("BF16", "F16", "F32") if name.startswith("language_model.") else ("F16",)
    if dtype not in allowed:
        raise ArtifactError(f"{path}: {name} is {dtype}, expected {' or '.join(allowed)}; export again")


def _unreadable(path: Path, folder: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be read ({error}); run `pixedge verify {folder}` and copy the folder or export again"
    )


def _whole(value: object) -> int:
    """Return a whole number that a file system or a tensor could have; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise ValueError(f"{value!r:.40} is not a whole number below 2**63")
    return value


def _read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    try:
        data = read_json(path, most)
    except CheckpointError as error:
        raise ArtifactError(f"{str(error).rpartition(';')[0]}; export again") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is not a JSON object; export again")
    return data
