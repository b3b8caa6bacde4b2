"""From a checkpoint to an artifact: vision to ONNX, the decoder layer by layer to 4 bits, and the proof.

samples   conversations to token ids and pixels, one in five held out
vision    the encoder's shard and its ONNX graphs, compared with torch
encode    samples to embeddings, after which the encoder is dropped
layers    one decoder layer in memory at a time: measured, quantised, written
measure   norm and head; how far the 4-bit model is from the 16-bit one
source    the checkpoint's hash
hash      every file's hash, and the manifest
"""

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixedge import __version__
from pixedge.errors import UsageError
from pixedge.loading import choose_device
from pixedge.packing import pack_gptq
from pixedge.tensor_shapes import DECODER, HEAD
from pixedge.tokenizer import Tokenizer
from pixedge_export.calibration import (
    EncodedSample,
    Sample,
    default_samples,
    encode_samples,
    load_samples,
    split,
)
from pixedge_export.checkpoint import Checkpoint, open_checkpoint
from pixedge_export.destination import destination
from pixedge_export.divergence import Divergence, divergence, kinds_of
from pixedge_export.encoder import VisionEncoder, encode
from pixedge_export.known_picture import known_conversation, known_scores
from pixedge_export.layers import STAGES, LayerRunner, LinearError, Recipe, Streams, quantize_layer
from pixedge_export.output_heads import OutputHeads
from pixedge_export.report import Report, write_report
from pixedge_export.tekken import to_hf_tokenizer
from pixedge_export.vision import ParityRow, check_parity, export_vision
from pixedge_export.weights import Weights
from pixedge_export.writer import (
    ShardWriter,
    estimate_bytes,
    layers_per_shard,
    write_configs,
    write_manifest,
)

__all__ = ["DEFAULT_SAMPLES", "MAX_SAMPLE_TOKENS", "Event", "Recipe", "Reporter", "export"]

DEFAULT_SAMPLES = 128
MAX_SAMPLE_TOKENS = 4096
"""Where a sample's text is cut. Pictures are not, and the built-in mix has up to 3,157 tokens in one."""

BUILT_IN = "a small built-in mix; real data, close to what will be asked, does better"


@dataclass(frozen=True)
class Event:
    """Progress of an export: ``done`` of ``total`` units of a phase, and what is being done."""

    phase: str
    done: int
    total: int
    detail: str = ""


Reporter = Callable[[Event], None]


def export(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    calibration: Path | None = None,
    samples: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
    report: Reporter = lambda event: None,
) -> Path:
    """Export a checkpoint folder to ``out`` and return it.

    calibration: a folder in the format of docs/calibration.md; without it a built-in mix is drawn. samples:
    most conversations to use, by default 128 of the mix and all of a folder. force: replace an artifact that
    is at ``out``, once the new one is complete. An export that fails or is interrupted leaves ``out`` as it
    was. Raises CheckpointError, ConfigError, CalibrationError, ExportError, CapacityError, UsageError.
    """
    source, out = Path(source), Path(out)
    place = choose_device(device)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)
    checkpoint = open_checkpoint(source)
    recipe.check_fits(checkpoint.config)
    tokenizer = Tokenizer(
        checkpoint.tokenizer_file(), checkpoint.config.vision, checkpoint.config.decoder.vocab_size
    )
    size = estimate_bytes(checkpoint.config, recipe)
    with destination(out, size, force=force, source=source, calibration=calibration) as folder:
        run = _Run(checkpoint, tokenizer, recipe, folder, place, report)
        run.write_artifact(_choose(calibration, samples), calibration is None)
    return out


def _choose(calibration: Path | None, limit: int | None) -> list[Sample]:
    """Give the samples of a folder, or of the built-in mix, at most ``limit`` of them."""
    if calibration is None:
        return default_samples(0, DEFAULT_SAMPLES if limit is None else limit)
    samples = load_samples(calibration)
    if limit is None or limit >= len(samples):
        return samples
    # drawn by chance: every n-th would take one kind alone where kinds take turns
    return [samples[i] for i in sorted(random.Random(0).sample(range(len(samples)), limit))]


@dataclass
class _Run:
    """One export: what all of its phases need."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    recipe: Recipe
    folder: Path
    device: torch.device
    report: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Plan the shards: vision, what is outside of the layers, then some layers each."""
        self.config = self.checkpoint.config
        self.weights = Weights(self.checkpoint)
        layers, step = self.config.decoder.n_layers, layers_per_shard(self.config)
        self.layers_of_shard = [range(i, min(i + step, layers)) for i in range(0, layers, step)]
        self.writer = ShardWriter(self.folder, 2 + len(self.layers_of_shard))

    def write_artifact(self, samples: Sequence[Sample], built_in: bool) -> None:
        """Write a complete artifact into the folder, the small files and their errors first."""
        shutil.copyfile(self.tokenizer.file, self.folder / "tekken.json")
        to_hf_tokenizer(self.folder / "tekken.json", self.folder, self.config)
        write_configs(self.folder, self.config, self.recipe)

        with self._phase("samples", 1, BUILT_IN if built_in else "reading"):
            calibration, held_out = self._encode_samples(samples)
        facts = {
            "built_in": built_in,
            "samples": len(calibration),
            "tokens": sum(len(sample.prompt.ids) for sample in calibration),
            "image_tokens": sum(sample.prompt.n_image_tokens for sample in calibration),
            "held_out_samples": len(held_out),
        }
        with self._phase("vision", 2, "writing the ONNX graphs"):
            encoder, parity = self._vision()
        with self._phase("encode", len(calibration) + len(held_out), "pictures of the samples"):
            streams = self._embed(calibration, held_out, encoder)
        ids = [sample.prompt.ids for sample in held_out]
        del encoder, calibration, held_out  # the pixels with them
        with self._phase("layers", self.config.decoder.n_layers * sum(map(len, STAGES))):
            errors = self._layers(streams)
        with self._phase("measure", 1, "divergence from 16 bits"):
            measured, scores = self._measure(streams, ids)
        self.writer.write_index()
        source = self._source()
        recipe = asdict(self.recipe)
        write_report(self.folder, Report(source, recipe, facts, errors, measured, parity, dict(self.seconds)))
        manifest = {
            "pixedge_version": __version__,
            "source": source,
            "recipe": recipe,
            "calibration": facts,
            "known_picture": {"messages": known_conversation(), "logprobs": scores},
        }
        write_manifest(
            self.folder,
            manifest,
            lambda done, total: self.report(Event("hash", done, total, "hashing the new files")),
        )

    @contextlib.contextmanager
    def _phase(self, name: str, total: int, detail: str = "") -> Iterator[None]:
        """Report a phase's begin and end, and time it."""
        self.report(Event(name, 0, total, detail))
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.report(Event(name, total, total))

    def _encode_samples(self, samples: Sequence[Sample]) -> tuple[list[EncodedSample], list[EncodedSample]]:
        """Return the samples to calibrate on and those to measure on; the known picture is the last of these.

        Rounding to nearest needs none to calibrate on.
        """
        limit = min(MAX_SAMPLE_TOKENS, self.config.decoder.context)
        calibration, held_out = split(samples)
        if self.recipe.method == "rtn":
            calibration = []
        held_out = [*held_out, Sample("the known picture", known_conversation())]
        return (
            encode_samples(calibration, self.tokenizer, limit) if calibration else [],
            encode_samples(held_out, self.tokenizer, limit),
        )

    def _vision(self) -> tuple[VisionEncoder, list[ParityRow]]:
        """Write the vision shard and its graphs, check them against torch, and return the torch encoder.

        What is exported is what is compared and calibrated with: the float16 values.
        """
        tensors = {
            name: self.weights.read_float16(name)
            for name in self.checkpoint.names()
            if name.startswith(("vision_tower.", "multi_modal_projector."))
        }
        shard = self.writer.write(1, tensors)
        with torch.device("meta"):
            encoder = VisionEncoder(self.config)
        encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        encoder.eval().requires_grad_(False)
        export_vision(self.config, self.folder, shard)
        self.report(Event("vision", 1, 2, "comparing with torch"))
        parity = check_parity(encoder, self.folder, self.config)
        return encoder.to(self.device), parity

    def _embed(
        self, calibration: Sequence[EncodedSample], held_out: Sequence[EncodedSample], encoder: VisionEncoder
    ) -> Streams:
        """Turn samples into what the first layer reads: float32 [tokens, dim] each."""
        table = self.weights.read_16bit(f"{DECODER}embed_tokens.weight")
        total = len(calibration) + len(held_out)
        embedded: list[Tensor] = []
        for sample in (*calibration, *held_out):
            self.report(Event("encode", len(embedded), total, sample.name))
            ids = torch.tensor(sample.prompt.ids)
            x = table[ids].float()
            images = [torch.from_numpy(image).to(self.device) for image in sample.prompt.images]
            if images:
                places = torch.nonzero(ids == self.config.vision.image_token_id)[:, 0]
                x[places] = torch.cat([encode(encoder, image).cpu() for image in images])
            embedded.append(x)
        return Streams(embedded[: len(calibration)], embedded[len(calibration) :])

    def _layers(self, streams: Streams) -> list[LinearError]:
        """Quantise all layers and write their shards."""
        runner = LayerRunner(self.config.decoder, self.device, torch.float32)
        errors: list[LinearError] = []
        for number, layers in enumerate(self.layers_of_shard, start=3):
            shard: dict[str, Tensor] = {}
            for index in layers:
                shard |= self._layer(runner, index, streams, errors)
            self.writer.write(number, shard)
        return errors

    def _layer(
        self, runner: LayerRunner, index: int, streams: Streams, errors: list[LinearError]
    ) -> dict[str, Tensor]:
        """Quantise one layer; return its tensors as they are stored, by their full names."""
        prefix = f"{DECODER}layers.{index}."
        linears = [name for stage in STAGES for name in stage]
        tensors = {f"{name}.weight": self.weights.read(f"{prefix}{name}.weight") for name in linears}
        norms = {
            f"{name}.weight": self.weights.read_16bit(f"{prefix}{name}.weight")
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        runner.load(tensors | norms)
        total = self.config.decoder.n_layers * len(linears)

        def step(name: str) -> None:
            done = index * len(linears) + linears.index(name)
            self.report(Event("layers", done, total, f"layer {index + 1} {name}"))

        quantized, layer_errors = quantize_layer(runner, index, streams, self.recipe, step)
        errors += layer_errors
        stored = {prefix + name: tensor for name, tensor in norms.items()}
        for name, weight in quantized.items():
            stored |= {f"{prefix}{name}.{key}": value for key, value in pack_gptq(weight).items()}
        return stored

    def _measure(
        self, streams: Streams, ids: Sequence[tuple[int, ...]]
    ) -> tuple[dict[str, dict[str, Divergence]], list[float]]:
        """Write norm, embeddings and head; compare the held-out streams; score the known picture."""
        names = (f"{DECODER}embed_tokens.weight", f"{DECODER}norm.weight", HEAD)
        outside = {name: self.weights.read_16bit(name) for name in names}
        self.writer.write(2, outside)
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

    def _source(self) -> dict[str, Any]:
        """Name and hash the checkpoint."""
        total, done = self.checkpoint.nbytes(), 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            self.report(Event("source", done, total, "hashing the checkpoint"))

        return {
            "name": self.checkpoint.folder.resolve().name,
            "layout": self.checkpoint.layout,
            "sha256": self.checkpoint.digest(step),
        }
