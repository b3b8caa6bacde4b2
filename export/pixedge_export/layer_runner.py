"""One dense decoder layer that runs calibration samples, and what its modules read on the way."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pixedge.config import DecoderConfig
from pixedge.decoder import DecoderLayer, WholeSequences
from pixedge.packing import QuantizedWeight, dequantize
from pixedge.rope import rotary_1d

FIRST_NORM, MIDDLE_NORM = "input_layernorm", "post_attention_layernorm"
"""What the attention and the feed-forward read the residual stream through."""


class _Reached(Exception):
    """Carries a linear's input out of a forward pass that need not go on."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class LayerRunner:
    """A dense decoder layer that runs whole samples, one at a time."""

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> None:
        """Make room for one layer on ``device``; it computes in ``dtype``, and samples stay in float32."""
        self.config, self.device, self.dtype = config, device, dtype
        self.layer = DecoderLayer(
            config, lambda i, o: nn.Linear(i, o, bias=False, device=device, dtype=dtype)
        ).to(device, dtype)
        self.layer.requires_grad_(False)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the layer from canonical tensors by their names inside it."""
        self.layer.load_state_dict(dict(tensors), strict=True)

    def weight(self, linear: str) -> Tensor:
        """Return a linear's weight [out, in] as it is now."""
        weight = self.layer.get_submodule(linear).weight
        assert isinstance(weight, Tensor)
        return weight

    def replace(self, linear: str, quantized: QuantizedWeight) -> None:
        """Let a linear compute with its quantised weight."""
        self.weight(linear).copy_(dequantize(quantized, torch.float32))

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Run one sample [tokens, dim] through the whole layer; back in float32 on the CPU."""
        return self._run(x).float().cpu()

    @torch.inference_mode()
    def inputs(self, module: str, samples: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield what a module reads, [tokens, in], for each sample; nothing behind the module is computed."""

        def reach(_: nn.Module, args: tuple[Tensor]) -> None:
            raise _Reached(args[0])

        handle = self.layer.get_submodule(module).register_forward_pre_hook(reach)
        try:
            for x in samples:
                try:
                    self._run(x)
                except _Reached as reached:
                    yield reached.x
        finally:
            handle.remove()

    @torch.inference_mode()
    def additions(self, linear: str, samples: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each sample what a linear reads, [tokens, in], and the stream behind it, [tokens, dim].

        linear: one whose outputs are added to the residual stream, self_attn.o_proj or mlp.down_proj.
        """
        seen: list[Tensor] = []
        handle = self.layer.get_submodule(linear).register_forward_pre_hook(lambda _, args: seen.extend(args))
        halfway = self.layer.get_submodule(linear) is self.layer.self_attn.o_proj
        try:
            for stream in self.inputs(MIDDLE_NORM, samples) if halfway else map(self._run, samples):
                yield seen.pop(), stream
        finally:
            handle.remove()

    @torch.inference_mode()
    def norm(self, name: str, x: Tensor) -> Tensor:
        """Apply one of the layer's norms to x [tokens, dim]."""
        out: Tensor = self.layer.get_submodule(name)(x.to(self.device, self.dtype))
        return out

    def _run(self, x: Tensor) -> Tensor:
        tokens = len(x)
        positions = torch.arange(tokens, device=self.device)
        cos, sin = rotary_1d(positions, self.config.head_dim, self.config.rope_theta)
        out: Tensor = self.layer(0, x.to(self.device, self.dtype), cos, sin, WholeSequences(tokens))
        return out
