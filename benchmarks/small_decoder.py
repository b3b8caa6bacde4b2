"""A decoder that fits into memory, run over all samples at once, for measuring what quantising it costs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pixedge.config import ModelConfig
from pixedge.decoder import DecoderLayer, WholeSequences
from pixedge.rope import rotary_1d
from pixedge.tensor_shapes import DECODER, HEAD
from pixedge.tokenizer import Tokenizer
from pixedge_export.calibration import Sample, encode_samples
from pixedge_export.checkpoint import Checkpoint
from pixedge_export.divergence import are_of_pictures, kinds_of
from pixedge_export.encoder import VisionEncoder, encode
from pixedge_export.layer_runner import MIDDLE_NORM
from pixedge_export.layers import STAGES
from pixedge_export.output_heads import OutputHeads
from pixedge_export.weights import Weights

CPU = torch.device("cpu")


class Batch:
    """Samples side by side, float32 [tokens, dim], none of which sees another; an ``Attend`` for a layer."""

    def __init__(self, xs: Sequence[Tensor], ids: Sequence[tuple[int, ...]], config: ModelConfig) -> None:
        """Join the samples' embeddings, [tokens, dim] each."""
        vision = config.vision
        self.xs, self.ids, self.config = xs, ids, config
        self.x = torch.cat(list(xs))
        self.lengths = [len(x) for x in xs]
        self.kinds = torch.cat([kinds_of(sample, vision) for sample in ids])
        self.is_image = torch.cat([are_of_pictures(sample, vision) for sample in ids])
        positions = torch.cat([torch.arange(length) for length in self.lengths])
        self.cos, self.sin = rotary_1d(positions, config.decoder.head_dim, config.decoder.rope_theta)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend inside each sample."""
        samples = zip(*(tensor.split(self.lengths) for tensor in (q, k, v)), strict=True)
        return torch.cat([WholeSequences(len(sample[0]))(layer, *sample) for sample in samples])

    def thinned(self, count: int | None) -> "Batch":
        """Choose at most ``count`` of the samples, evenly."""
        if count is None or count >= len(self.xs):
            return self
        chosen = [round(i * (len(self.xs) - 1) / max(1, count - 1)) for i in range(count)]
        return Batch([self.xs[i] for i in chosen], [self.ids[i] for i in chosen], self.config)


class SmallDecoder:
    """The dense layers and heads of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the heads."""
        self.config = checkpoint.config.decoder
        self._weights = Weights(checkpoint)
        norm, head = (self._weights.read_16bit(name) for name in (f"{DECODER}norm.weight", HEAD))
        self.heads = OutputHeads(self.config, norm, head, CPU)

    def load(self, index: int) -> DecoderLayer:
        """Read a layer in float32."""
        layer = DecoderLayer(self.config, lambda i, o: nn.Linear(i, o, bias=False)).requires_grad_(False)
        prefix = f"{DECODER}layers.{index}."
        layer.load_state_dict({name: self._weights.read(prefix + name) for name in layer.state_dict()})
        return layer

    def layers(self) -> list[DecoderLayer]:
        """Read all layers."""
        return [self.load(index) for index in range(self.config.n_layers)]


def run(layers: Sequence[DecoderLayer], batch: Batch) -> Tensor:
    """Return the hidden states [tokens, dim] behind all layers."""
    x = batch.x
    for layer in layers:
        x = layer(0, x, batch.cos, batch.sin, batch)
    return x


def pass_through(layer: DecoderLayer, batch: Batch, x: Tensor) -> dict[str, Tensor]:
    """Run a layer; return what each stage and the second norm read, by name, and its result as "out"."""
    read: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: read.update({name: args[0]})

    names = (*(stage[0] for stage in STAGES), MIDDLE_NORM)
    handles = [layer.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    read["out"] = layer(0, x, batch.cos, batch.sin, batch)
    for handle in handles:
        handle.remove()
    return read


def embedder(checkpoint: Checkpoint) -> Callable[[Sequence[Sample]], Batch]:
    """Return what turns samples into what the first layer reads."""
    config, weights = checkpoint.config, Weights(checkpoint)
    tokenizer = Tokenizer(checkpoint.tokenizer_file(), config.vision, config.decoder.vocab_size)
    table = weights.read_16bit(f"{DECODER}embed_tokens.weight")
    with torch.device("meta"):
        encoder = VisionEncoder(config)
    encoder.load_state_dict({n: weights.read_float16(n).float() for n in encoder.state_dict()}, assign=True)
    encoder.eval().requires_grad_(False)

    def embed(samples: Sequence[Sample]) -> Batch:
        xs, ids = [], []
        for sample in encode_samples(samples, tokenizer, config.decoder.context):
            tokens = torch.tensor(sample.prompt.ids)
            x = table[tokens].float()
            images = [encode(encoder, torch.from_numpy(image)) for image in sample.prompt.images]
            if images:
                x[tokens == config.vision.image_token_id] = torch.cat(images)
            xs.append(x)
            ids.append(sample.prompt.ids)
        return Batch(xs, ids, config)

    return embed
