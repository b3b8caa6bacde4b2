"""The decoder's part of an export: samples to streams, layer by layer to 4 bits, and what that cost."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixedge.config import ModelConfig
from pixedge.packing import pack_gptq
from pixedge.tensor_shapes import DECODER, HEAD
from pixedge_export.activations import StoredStreams
from pixedge_export.calibration import EncodedSample
from pixedge_export.divergence import Divergence, are_of_pictures, divergence, kinds_of
from pixedge_export.encoder import VisionEncoder, encode
from pixedge_export.events import Event, Reporter
from pixedge_export.journal import Journal
from pixedge_export.known_picture import known_scores
from pixedge_export.layer_runner import LayerRunner
from pixedge_export.layers import LINEARS, LinearError, Recipe, Step, quantize_layer
from pixedge_export.output_heads import OutputHeads
from pixedge_export.weights import Weights
from pixedge_export.writer import ShardWriter


@dataclass(frozen=True)
class DecoderExport:
    """Writes the shards from the second on: what is outside of the layers, then one for every layer."""

    config: ModelConfig
    weights: Weights
    recipe: Recipe
    writer: ShardWriter
    device: torch.device
    report: Reporter

    def embed(
        self,
        calibration: Sequence[EncodedSample],
        held_out: Sequence[EncodedSample],
        encoder: VisionEncoder,
        streams: StoredStreams,
    ) -> None:
        """Turn samples into what the first layer reads: float32 [tokens, dim] each."""
        table = self.weights.read_16bit(f"{DECODER}embed_tokens.weight")
        total, done = len(calibration) + len(held_out), 0

        def embed(sample: EncodedSample) -> Tensor:
            nonlocal done
            self.report(Event("encode", done, total, sample.name))
            done += 1
            ids = torch.tensor(sample.prompt.ids)
            x = table[ids].float()
            images = [torch.from_numpy(image).to(self.device) for image in sample.prompt.images]
            if images:
                places = torch.nonzero(ids == self.config.vision.image_token_id)[:, 0]
                x[places] = torch.cat([encode(encoder, image).cpu() for image in images])
            return x

        streams.move("calibration", map(embed, calibration))
        streams.share("target", "calibration")
        streams.move("dense", map(embed, held_out))
        streams.share("rtn", "dense")
        streams.share("quantized", "dense")

    def counts(self, calibration: Sequence[EncodedSample]) -> list[Tensor]:
        """Tell how much each token of every sample counts in calibration: [tokens] each."""
        is_image = (are_of_pictures(sample.prompt.ids, self.config.vision) for sample in calibration)
        return [torch.where(each, self.recipe.image_weight, 1.0) for each in is_image]

    def quantize(self, journal: Journal, streams: StoredStreams) -> None:
        """Quantise all layers that are not finished yet, each to a shard of its own."""
        runner = LayerRunner(self.config.decoder, self.device, torch.float32)
        n_layers = self.config.decoder.n_layers
        total, tokens = n_layers * len(LINEARS), sum(streams.lengths.calibration)
        first = journal.layers or 0
        detail = f"going on behind layer {first} of {n_layers}" if first else ""
        self.report(Event("layers", first * len(LINEARS), total, detail))
        speed = ""
        for index in range(first, n_layers):
            start = time.perf_counter()
            shard, errors = self._layer(runner, index, streams, functools.partial(self._step, index, speed))
            self.writer.write(3 + index, shard)
            seconds = time.perf_counter() - start
            speed = f", {tokens / seconds:.0f} tokens/s" if tokens else ""
            journal.layers, journal.streams = index + 1, dict(streams.files)
            journal.errors += errors
            journal.seconds["layers"] = journal.seconds.get("layers", 0.0) + seconds
            journal.save()
            streams.forget_past()

    def _step(self, index: int, speed: str, linear: str, error: LinearError | None) -> None:
        """Report where within a layer the work is, and what the last linear cost."""
        done = index * len(LINEARS) + LINEARS.index(linear) + (error is not None)
        costs = f", error {error.quantized:.3f}" if error else ""
        total = self.config.decoder.n_layers * len(LINEARS)
        self.report(Event("layers", done, total, f"layer {index + 1} {linear}{costs}{speed}"))

    def _layer(
        self, runner: LayerRunner, index: int, streams: StoredStreams, step: Step
    ) -> tuple[dict[str, Tensor], list[LinearError]]:
        """Quantise one layer; return its tensors as they are stored, by full name, and their errors."""
        prefix = f"{DECODER}layers.{index}."
        norms = {
            f"{name}.weight": self.weights.read_16bit(f"{prefix}{name}.weight")
            for name in ("input_layernorm", "post_attention_layernorm")
        }

        def tensors() -> dict[str, Tensor]:
            linears = {f"{name}.weight": self.weights.read(f"{prefix}{name}.weight") for name in LINEARS}
            return linears | norms

        quantized, errors = quantize_layer(runner, index, tensors, streams, self.recipe, step)
        stored = {prefix + name: tensor for name, tensor in norms.items()}
        for name, weight in quantized.items():
            stored |= {f"{prefix}{name}.{key}": value for key, value in pack_gptq(weight).items()}
        return stored, errors

    def measure(
        self, streams: StoredStreams, ids: Sequence[tuple[int, ...]]
    ) -> tuple[dict[str, dict[str, Divergence]], list[float]]:
        """Write norm, embeddings and head; compare the held-out streams; score the known picture."""
        names = (f"{DECODER}embed_tokens.weight", f"{DECODER}norm.weight", HEAD)
        outside = {name: self.weights.read_16bit(name) for name in names}
        self.writer.write(2, outside)
        del outside[names[0]]  # over a gigabyte in full size, and not needed to measure
        heads = OutputHeads(self.config.decoder, outside[names[1]], outside[HEAD], self.device)
        with torch.inference_mode():
            measured = divergence(
                streams.dense,
                {"rtn": streams.rtn, self.recipe.method: streams.quantized},
                [kinds_of(sample, self.config.vision) for sample in ids],
                heads.dense,
                heads.int8,
                lambda done, total: self.report(Event("measure", done, total, "divergence from 16 bits")),
            )
            scores = known_scores(ids[-1], streams.quantized[-1], heads.int8, self.config.vision)
        return measured, scores
