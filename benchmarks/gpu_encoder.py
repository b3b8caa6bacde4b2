"""The encoder on a GPU: ONNX Runtime's session, or torch in its place where it has no CUDA provider."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixedge.config import ModelConfig
from pixedge.plan import Plan
from pixedge_export.encoder import VisionEncoder, encode


class TorchEncoder:
    """Stands in for the ONNX session: the same encoder in torch, float16, random weights."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        """Make it."""
        torch.manual_seed(0)
        self.device = device
        self.encoder = VisionEncoder(config).to(device, torch.float16).requires_grad_(False)

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Map pixels float32 [3, H, W] to embeddings [patches, dim]."""
        return encode(self.encoder, torch.from_numpy(pixels).to(self.device, torch.float16))


def open_encoder(config: ModelConfig, plan: Plan, device: torch.device, folder: Path) -> tuple[Any, str]:
    """Open the ONNX session on the device, else on the CPU, else torch's encoder, with the reason why."""
    reasons = []
    for place in dict.fromkeys((device, torch.device("cpu"))):
        try:
            from pixedge.vision import VisionSession
            from vision import write_encoder

            write_encoder(folder, config)
            session = VisionSession(folder, config, place, None, plan.arena)
        except Exception as error:  # whatever is missing, the decoder's figures are worth having
            reasons.append(str(error).splitlines()[0])
            continue
        return session, f"ONNX Runtime on the CPU: {reasons[0]}" if reasons else "ONNX Runtime"
    return TorchEncoder(config, device), f"torch stands in for ONNX Runtime: {reasons[-1]}"
