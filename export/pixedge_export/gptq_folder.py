"""A GPTQ folder that another tool wrote, such as GPTQModel or AutoGPTQ: opened, or refused with the reason.

Like a checkpoint in Hugging Face's layout, but with four tensors in place of each linear of the decoder (see
pixedge.packing). Opening reads headers only, so everything that can be told from them is told at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pixedge.artifact import ZERO_OFFSETS
from pixedge.config import HF_FILE, ModelConfig
from pixedge.errors import CheckpointError
from pixedge.packing import BITS, NIBBLES, natural_groups
from pixedge.recognition import check_folder, check_model
from pixedge.section import read_json
from pixedge.tensor_shapes import exported_shapes
from pixedge_export.checkpoint import Checkpoint, module_to_hub, weight_files
from pixedge_export.safetensors_header import StoredTensor, read_header
from pixedge_export.weights import Weights

QUANTIZE_FILE = "quantize_config.json"

# The same statement under the names that tools and versions give it.
_METHOD = ("quant_method", "method")
_FORMAT = ("checkpoint_format", "format")
_DENSE_TYPES = ("BF16", "F16", "F32")
_TYPES = {"qweight": ("I32",), "qzeros": ("I32",), "g_idx": ("I32",), "scales": ("F16", "BF16")}


@dataclass(frozen=True)
class GptqFolder:
    """An opened folder: complete, of the right shapes, its decoder's linears in 4 bits and nothing else.

    group_size: -1 for one group of all inputs. checkpoint_format: a key of ZERO_OFFSETS. hf_config: the
    contents of config.json. quantization: what config.json and quantize_config.json say of the weights.
    shapes: of the tensors that an imported folder holds, by canonical name.
    """

    checkpoint: Checkpoint
    group_size: int
    checkpoint_format: str
    hf_config: Mapping[str, Any]
    quantization: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def config(self) -> ModelConfig:
        """The geometry."""
        return self.checkpoint.config

    @property
    def weights(self) -> Weights:
        """What reads the tensors that are not quantised."""
        return Weights(self.checkpoint)

    def packed(self, name: str) -> Tensor:
        """Return a tensor of a quantised linear as it is stored.

        A g_idx that the folder leaves out is made: such folders have their inputs in natural order.
        """
        if name.endswith(".g_idx") and name not in self.checkpoint.names():
            (inputs,) = self.shapes[name]
            return natural_groups(inputs, inputs if self.group_size == -1 else self.group_size)
        return self.checkpoint.tensor(name)


def open_gptq_folder(folder: str | Path) -> GptqFolder:
    """Open a folder of 4-bit weights in AutoGPTQ's format.

    Raises CheckpointError when something is missing, damaged, or quantised in a way that pixedge does not
    run; ConfigError for an architecture that it does not support.
    """
    folder = Path(folder)
    check_folder(folder)
    if not (folder / HF_FILE).is_file():
        what = f"has no {HF_FILE}" if folder.is_dir() else "is not a folder"
        raise CheckpointError(f"{folder} {what}; give the folder that GPTQModel or AutoGPTQ wrote")
    data = read_json(folder / HF_FILE)
    if not isinstance(data, dict):
        raise CheckpointError(f"{folder / HF_FILE} is not a JSON object; fetch it again")
    check_model(data, folder / HF_FILE)
    quantization = _quantization(folder, data)
    group_size, checkpoint_format = _check_quantization(folder, quantization)
    config = ModelConfig.from_hf(data, folder / HF_FILE)
    files = weight_files(folder, _stem(folder))
    found: dict[str, StoredTensor] = {}
    for file in files:
        for stored in read_header(file):
            name = module_to_hub(stored.name)
            if name in found:
                raise CheckpointError(f"{file}: {stored.name} is also in {found[name].file.name}")
            found[name] = stored
    checkpoint = Checkpoint(config, folder, "hf", files, MappingProxyType(found))
    shapes = exported_shapes(config, group_size)
    _check_groups(folder, shapes, group_size)
    _check_names(checkpoint, shapes, ordered=not quantization.get("desc_act"))
    for name, shape in shapes.items():
        if name in found:
            _check_tensor(found[name], shape, group_size)
    return GptqFolder(checkpoint, group_size, checkpoint_format, data, quantization, shapes)


def _quantization(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Join what config.json and quantize_config.json say; the former wins, as in other engines."""
    said: dict[str, Any] = {}
    if (folder / QUANTIZE_FILE).is_file():
        data = read_json(folder / QUANTIZE_FILE)
        said |= data if isinstance(data, dict) else {}
        said.setdefault("quant_method", said.get("method", "gptq"))  # AutoGPTQ's own files do not name it
    inside = config.get("quantization_config")
    said |= inside if isinstance(inside, dict) else {}
    if not said:
        raise CheckpointError(
            f"{folder} has neither a quantization_config in {HF_FILE} nor a {QUANTIZE_FILE}, so its weights "
            f"are not quantised; make 4-bit ones: pixedge export {folder}"
        )
    return said


def _check_quantization(folder: Path, said: Mapping[str, Any]) -> tuple[int, str]:
    """Give the group size and the format of zero points, or say what pixedge does not run."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(
            f"{folder} cannot be imported: {what}; quantise the original with GPTQ in 4 bits, or give the "
            "original to `pixedge export`"
        )

    method = next((str(said[key]) for key in _METHOD if said.get(key)), "gptq").lower()
    if method != "gptq":
        raise refuse(f"its weights were quantised with {method!r:.40}, and pixedge runs only GPTQ")
    form = next((str(said[key]) for key in _FORMAT if said.get(key)), "gptq").lower()
    if said.get("is_marlin_format"):
        form = "marlin"
    if form not in ZERO_OFFSETS:
        raise refuse(
            f"its weights are packed as {form!r:.40}, and pixedge reads {' and '.join(ZERO_OFFSETS)}"
        )
    if said.get("bits") != BITS:
        raise refuse(f"its weights have {said.get('bits')!r:.40} bits, and pixedge runs 4-bit ones")
    if said.get("pack_dtype", "int32") != "int32":
        raise refuse(f"its weights are packed into {said['pack_dtype']!r:.40}, and pixedge reads int32")
    if said.get("rotation"):
        raise refuse(f"its weights were rotated ({said['rotation']!r:.40}), which pixedge does not undo")
    if said.get("lm_head"):
        raise refuse("its output head is quantised, and pixedge rounds a 16-bit one while loading")
    size = said.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or not (size == -1 or size > 0):
        raise refuse(f"group_size is {size!r:.40}, which is neither -1 nor a number of inputs")
    return size, form


def _stem(folder: Path) -> str:
    """Find what the weights files' names begin with: model, or AutoGPTQ's gptq_model-4bit-128g."""
    if any(folder.glob("model*.safetensors")):
        return "model"
    others = sorted(folder.glob("gptq_model*.safetensors"))
    if not others:
        raise CheckpointError(
            f"{folder} has no weights in safetensors files (other formats, such as .bin and .pt, are not "
            "read); save the quantised model again as safetensors"
        )
    return re.sub(r"-\d{5}-of-\d{5}$", "", others[0].stem)


def _check_groups(folder: Path, shapes: Mapping[str, tuple[int, ...]], group_size: int) -> None:
    """Refuse groups that do not fill a linear's inputs."""
    for name, shape in shapes.items():
        if name.endswith(".g_idx") and group_size != -1 and shape[0] % group_size:
            raise CheckpointError(
                f"{folder} cannot be imported: the {shape[0]} inputs of {name.removesuffix('.g_idx')} do not "
                f"divide into groups of {group_size}; quantise it with another group size"
            )


def _check_names(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], ordered: bool) -> None:
    """Refuse tensors that are missing, too many, or not quantised as they should be."""
    folder, found = checkpoint.folder, set(checkpoint.names())
    elsewhere = sorted(name for name in found - set(shapes) if name.endswith(".qweight"))
    if elsewhere:
        raise CheckpointError(
            f"{folder} cannot be imported: {elsewhere[0].removesuffix('.qweight')} is quantised, and pixedge "
            "runs the vision tower, the projector and the head from 16 bits; quantise the decoder's layers "
            "alone"
        )
    for name in shapes:
        linear = name.removesuffix("qweight")
        if linear != name and name not in found and f"{linear}weight" in found:
            raise CheckpointError(
                f"{folder} cannot be imported: {linear[:-1]} is not quantised, and pixedge runs all seven "
                "linears of every decoder layer in 4 bits; quantise it without exceptions (dynamic)"
            )
    missing = [name for name in shapes if name not in found and not (ordered and name.endswith(".g_idx"))]
    if missing:
        raise CheckpointError(f"{folder} lacks {_first_three(missing)}; fetch or quantise it again")
    # Old versions of AutoGPTQ gave every linear a bias, and those without one a bias of zeros.
    biases = {name for name in found if name.endswith(".bias") and f"{name[:-4]}qweight" in shapes}
    wrong = sorted(name for name in biases if bool(checkpoint.tensor(name).count_nonzero()))
    if wrong:
        raise CheckpointError(
            f"{folder} cannot be imported: {wrong[0]} is not zero, and Mistral's linears have no bias; it is "
            "another architecture"
        )
    extra = sorted(found - set(shapes) - biases)
    if extra:
        raise CheckpointError(f"{folder} also holds {_first_three(extra)}, for which {HF_FILE} has no place")


def _check_tensor(stored: StoredTensor, shape: tuple[int, ...], group_size: int) -> None:
    types = _TYPES.get(stored.name.rpartition(".")[2], _DENSE_TYPES)
    if stored.dtype not in types:
        raise CheckpointError(
            f"{stored.file}: {stored.name} is stored as {stored.dtype}, but only {' and '.join(types)} is "
            "read; quantise the original again"
        )
    if stored.shape != shape:
        packed = f" in words of {NIBBLES} with group_size {group_size}" if types is not _DENSE_TYPES else ""
        raise CheckpointError(
            f"{stored.file}: {stored.name} has the shape {list(stored.shape)}, but {HF_FILE} asks for "
            f"{list(shape)}{packed}; quantise it with one setting for all linears"
        )


def _first_three(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
