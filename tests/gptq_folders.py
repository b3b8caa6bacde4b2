"""Small random GPTQ folders as other tools write them, packed with numpy by the format's definition alone."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixedge.config import ModelConfig
from pixedge.tensor_shapes import is_quantized
from pixedge_export.tekken import to_hf_tokenizer
from tests.random_models import Tensors, random_tensors
from tests.small_exports import CONFIG as SMALL
from tests.small_exports import TEKKEN

# Inputs of 128 and 256: groups of 32, 64 and 128 fill them.
CONFIG: ModelConfig = replace(
    SMALL, decoder=replace(SMALL.decoder, dim=128, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=256)
)
MODULES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


@dataclass(frozen=True)
class Variant:
    """How a folder is made. modules: transformers 5's names in memory in place of the hub's.

    legacy: as AutoGPTQ wrote it, with a file name and a quantize_config.json of its own and biases of zeros.
    """

    group_size: int = 32
    symmetric: bool = False
    act_order: bool = True
    checkpoint_format: str = "gptq"
    scale_dtype: torch.dtype = torch.float16
    modules: bool = False
    with_g_idx: bool = True
    legacy: bool = False


@dataclass(frozen=True)
class Packed:
    """A quantised linear: the tensors that are stored, and the weight [out, in] that they stand for."""

    tensors: dict[str, Tensor]
    weight: Tensor


def pack(weight: Tensor, variant: Variant, seed: int) -> Packed:
    """Round a weight to 4 bits and pack it.

    Every eighth output has no negative weight, so that its asymmetric zero point is 0.
    """
    w = weight.double().numpy().copy()
    n_in = w.shape[1]
    size = n_in if variant.group_size == -1 else variant.group_size
    w[::8] = abs(w[::8])
    order = np.arange(n_in)
    if variant.act_order:
        np.random.default_rng(seed).shuffle(order)
    g_idx = np.empty(n_in, dtype=np.int32)
    g_idx[order] = np.arange(n_in) // size

    groups = n_in // size
    low = np.stack([w[:, g_idx == g].min(1).clip(max=0) for g in range(groups)])  # [groups, out]
    high = np.stack([w[:, g_idx == g].max(1).clip(min=0) for g in range(groups)])
    spread = np.maximum(high, -low) / 7.5 if variant.symmetric else (high - low) / 15
    scales = torch.from_numpy(spread).to(variant.scale_dtype)
    s = scales.double().numpy()
    zeros = np.full(s.shape, 8) if variant.symmetric else np.round(-low / s).clip(0, 15).astype(int)
    q = np.round(w / s[g_idx].T + zeros[g_idx].T).clip(0, 15).astype(int)
    dequantized = s[g_idx].T * (q - zeros[g_idx].T)

    qzeros = _words(zeros.T).T
    if variant.checkpoint_format == "gptq":
        qzeros = qzeros - np.uint32(0x11111111)  # as GPTQModel does it, borrowing where a zero point is 0
    tensors = {
        "qweight": torch.from_numpy(_words(q.T).view(np.int32)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(qzeros).view(np.int32)),
        "scales": scales,
        "g_idx": torch.from_numpy(g_idx),
    }
    return Packed(tensors, torch.from_numpy(dequantized).float())


def write_gptq_folder(folder: Path, variant: Variant = Variant()) -> Tensors:
    """Write a folder; return its canonical tensors, float32, with the weights that the packed ones mean."""
    folder.mkdir(parents=True, exist_ok=True)
    stored: Tensors = {}
    meant: Tensors = {}
    for seed, (name, tensor) in enumerate(random_tensors(CONFIG, 5).items()):
        if is_quantized(name):
            linear = name.removesuffix(".weight")
            packed = pack(tensor, variant, seed)
            kept = {
                key: value for key, value in packed.tensors.items() if key != "g_idx" or variant.with_g_idx
            }
            if variant.legacy:
                kept["bias"] = torch.zeros(len(tensor), dtype=torch.float16)
            stored |= {f"{linear}.{key}": value for key, value in kept.items()}
            meant[name] = packed.weight
        else:
            stored[name] = tensor.half() if name.startswith(("vision", "multi")) else tensor.bfloat16()
            meant[name] = stored[name].float()
    if variant.modules:
        stored = {_module_name(name): tensor for name, tensor in stored.items()}
    stem = f"gptq_model-4bit-{variant.group_size}g" if variant.legacy else "model"
    save_file(
        {name: tensor.contiguous() for name, tensor in stored.items()},
        folder / f"{stem}.safetensors",
        {"format": "pt"},
    )
    _write_configs(folder, variant)
    shutil.copyfile(TEKKEN, folder / "tekken.json")
    return meant


def _write_configs(folder: Path, variant: Variant) -> None:
    config = CONFIG.to_hf() | {"dtype": "bfloat16"}
    said = {
        "bits": 4,
        "group_size": variant.group_size,
        "sym": variant.symmetric,
        "desc_act": variant.act_order,
        "damp_percent": 0.05,
    }
    if variant.legacy:
        _write(folder / "quantize_config.json", said | {"static_groups": False, "model_name_or_path": None})
    else:
        form = {"quant_method": "gptq", "checkpoint_format": variant.checkpoint_format, "lm_head": False}
        # as GPTQModel 7.7 writes it through transformers 5, a copy at the top included
        rope = {"rope_theta": config["text_config"].pop("rope_theta"), "rope_type": "default"}
        config["rope_parameters"] = config["text_config"]["rope_parameters"] = rope
        config["quantization_config"] = said | form | {"meta": {"quantizer": ["gptqmodel:7.7.0"]}}
        to_hf_tokenizer(TEKKEN, folder, CONFIG)
    _write(folder / "config.json", config)


def _module_name(name: str) -> str:
    for hub, module in MODULES:
        if name.startswith(hub):
            return module + name.removeprefix(hub)
    return name


def _words(values: np.ndarray) -> np.ndarray:
    """Pack eight rows into one of uint32, the first in the lowest bits: [rows / 8, columns]."""
    words = np.zeros((len(values) // 8, values.shape[1]), dtype=np.uint32)
    for k in range(8):
        words |= values[k::8].astype(np.uint32) << np.uint32(4 * k)
    return words


def _write(file: Path, data: object) -> None:
    file.write_text(json.dumps(data), encoding="utf-8")
