"""From a checkpoint to an artifact: vision to ONNX, the decoder layer by layer to 4 bits, and the proof.

samples   conversations to token ids and pixels, one in five held out
plan      memory, disk and time, and whether they are there
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pixedge import __version__
from pixedge.errors import CapacityError, CheckpointError, ExportError, UsageError
from pixedge.loading import choose_device
from pixedge.tokenizer import Tokenizer
from pixedge_export.activations import StoredStreams, StreamLengths
from pixedge_export.calibration import (
    EncodedSample,
    Sample,
    default_samples,
    digest_samples,
    encode_samples,
    load_samples,
    split,
)
from pixedge_export.checkpoint import Checkpoint, open_checkpoint
from pixedge_export.decoder_export import DecoderExport
from pixedge_export.destination import destination, empty
from pixedge_export.encoder import VisionEncoder, load_encoder
from pixedge_export.estimate import estimate
from pixedge_export.events import Event, Reporter, tell_context
from pixedge_export.journal import Journal, describe_difference, read_journal
from pixedge_export.known_picture import known_conversation, known_embeddings
from pixedge_export.layers import Recipe
from pixedge_export.report import Report, write_report
from pixedge_export.safetensors_header import read_header
from pixedge_export.tekken import to_hf_tokenizer
from pixedge_export.vision import ParityRow, check_parity, export_vision, graph_names
from pixedge_export.weights import Weights
from pixedge_export.writer import (
    ShardWriter,
    estimate_bytes,
    write_configs,
    write_manifest,
)

__all__ = ["DEFAULT_SAMPLES", "MAX_SAMPLE_TOKENS", "Event", "Recipe", "Reporter", "export"]

DEFAULT_SAMPLES = 128
MAX_SAMPLE_TOKENS = 4096
"""Where a sample's text is cut. Pictures are not, and the built-in mix has up to 3,157 tokens in one."""

BUILT_IN = "a small built-in mix; real data, close to what will be asked, does better"


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
    is at ``out``, once the new one is complete, and give up an unfinished one of something else. An export
    that fails or is interrupted leaves ``out`` as it was, and the same call goes on behind the last layer
    that was finished, to the same bytes. Raises CheckpointError, ConfigError, CalibrationError, ExportError,
    CapacityError, UsageError.
    """
    source, out = Path(source), Path(out)
    place = choose_device(device)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)
    checkpoint = open_checkpoint(source)
    tell_context(checkpoint.config, report)
    recipe.check_fits(checkpoint.config)
    tokenizer = Tokenizer(
        checkpoint.tokenizer_file(), checkpoint.config.vision, checkpoint.config.decoder.vocab_size
    )
    size = estimate_bytes(checkpoint.config, recipe)
    with destination(out, size, force=force, source=source, calibration=calibration) as folder:
        run = _Run(checkpoint, tokenizer, recipe, folder, place, report)
        run.write_artifact(_choose(calibration, samples), calibration is None, force)
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


def _lengths(samples: Sequence[EncodedSample]) -> list[int]:
    return [len(sample.prompt.ids) for sample in samples]


@dataclass
class _Run:
    """One export: what all of its phases need."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    recipe: Recipe
    folder: Path
    device: torch.device
    report: Reporter

    def __post_init__(self) -> None:
        """Plan the shards: vision, what is outside of the layers, then one for every layer."""
        self.config = self.checkpoint.config
        self.weights = Weights(self.checkpoint)
        self.writer = ShardWriter(self.folder, 2 + self.config.decoder.n_layers)

    def write_artifact(self, samples: Sequence[Sample], built_in: bool, force: bool) -> None:
        """Write an artifact into the folder, or finish one, the small files and their errors first."""
        seconds: dict[str, float] = {}
        with self._phase("samples", 1, seconds, BUILT_IN if built_in else "reading"):
            calibration, held_out = self._encode_samples(samples)
        facts = {
            "built_in": built_in,
            "samples": len(calibration),
            "tokens": sum(len(sample.prompt.ids) for sample in calibration),
            "image_tokens": sum(sample.prompt.n_image_tokens for sample in calibration),
            "held_out_samples": len(held_out),
        }
        ids = [sample.prompt.ids for sample in held_out]
        journal, streams = self._begin(calibration, held_out, force)
        self._plan(streams.lengths, (*calibration, *held_out), journal.layers or 0, force)
        journal.seconds |= seconds
        shutil.copyfile(self.tokenizer.file, self.folder / "tekken.json")
        to_hf_tokenizer(self.folder / "tekken.json", self.folder, self.config)
        write_configs(self.folder, self.config, self.recipe)

        decoder = DecoderExport(self.config, self.weights, self.recipe, self.writer, self.device, self.report)
        if journal.parity is None:
            with self._phase("vision", 2, journal.seconds, "writing the ONNX graphs"):
                journal.parity = self._vision()
            journal.save()
        if journal.layers is None:
            with self._phase("encode", len(calibration) + len(held_out), journal.seconds):
                decoder.embed(calibration, held_out, self._encoder().to(self.device), streams)
            journal.layers, journal.streams = 0, dict(streams.files)
            journal.save()
        streams.counts = decoder.counts(calibration)
        del calibration, held_out  # the pixels with them
        decoder.quantize(journal, streams)
        with self._phase("measure", 1, journal.seconds, "divergence from 16 bits"):
            measured, scores = decoder.measure(streams, ids)
        self.writer.write_index()
        source = self._source()
        recipe = asdict(self.recipe)
        write_report(
            self.folder,
            Report(
                source, recipe, facts, journal.errors, measured, journal.parity, journal.seconds, self.device
            ),
        )
        manifest = {
            "pixedge_version": __version__,
            "source": source,
            "recipe": recipe,
            "calibration": facts,
            "known_picture": {
                "messages": known_conversation(),
                "logprobs": scores,
                "embeddings": known_embeddings(
                    self.tokenizer.encode(known_conversation()), self.folder, self.config
                ),
            },
        }
        write_manifest(
            self.folder,
            manifest,
            lambda done, total: self.report(Event("hash", done, total, "hashing the new files")),
        )

    def _begin(
        self, calibration: Sequence[EncodedSample], held_out: Sequence[EncodedSample], force: bool
    ) -> tuple[Journal, StoredStreams]:
        """Open the journal of an unfinished export of the same things, or begin one in an empty folder.

        Raises ExportError for an unfinished export of other things, unless ``force`` gives it up.
        """
        key = {
            "pixedge_version": __version__,
            "source": self.checkpoint.fingerprint(),
            "recipe": asdict(self.recipe),
            "calibration": digest_samples((*calibration, *held_out)),
        }
        place = self.folder.parent
        lengths = StreamLengths(_lengths(calibration), _lengths(held_out), self.config.decoder.dim)
        found = read_journal(place)
        if found is not None and found.key != key and not force:
            raise ExportError(
                f"{place} holds an unfinished export of something else "
                f"({describe_difference(key, found.key)}); finish that one, or give it up with --force"
            )
        if found is not None and found.key == key:
            streams = StoredStreams(place, found.streams, lengths)
            if self._is_there(found, streams):
                return found, streams
        empty(place)
        self.folder.mkdir()
        return Journal(place, key), StoredStreams(place, {}, lengths)

    def _plan(self, lengths: StreamLengths, samples: Sequence[EncodedSample], done: int, force: bool) -> None:
        """Tell what the export will take; CapacityError where it is not there, unless ``force`` tries it."""
        pixels = sum(image.size for sample in samples for image in sample.prompt.images) // 3
        plan = estimate(self.config, self.recipe, lengths, pixels, self.device, done)
        try:
            told = plan.check(self.folder.parent, self.device)
        except CapacityError as error:
            if not force:
                raise
            told = str(error)
        self.report(Event("plan", 1, 1, told))

    def _is_there(self, journal: Journal, streams: StoredStreams) -> bool:
        """Tell whether all that a journal tells of is in the folder."""
        shards = [1, *range(3, 3 + (journal.layers or 0))] if journal.parity is not None else []
        files = [self.folder / self.writer.name(number) for number in shards]
        graphs = [self.folder / name for name in graph_names(self.config.vision)] if shards else []
        try:
            for file in files:
                read_header(file)
        except CheckpointError:
            return False
        return all(graph.is_file() for graph in graphs) and (journal.layers is None or streams.are_whole())

    @contextlib.contextmanager
    def _phase(self, name: str, total: int, seconds: dict[str, float], detail: str = "") -> Iterator[None]:
        """Report a phase's begin and end, and add its time to what it took in earlier runs."""
        self.report(Event(name, 0, total, detail))
        start = time.perf_counter()
        yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
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

    def _vision(self) -> list[ParityRow]:
        """Write the vision shard and its graphs, and check them against torch."""
        shard = self.writer.write(1, self.weights.read_vision(self.checkpoint.names()))
        export_vision(self.config, self.folder, shard)
        self.report(Event("vision", 1, 2, "comparing with torch"))
        return check_parity(self._encoder, self.folder, self.config)

    def _encoder(self) -> VisionEncoder:
        """Make the torch encoder with the float16 values that are exported."""
        return load_encoder(self.config, self.weights.read_vision(self.checkpoint.names()))

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
