"""A Pixtral checkpoint on disk: Mistral's and Hugging Face's layouts as the same canonical tensors.

Canonical names are those of the Hugging Face hub's LlavaForConditionalGeneration checkpoints; query and key
rows are ordered for half-split rotary pairs. Mistral stores them for interleaved pairs, and they are permuted
as they are read. Opening reads headers only; tensors come from mapped files, one at a time.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from pixedge.config import HF_FILE, PARAMS_FILE, ModelConfig
from pixedge.errors import CheckpointError
from pixedge.plain_name import is_plain_name
from pixedge.recognition import check_folder, check_model, quantised_with
from pixedge.section import read_json
from pixedge_export.canonical import (
    expected_shapes,
    rotary_heads,
    to_half_split,
    to_interleaved,
    to_mistral_name,
)
from pixedge_export.mapped_tensor import map_tensor
from pixedge_export.safetensors_header import StoredTensor, read_header
from pixedge_export.safetensors_writer import save_tensors

__all__ = [
    "Checkpoint",
    "Layout",
    "expected_shapes",
    "module_to_hub",
    "open_checkpoint",
    "save_checkpoint",
    "to_mistral_name",
    "weight_files",
]

Layout = Literal["mistral", "hf"]

TOKENIZER_FILE = "tekken.json"
_STEM: Mapping[Layout, str] = MappingProxyType({"mistral": "consolidated", "hf": "model"})
_CONFIG: Mapping[Layout, str] = MappingProxyType({"mistral": PARAMS_FILE, "hf": HF_FILE})
_DTYPES = ("BF16", "F16", "F32")
_HASH_CHUNK = 1 << 22

# transformers 5 names its modules so in memory; its save_pretrained writes the hub's names.
_MODULE_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: complete, of the right shapes, with files as long as their headers say."""

    config: ModelConfig
    folder: Path
    layout: Layout
    weight_files: tuple[Path, ...]
    _stored: Mapping[str, StoredTensor]

    def names(self) -> tuple[str, ...]:
        """Give the canonical tensor names, in the order of expected_shapes."""
        return tuple(self._stored)

    def tensor(self, name: str) -> torch.Tensor:
        """Give one canonical tensor, in the dtype it is stored in (bfloat16, float16 or float32).

        The pages of its file are mapped for as long as the tensor lives. Query and key weights of Mistral's
        layout are fresh copies. Raises CheckpointError when the file has changed or gone since opening.
        """
        stored = self._stored[name]
        try:
            tensor = map_tensor(stored)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{stored.file}: {stored.name} cannot be read any more ({error})"
            ) from error
        heads = rotary_heads(name, self.config) if self.layout == "mistral" else None
        return tensor if heads is None else to_half_split(tensor, heads)

    def tokenizer_file(self) -> Path:
        """Give the path of tekken.json; CheckpointError where the folder lacks it."""
        file = self.folder / TOKENIZER_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{self.folder} has no {TOKENIZER_FILE}; copy it there from Mistral's own repository of the "
                "same model (mistralai/Pixtral-12B-2409 for Pixtral-12B)"
            )
        return file

    def fingerprint(self) -> list[list[str | int]]:
        """Give the name, size and time of change (nanoseconds) of every file that digest would read."""
        stats = [(file.name, file.stat()) for file in self._digested()]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

    def nbytes(self) -> int:
        """Give the bytes that digest reads."""
        return sum(file.stat().st_size for file in self._digested())

    def digest(self, progress: Callable[[int], object] | None = None) -> str:
        """Give the sha256, in hexadecimal, of the config and weights files: their names, sizes and contents.

        `progress` is called with the bytes read since its last call; they add up to nbytes().
        """
        digest = hashlib.sha256()
        for path in self._digested():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
                    if progress is not None:
                        progress(len(chunk))
        return digest.hexdigest()

    def _digested(self) -> tuple[Path, ...]:
        return (self.folder / _CONFIG[self.layout], *self.weight_files)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a folder in either layout; where it holds both, Mistral's is read.

    Everything that headers can tell is checked here. Raises CheckpointError for files that are missing,
    truncated or corrupt and for tensors that are missing, extra, misshapen or of another dtype than
    bfloat16, float16 and float32; ConfigError for an architecture that pixedge does not support.
    """
    folder = Path(folder)
    layout = _find_layout(folder)
    data = read_json(folder / _CONFIG[layout])
    check_model(data, folder / _CONFIG[layout])
    if method := quantised_with(data):
        remedy = "; 4-bit GPTQ weights are taken by pixedge import" if method == "GPTQ" else ""
        raise CheckpointError(
            f"{folder / _CONFIG[layout]} says that these weights are quantised already ({method}); "
            f"give the original 16-bit checkpoint{remedy}"
        )
    read = ModelConfig.from_params if layout == "mistral" else ModelConfig.from_hf
    config = read(data, folder / _CONFIG[layout])
    files = weight_files(folder, _STEM[layout])
    found: dict[str, StoredTensor] = {}
    for file in files:
        for stored in read_header(file):
            name = module_to_hub(stored.name) if layout == "hf" else stored.name
            if name in found:
                raise CheckpointError(f"{file}: {stored.name} is also in {found[name].file.name}")
            found[name] = stored
    return Checkpoint(config, folder, layout, files, MappingProxyType(_match(config, layout, files, found)))


def save_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    layout: Layout,
    max_shard_bytes: int = 4 << 30,
) -> None:
    """Write canonical tensors as a checkpoint, in one weights file or in shards with an index.

    Weights of the same layout that the folder already holds are replaced; the tokenizer is left to the
    caller. At most one shard is held in memory beyond `tensors`. Raises ValueError when the tensors are not
    those of expected_shapes(config).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = expected_shapes(config)
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise ValueError("the tensors' names and shapes are not those of expected_shapes(config)")
    stem = _STEM[layout]
    for old in (*folder.glob(f"{stem}*.safetensors"), folder / f"{stem}.safetensors.index.json"):
        old.unlink(missing_ok=True)

    shards = list(_split({name: tensors[name].nbytes for name in shapes}, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        shard: dict[str, torch.Tensor] = {}
        for name in names:
            heads = rotary_heads(name, config) if layout == "mistral" else None
            tensor = tensors[name].detach().cpu()
            stored = to_mistral_name(name) if layout == "mistral" else name
            shard[stored] = (tensor if heads is None else to_interleaved(tensor, heads)).contiguous()
            weight_map[stored] = f"{stem}{part}.safetensors"
        save_tensors(folder / f"{stem}{part}.safetensors", shard)
    if len(shards) > 1:
        total = sum(tensors[name].nbytes for name in shapes)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{stem}.safetensors.index.json", index)
    dtype = str(tensors["language_model.model.norm.weight"].dtype).removeprefix("torch.")
    _write_json(
        folder / _CONFIG[layout],
        config.to_params() if layout == "mistral" else config.to_hf() | {"torch_dtype": dtype},
    )


def _find_layout(folder: Path) -> Layout:
    check_folder(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds the checkpoint")
    layouts: tuple[Layout, ...] = ("mistral", "hf")
    for layout in layouts:
        if (folder / _CONFIG[layout]).is_file() and any(folder.glob(f"{_STEM[layout]}*.safetensors")):
            return layout
    for layout in layouts:
        if (folder / _CONFIG[layout]).is_file():
            raise CheckpointError(
                f"{folder} has {_CONFIG[layout]} but no weights: neither {_STEM[layout]}.safetensors nor its "
                "shards are there (other formats, such as .pth and .bin, are not read)"
            )
    raise CheckpointError(
        f"{folder} has neither {PARAMS_FILE} nor {HF_FILE}; give the folder that holds the checkpoint"
    )


def weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """List the weights files: those of the index, else the whole file, else all shards."""
    index = folder / f"{stem}.safetensors.index.json"
    whole = folder / f"{stem}.safetensors"
    if index.is_file():
        data: Any = read_json(index)
        weight_map = data.get("weight_map") if isinstance(data, dict) else None
        values = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not values or not all(is_plain_name(name) for name in values):
            raise CheckpointError(f"{index} has no weight_map from tensors to file names; fetch it again")
        names = set(values)
    elif whole.is_file():
        names = {whole.name}
    else:
        names = {path.name for path in folder.glob(f"{stem}*.safetensors")}
        for count in {int(match[1]) for name in names if (match := re.search(r"-of-(\d{5})\.", name))}:
            names |= {f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise CheckpointError(f"{folder} lacks {_first_three(absent)}; fetch the rest of the checkpoint")
    return tuple(folder / name for name in sorted(names))


def _match(
    config: ModelConfig, layout: Layout, files: tuple[Path, ...], found: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Map each canonical name to its stored tensor, or say what does not fit."""
    shapes = expected_shapes(config)
    stored_names = {name: to_mistral_name(name) if layout == "mistral" else name for name in shapes}
    where = files[0] if len(files) == 1 else files[0].parent
    missing = [stored for stored in stored_names.values() if stored not in found]
    if missing:
        raise CheckpointError(
            f"{where} lacks {_first_three(missing)}, which {_CONFIG[layout]} asks for; fetch it again"
        )
    extra = [found[name].name for name in sorted(found.keys() - set(stored_names.values()))]
    if extra:
        raise CheckpointError(
            f"{where} also holds {_first_three(extra)}, for which {_CONFIG[layout]} has no place"
        )
    for name, shape in shapes.items():
        stored = found[stored_names[name]]
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"{stored.file}: {stored.name} is stored as {stored.dtype}, but only BF16, F16 and F32 are "
                "read; give the original 16-bit checkpoint"
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: {stored.name} has the shape {list(stored.shape)}, but "
                f"{_CONFIG[layout]} asks for {list(shape)}"
            )
    return {name: found[stored_names[name]] for name in shapes}


def _first_three(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def module_to_hub(name: str) -> str:
    """Give the hub's name of a tensor that transformers 5 names as its modules are named in memory."""
    for module, hub in _MODULE_PREFIXES:
        if name.startswith(module):
            return hub + name.removeprefix(module)
    return name


def _split(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Cut names, in order, into runs of at most `most` bytes; a larger tensor stands alone."""
    run: list[str] = []
    total = 0
    for name, size in sizes.items():
        if run and total + size > most:
            yield run
            run, total = [], 0
        run.append(name)
        total += size
    yield run


def _write_json(file: Path, data: object) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
