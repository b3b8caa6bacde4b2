"""A vision encoder of random weights, exported as a checkpoint's is: to time what needs no sense."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from pixedge.config import PARAMS_FILE, ModelConfig
from pixedge_export.encoder import VisionEncoder
from pixedge_export.vision import export_vision

SHARD = "model-00001-of-00001.safetensors"


def write_encoder(folder: Path, config: ModelConfig) -> None:
    """Write a random encoder of bfloat16 values in float16, as an export of a checkpoint has them.

    Weights have heavy tails, loud channels and norms with outliers. In ``folder`` come to lie params.json,
    the weights and the graphs over them.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in VisionEncoder(config).state_dict().items()}
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            value = torch.randn(shape, generator=generator) * 0.3
            if "norm" in name or "ln_pre" in name:
                value.exp_()[torch.randperm(shape[0], generator=generator)[: shape[0] // 128]] *= 10
        else:
            value = torch.randn(shape, generator=generator) * (0.5 / math.sqrt(math.prod(shape[1:])))
            value *= torch.randn(shape, generator=generator).mul_(0.5).exp_()
            value[:, torch.randperm(shape[1], generator=generator)[: max(1, shape[1] // 256)]] *= 8
        tensors[name] = value.bfloat16().half()
    save_file(tensors, folder / SHARD)
    (folder / PARAMS_FILE).write_text(json.dumps(config.to_params()))
    export_vision(config, folder, SHARD)
