"""From a GPTQ folder that another tool wrote to an artifact: the weights as they are, and what is missing.

The packed tensors are copied bit by bit, not brought into another form: every engine that reads the source
still reads the result, and nothing is quantised twice. What their form asks of the runtime, such as sorting
inputs by group, is done while loading. Around them come the vision encoder's ONNX graphs and float16 shard,
tokenizer and processor files, and the known picture's scores. One layer is in memory at a time.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixedge import __version__
from pixedge.artifact import IMPORTED, PACKED, ZERO_OFFSETS, fill
from pixedge.config import HF_FILE, PARAMS_FILE, ROTATION
from pixedge.decoder import DecoderLayer, WholeSequences
from pixedge.errors import ArtifactError, CheckpointError, ExportError, UsageError
from pixedge.loading import choose_device
from pixedge.packing import BITS, QuantizedWeight, unpack_imported_gptq
from pixedge.rope import rotary_1d
from pixedge.section import read_json
from pixedge.tensor_shapes import DECODER, HEAD
from pixedge.tokenizer import Prompt, Tokenizer
from pixedge_export.checkpoint import TOKENIZER_FILE
from pixedge_export.destination import destination, empty
from pixedge_export.encoder import VisionEncoder, encode, load_encoder
from pixedge_export.events import Event, Reporter, tell_context
from pixedge_export.gptq_folder import QUANTIZE_FILE, GptqFolder, open_gptq_folder
from pixedge_export.journal import read_journal
from pixedge_export.known_picture import known_conversation, known_embeddings, known_scores
from pixedge_export.layers import LINEARS, Recipe
from pixedge_export.output_heads import OutputHeads
from pixedge_export.tekken import to_hf_tokenizer
from pixedge_export.vision import check_parity, export_vision
from pixedge_export.writer import ShardWriter, quantization_config, write_json, write_manifest

NORMS = ("input_layernorm", "post_attention_layernorm")
TEMPLATE = "chat_template.jinja"
# What other engines read; the source's own are kept.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    TEMPLATE,
    "generation_config.json",
    QUANTIZE_FILE,
)
_OTHER_FILES_BYTES = 60_000_000
"""About what tokenizer files and graphs take."""


def import_folder(
    source: Path,
    out: Path,
    *,
    tekken: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
    report: Reporter = lambda event: None,
) -> Path:
    """Make an artifact at ``out`` from a GPTQ folder and return it.

    tekken: the model's tekken.json, where the source lacks it. device: where the known picture is scored.
    force: replace an artifact that is at ``out``, once the new one is complete, and give up an unfinished
    export to it. One that fails or is interrupted leaves ``out`` as it was. Raises CheckpointError,
    ConfigError, ExportError, CapacityError, UsageError.
    """
    source, out = Path(source), Path(out)
    place = choose_device(device)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)
    gptq = open_gptq_folder(source)
    tell_context(gptq.config, report)
    tokenizer = Tokenizer(_find_tekken(source, tekken), gptq.config.vision, gptq.config.decoder.vocab_size)
    n_bytes = gptq.checkpoint.nbytes() + _OTHER_FILES_BYTES
    with destination(out, n_bytes, force=force, source=source) as folder:
        _begin(folder, force)
        _Run(gptq, tokenizer, folder, place, report).write_artifact()
    return out


def _find_tekken(source: Path, given: Path | None) -> Path:
    file = source / TOKENIZER_FILE if given is None else Path(given)
    if file.is_file():
        return file
    if given is not None:
        raise UsageError(f"--tekken names {given}, which is no file; give the model's {TOKENIZER_FILE}")
    raise CheckpointError(
        f"{source} has no {TOKENIZER_FILE}, from which pixedge builds prompts; give it with --tekken FILE, "
        "from Mistral's own repository of the original (mistralai/Pixtral-12B-2409 for Pixtral-12B)"
    )


def _begin(folder: Path, force: bool) -> None:
    """Give up what an export that did not end has left there, if that is wanted."""
    if read_journal(folder.parent) is None:
        return
    if not force:
        raise ExportError(
            f"{folder.parent} holds an unfinished export; finish that one, or give it up with --force"
        )
    empty(folder.parent)
    folder.mkdir()


@dataclass(frozen=True)
class _Run:
    """One import: what all of its phases need."""

    source: GptqFolder
    tokenizer: Tokenizer
    folder: Path
    device: torch.device
    report: Reporter

    def write_artifact(self) -> None:
        """Write a complete artifact into the folder, the small files and their errors first."""
        config, layers = self.source.config, self.source.config.decoder.n_layers
        self._write_small_files()
        prompt = self.tokenizer.encode(known_conversation())
        writer = ShardWriter(self.folder, 2 + layers)
        self.report(Event("vision", 0, 2, "writing the ONNX graphs"))
        self._write_vision(writer)
        x = self._embed(prompt, self._encoder())
        for index in range(layers):
            self.report(Event("layers", index, layers, f"layer {index + 1}"))
            tensors = self._layer(index)
            writer.write(3 + index, tensors)
            x = self._run_layer(index, tensors, x)
        self.report(Event("layers", layers, layers, "norm, embeddings and head"))
        names = (f"{DECODER}embed_tokens.weight", f"{DECODER}norm.weight", HEAD)
        outside = {name: self.source.weights.read_16bit(name) for name in names}
        writer.write(2, outside)
        heads = OutputHeads(config.decoder, outside[names[1]], outside[HEAD], self.device)
        with torch.inference_mode():
            scores = known_scores(prompt.ids, x, heads.int8, config.vision)
        writer.write_index()
        facts = {
            "pixedge_version": __version__,
            "source": self._source(),
            "recipe": {
                "method": IMPORTED,
                "bits": BITS,
                "group_size": self.source.group_size,
                "checkpoint_format": self.source.checkpoint_format,
                "source_says": dict(self.source.quantization),
            },
            "known_picture": {
                "messages": known_conversation(),
                "logprobs": scores,
                "embeddings": known_embeddings(prompt, self.folder, config),
            },
        }
        write_manifest(
            self.folder,
            facts,
            lambda done, total: self.report(Event("hash", done, total, "hashing the new files")),
        )

    def _write_small_files(self) -> None:
        """Write configurations and tokenizer files: the source's own, and made ones where it has none."""
        source, config = self.source.checkpoint.folder, self.source.config
        shutil.copyfile(self.tokenizer.file, self.folder / TOKENIZER_FILE)
        to_hf_tokenizer(self.folder / TOKENIZER_FILE, self.folder, config)
        _check_same_tokens(self.folder / "tokenizer.json", source / "tokenizer.json", self.tokenizer.file)
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, self.folder / name)
        if not (source / TEMPLATE).is_file() and _has_template(source):
            (self.folder / TEMPLATE).unlink()
        write_json(self.folder / PARAMS_FILE, config.to_params())
        # What the source leaves out of these would let other engines look for 4-bit weights everywhere.
        ours = quantization_config(Recipe())
        whole = {key: ours[key] for key in ("lm_head", "modules_in_block_to_quantize", "dynamic")}
        whole |= {key: value for key, value in self.source.quantization.items() if value is not None}
        whole |= {"quant_method": "gptq", "checkpoint_format": self.source.checkpoint_format}
        write_json(self.folder / HF_FILE, _true_config(self.source) | {"quantization_config": whole})

    def _write_vision(self, writer: ShardWriter) -> None:
        """Write the encoder's float16 shard and its graphs, and check them against torch."""
        shard = writer.write(1, self.source.weights.read_vision(self.source.shapes))
        export_vision(self.source.config, self.folder, shard)
        self.report(Event("vision", 1, 2, "comparing with torch"))
        check_parity(self._encoder, self.folder, self.source.config)

    def _encoder(self) -> VisionEncoder:
        return load_encoder(self.source.config, self.source.weights.read_vision(self.source.shapes))

    def _embed(self, prompt: Prompt, encoder: VisionEncoder) -> Tensor:
        """Turn the known conversation into what the first layer reads: float32 [tokens, dim]."""
        ids = torch.tensor(prompt.ids)
        x = self.source.weights.read_16bit(f"{DECODER}embed_tokens.weight")[ids].float()
        places = torch.nonzero(ids == self.source.config.vision.image_token_id)[:, 0]
        x[places] = torch.cat([encode(encoder, torch.from_numpy(image)) for image in prompt.images])
        return x.to(self.device)

    def _layer(self, index: int) -> dict[str, Tensor]:
        """Read one layer: the packed tensors as they are, norms in 16 bits, by their full names."""
        prefix = f"{DECODER}layers.{index}."
        packed = (f"{prefix}{linear}.{key}" for linear in LINEARS for key in PACKED)
        norms = (f"{prefix}{norm}.weight" for norm in NORMS)
        return {name: self.source.packed(name) for name in packed} | {
            name: self.source.weights.read_16bit(name) for name in norms
        }

    @torch.inference_mode()
    def _run_layer(self, index: int, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """Run x [tokens, dim] through a layer that is loaded as the runtime does it, in float32."""
        decoder, prefix = self.source.config.decoder, f"{DECODER}layers.{index}."
        with torch.device("meta"):
            layer = DecoderLayer(decoder, lambda i, o: torch.nn.Linear(i, o, bias=False))
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        try:
            fill(layer, inside, prefix, self._unpack, torch.float32, self.device)
        except ArtifactError as error:
            raise CheckpointError(f"{self.source.checkpoint.folder}: {error}") from error
        positions = torch.arange(len(x), device=self.device)
        cos, sin = rotary_1d(positions, decoder.head_dim, decoder.rope_theta)
        out: Tensor = layer(0, x, cos, sin, WholeSequences(len(x)))
        return out

    def _unpack(self, tensors: Any, name: str) -> QuantizedWeight:
        offset = ZERO_OFFSETS[self.source.checkpoint_format]
        remedy = "quantise the original again"
        return unpack_imported_gptq(tensors, self.source.group_size, offset, name, remedy)

    def _source(self) -> dict[str, Any]:
        """Name and hash the source."""
        checkpoint, done = self.source.checkpoint, 0
        total = checkpoint.nbytes()

        def step(count: int) -> None:
            nonlocal done
            done += count
            self.report(Event("source", done, total, "hashing the source"))

        name = checkpoint.folder.resolve().name
        return {"name": name, "layout": checkpoint.layout, "sha256": checkpoint.digest(step)}


def _true_config(source: GptqFolder) -> dict[str, Any]:
    """Give config.json without a rotation beside the text's own, and with the context that counts."""
    config = {key: value for key, value in source.hf_config.items() if key not in ROTATION}
    context = source.config.decoder.context
    if source.config.decoder.stated_context is not None:
        config["text_config"] = config["text_config"] | {"max_position_embeddings": context}
    return config


def _check_same_tokens(made: Path, found: Path, tekken: Path) -> None:
    """Refuse a tekken.json that gives a token another id than the source's tokenizer.json does."""
    if not found.is_file():
        return
    ours = json.loads(made.read_text(encoding="utf-8"))["model"]["vocab"]
    try:
        theirs = read_json(found)["model"]["vocab"]
        wrong = [piece for piece, token in ours.items() if theirs.get(piece, token) != token]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{found} is not a tokenizer file ({error!r:.80}); fetch it again") from error
    if wrong:
        raise CheckpointError(
            f"{tekken} is another model's: it gives {len(wrong)} tokens, such as {wrong[0]!r:.40}, other ids "
            f"than {found}; give the {TOKENIZER_FILE} of the model that was quantised"
        )


def _has_template(source: Path) -> bool:
    """Tell whether the source brings a chat template in a form of its own."""
    if (source / "chat_template.json").is_file():
        return True
    for name in ("tokenizer_config.json", "processor_config.json"):
        if (source / name).is_file():
            data = read_json(source / name)
            if isinstance(data, dict) and data.get("chat_template"):
                return True
    return False
