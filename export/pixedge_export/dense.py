"""A checkpoint run as it is, unquantised: what an export is measured against."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixedge.decoder import Decoder
from pixedge.engine import Engine, EngineOptions
from pixedge.model import Model
from pixedge.tensor_shapes import DECODER, HEAD
from pixedge.tokenizer import Tokenizer
from pixedge_export.checkpoint import Checkpoint, open_checkpoint
from pixedge_export.encoder import VisionEncoder, encode


class TorchVision:
    """The torch encoder behind the runtime's interface."""

    def __init__(self, encoder: VisionEncoder, device: torch.device) -> None:
        """Take an encoder that is on ``device``."""
        self.encoder, self.device = encoder, device

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Map pixels float32 [3, H, W] to embeddings [patches, dim]."""
        weight = self.encoder.multi_modal_projector.linear_1.weight
        return encode(self.encoder, torch.from_numpy(pixels).to(self.device, weight.dtype))


def load_encoder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> VisionEncoder:
    """Read the vision encoder and adapter."""
    with torch.device("meta"):
        encoder = VisionEncoder(checkpoint.config)
    tensors = {name: checkpoint.tensor(name).to(device, dtype) for name in encoder.state_dict()}
    encoder.load_state_dict(tensors, assign=True)
    return encoder.eval().requires_grad_(False)


def load_decoder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Read the whole decoder; it must fit on ``device``."""
    with torch.device("meta"):
        decoder = Decoder(checkpoint.config.decoder)
    names = {name: HEAD if name == "lm_head.weight" else DECODER + name for name in decoder.state_dict()}
    tensors = {name: checkpoint.tensor(canonical).to(device, dtype) for name, canonical in names.items()}
    decoder.load_state_dict(tensors, assign=True)
    return decoder.eval().requires_grad_(False)


def load_dense(
    folder: Path | str, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None
) -> Model:
    """Load a checkpoint folder in either layout as a model that answers; errors as ``open_checkpoint``."""
    device = device or torch.device("cpu")
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    tokenizer = Tokenizer(checkpoint.tokenizer_file(), config.vision, config.decoder.vocab_size)
    decoder = load_decoder(checkpoint, dtype, device)
    vision = TorchVision(load_encoder(checkpoint, dtype, device), device)
    options = EngineOptions(kv_bits=16)  # as it is: nothing is rounded that the checkpoint does not round
    engine = Engine(config, decoder, vision, device, dtype, tokenizer.stop_ids, options)
    return Model(config, engine, tokenizer, checkpoint.folder, 0.0)
