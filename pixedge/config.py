"""The geometry of a model, read from params.json or config.json into one frozen ModelConfig.

Two files describe the same architecture: Mistral's params.json and the config.json of transformers'
LlavaForConditionalGeneration. Both readers are strict. A key that says something about the architecture and
is not known here is an error, and so is a known key with a value that pixedge does not compute; keys that
cannot change a forward pass are listed in ``pixedge.ignored_keys`` and skipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pixedge.errors import CheckpointError, ConfigError
from pixedge.ignored_keys import HF_BOOKKEEPING, PARAMS_BOOKKEEPING
from pixedge.recognition import check_folder, check_model
from pixedge.section import REQUIRED, Section, is_positive, read_json

PARAMS_FILE = "params.json"
HF_FILE = "config.json"

# Pixtral-12B's params.json states no context length; the model card does.
DEFAULT_CONTEXT = 131_072
# Neither format has a key for it: both reference implementations fix it in code.
VISION_NORM_EPS = 1e-5
# config.json names only the id of [IMG]; these are the ids of [IMG_BREAK] and [IMG_END] in Tekken.
TEKKEN_IMAGE_BREAK_ID = 12
TEKKEN_IMAGE_END_ID = 13
# Of <s>, </s> and <pad>.
TEKKEN_BOS_ID, TEKKEN_EOS_ID, TEKKEN_PAD_ID = 1, 2, 11

# Where files of different ages put the base of the rotary pairs.
ROTATION = frozenset({"rope_theta", "rope_parameters", "rope_scaling"})


@dataclass(frozen=True)
class DecoderConfig:
    """The Mistral decoder; dim, head_dim and ffn_dim in channels, context in tokens.

    The query width n_heads * head_dim need not equal dim (Pixtral-12B: 32 * 128 = 4096, dim 5120).
    stated_context: what the file says, where that is more than the model was trained for; else None.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    context: int
    stated_context: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raise ConfigError when the numbers do not fit together."""
        _check_positive(self)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"the decoder has {self.n_heads} heads, which {self.n_kv_heads} key-value heads do not divide"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"the decoder's head_dim is {self.head_dim}, but rotary pairs need an even number"
            )

    def context_note(self) -> str | None:
        """Say which context counts where the file states another; None where it does not."""
        if self.stated_context is None:
            return None
        return (
            f"the configuration states a context of {self.stated_context:,} tokens, but this is Pixtral-12B, "
            f"whose context is {self.context:,}: that is used, and --context N goes beyond it"
        )


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder; dim and ffn_dim in channels, patch_size and image_size in pixels.

    An image is n rows of [IMG] ids, each row ended by image_break_token_id, the last by image_end_token_id.
    """

    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    n_channels: int
    patch_size: int
    image_size: int
    rope_theta: float
    norm_eps: float
    image_token_id: int
    image_break_token_id: int
    image_end_token_id: int

    @property
    def head_dim(self) -> int:
        """Channels of one attention head; heads always span the whole width here."""
        return self.dim // self.n_heads

    def __post_init__(self) -> None:
        """Raise ConfigError when the numbers do not fit together."""
        _check_positive(self)
        if self.dim % self.n_heads:
            raise ConfigError(f"the vision width {self.dim} is not a multiple of its {self.n_heads} heads")
        if self.head_dim % 4:
            raise ConfigError(
                f"the vision head_dim is {self.head_dim}, but two rotary axes need a multiple of 4"
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"the image size {self.image_size} is not a multiple of the patch size {self.patch_size}"
            )
        if self.n_channels != 3:
            raise ConfigError(
                f"the vision encoder takes {self.n_channels} channels; pixedge gives it 3 (RGB)"
            )
        if self.norm_eps != VISION_NORM_EPS:
            raise ConfigError(
                f"the vision norm_eps is {self.norm_eps}; checkpoints fix it at {VISION_NORM_EPS}"
            )
        ids = (self.image_token_id, self.image_break_token_id, self.image_end_token_id)
        if len(set(ids)) < 3:
            raise ConfigError(f"the ids of [IMG], [IMG_BREAK] and [IMG_END] are {ids}, but they must differ")


@dataclass(frozen=True)
class ModelConfig:
    """Decoder and vision encoder; the adapter between them has vision.dim inputs and decoder.dim outputs."""

    decoder: DecoderConfig
    vision: VisionConfig

    def __post_init__(self) -> None:
        """Raise ConfigError when the two halves do not fit together."""
        vision, vocab = self.vision, self.decoder.vocab_size
        top = max(vision.image_token_id, vision.image_break_token_id, vision.image_end_token_id)
        if top >= vocab:
            raise ConfigError(f"the image token id {top} lies outside the vocabulary of {vocab}")

    @classmethod
    def load(cls, folder: str | Path) -> "ModelConfig":
        """Read params.json from a folder, or config.json where there is none.

        Raises CheckpointError when neither is there or the file is not JSON, ConfigError when it describes
        a model that pixedge does not support.
        """
        folder = Path(folder)
        if not folder.is_dir():
            check_folder(folder)
            raise CheckpointError(f"{folder} is not a folder; give the folder that holds the checkpoint")
        if (folder / PARAMS_FILE).is_file():
            return cls.from_params(read_json(folder / PARAMS_FILE), folder / PARAMS_FILE)
        if (folder / HF_FILE).is_file():
            return cls.from_hf(read_json(folder / HF_FILE), folder / HF_FILE)
        check_folder(folder)
        raise CheckpointError(
            f"{folder} has neither {PARAMS_FILE} nor {HF_FILE}; give the folder that holds the checkpoint"
        )

    @classmethod
    def from_params(cls, data: Mapping[str, Any], file: str | Path = PARAMS_FILE) -> "ModelConfig":
        """Read the contents of Mistral's params.json; `file` is named in errors (ConfigError)."""
        check_model(data, file)
        top = Section(data, file)
        # Both keys name the context; a file that has both means the smaller.
        contexts = [top.integer(key) for key in ("max_position_embeddings", "max_seq_len") if top.has(key)]
        decoder: dict[str, Any] = {
            "dim": top.integer("dim"),
            "n_layers": top.integer("n_layers"),
            "n_heads": top.integer("n_heads"),
            "n_kv_heads": top.integer("n_kv_heads"),
            "head_dim": top.integer("head_dim"),
            "ffn_dim": top.integer("hidden_dim"),
            "vocab_size": top.integer("vocab_size"),
            "norm_eps": top.number("norm_eps"),
            "rope_theta": top.number("rope_theta"),
            "context": min(contexts, default=DEFAULT_CONTEXT),
        }
        top.window("sliding_window", decoder["context"], default=None)
        top.window("_sliding_window", decoder["context"], default=None)
        top.only("model_type", "transformer", default="transformer")
        top.only("activation", "silu", default="silu")
        for key in ("use_biases", "tied_embeddings"):
            top.only(key, False, default=False)
        top.only("causal", True, default=True)
        for key in ("moe", "yarn", "lora", "quantization", "llama_4_scaling"):
            top.only(key, None, default=None)

        eye = top.section("vision_encoder")
        vision = _vision_numbers(eye) | {
            "rope_theta": eye.number("rope_theta"),
            "image_token_id": eye.integer("image_token_id"),
            "image_break_token_id": eye.integer("image_break_token_id", TEKKEN_IMAGE_BREAK_ID),
            "image_end_token_id": eye.integer("image_end_token_id", TEKKEN_IMAGE_END_ID),
        }
        eye.only("adapter_bias", True, default=True)
        eye.only("max_image_size", vision["image_size"], default=vision["image_size"])
        eye.only("spatial_merge_size", 1, default=1)
        eye.only("mm_projector_id", "", default="")
        eye.only("add_pre_mm_projector_layer_norm", False, default=False)
        eye.finish(frozenset())
        top.finish(PARAMS_BOOKKEEPING)
        return cls._build(decoder, vision, file)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], file: str | Path = HF_FILE) -> "ModelConfig":
        """Read a LlavaForConditionalGeneration config.json in the spelling of transformers 4 or 5.

        transformers leaves out keys that equal a class default, so an absent key takes the default of
        LlavaConfig, MistralConfig or PixtralVisionConfig; where that default is not Pixtral's (a sliding
        window of 4096, GELU in the encoder) the absence is an error. The ids of [IMG_BREAK] and [IMG_END] are
        not part of the format: Tekken's 12 and 13, unless the file names others as image_break_token_id and
        image_end_token_id. `file` is named in errors (ConfigError).
        """
        check_model(data, file)
        top = Section(data, file)
        top.only("model_type", "llava", default=None)
        top.only("projector_hidden_act", "gelu", default="gelu")
        top.only("multimodal_projector_bias", True, default=True)
        top.only("vision_feature_layer", -1, default=-2)
        top.only("vision_feature_select_strategy", "full", default="default")

        text = top.section("text_config")
        text.only("model_type", "mistral", default="llama")
        text.only("hidden_act", "silu", default="silu")
        # Whole configurations of transformers 4 say true at the top, where only the text's own value counted.
        if not text.has("tie_word_embeddings"):
            top.only("tie_word_embeddings", False, default=False)
        text.only("tie_word_embeddings", False, default=False)
        text.only("pruned_heads", {}, default={}, null={})
        text.only("attention_bias", False, default=False)
        text.only("mlp_bias", False, default=False)
        decoder: dict[str, Any] = {
            "dim": text.integer("hidden_size", 4096),
            "n_layers": text.integer("num_hidden_layers", 32),
            "n_heads": text.integer("num_attention_heads", 32),
            "ffn_dim": text.integer("intermediate_size", 14336),
            "vocab_size": text.integer("vocab_size", 32000),
            "norm_eps": text.number("rms_norm_eps", 1e-6),
            "rope_theta": _hf_theta(text, "default"),
            "context": text.integer("max_position_embeddings", 131_072),
        }
        decoder["n_kv_heads"] = text.integer("num_key_value_heads", 8, null=decoder["n_heads"])
        derived = decoder["dim"] // decoder["n_heads"]
        # transformers 4.47 and 4.48 leave head_dim out where it is their class's default of 128, although
        # they derive an absent one from the width: Pixtral-12B's would be 160, which no tensor has.
        version = str(data.get("transformers_version", ""))
        absent = 128 if version.startswith(("4.47.", "4.48.")) else derived
        decoder["head_dim"] = text.integer("head_dim", absent, null=derived)
        text.window("sliding_window", decoder["context"], default=4096)
        layer_types = ["full_attention"] * decoder["n_layers"]
        text.only("layer_types", layer_types, default=layer_types, null=layer_types)
        text.finish(HF_BOOKKEEPING)

        eye = top.section("vision_config")
        eye.only("model_type", "pixtral", default="clip_vision_model")
        eye.only("hidden_act", "silu", default="gelu")
        eye.only("pruned_heads", {}, default={}, null={})
        vision = _vision_numbers(eye, defaults=(1024, 24, 16, 4096, 3, 16, 1024)) | {
            "rope_theta": _hf_theta(eye, "axial"),
            "image_token_id": top.integer(
                "image_token_id" if top.has("image_token_id") else "image_token_index"
            ),
            "image_break_token_id": top.integer("image_break_token_id", TEKKEN_IMAGE_BREAK_ID),
            "image_end_token_id": top.integer("image_end_token_id", TEKKEN_IMAGE_END_ID),
        }
        top.only("image_token_index", vision["image_token_id"], default=vision["image_token_id"])
        width = vision["dim"] // vision["n_heads"]
        eye.only("head_dim", width, default=width, null=width)
        eye.finish(HF_BOOKKEEPING | {"tie_word_embeddings"})
        # What stands beside text_config and again in it is read by nothing: vocab_size in early LLaVA files,
        # hidden_size for DeepSpeed, and a rotation that GPTQModel 7.7 makes up (theta 10000, whatever the
        # text's own is). The text's own value counts.
        beside = text.stated | {"vocab_size"}
        top.finish(HF_BOOKKEEPING | beside | (ROTATION if beside & ROTATION else set()))
        return cls._build(decoder, vision, file)

    @classmethod
    def _build(cls, decoder: dict[str, Any], vision: dict[str, Any], file: str | Path) -> "ModelConfig":
        try:
            return cls(
                _with_trained_context(DecoderConfig(**decoder)),
                VisionConfig(**vision, norm_eps=VISION_NORM_EPS),
            )
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None

    def reaching(self, tokens: int) -> "ModelConfig":
        """Give the same model with a context of at least ``tokens``, beyond what it was trained for."""
        context = max(tokens, self.decoder.context)
        return replace(self, decoder=replace(self.decoder, context=context))

    def to_params(self) -> dict[str, Any]:
        """Give the contents of a params.json that from_params reads back as an equal ModelConfig."""
        decoder, vision = self.decoder, self.vision
        return {
            "dim": decoder.dim,
            "n_layers": decoder.n_layers,
            "head_dim": decoder.head_dim,
            "hidden_dim": decoder.ffn_dim,
            "n_heads": decoder.n_heads,
            "n_kv_heads": decoder.n_kv_heads,
            "rope_theta": decoder.rope_theta,
            "norm_eps": decoder.norm_eps,
            "vocab_size": decoder.vocab_size,
            "max_position_embeddings": decoder.context,
            "vision_encoder": {
                "hidden_size": vision.dim,
                "num_channels": vision.n_channels,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "rope_theta": vision.rope_theta,
                "intermediate_size": vision.ffn_dim,
                "num_hidden_layers": vision.n_layers,
                "num_attention_heads": vision.n_heads,
                "adapter_bias": True,
                "image_token_id": vision.image_token_id,
                "image_break_token_id": vision.image_break_token_id,
                "image_end_token_id": vision.image_end_token_id,
            },
        }

    def to_hf(self) -> dict[str, Any]:
        """Give the contents of a config.json that from_hf and transformers 4 and 5 read.

        rope_theta stands alone, as in transformers 4: version 5 moves it under rope_parameters itself, and
        its name for the encoder's kind of rotation there has changed between releases.
        """
        decoder, vision = self.decoder, self.vision
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            # transformers stops at no token that is not named here or in a file of its own.
            "bos_token_id": TEKKEN_BOS_ID,
            "eos_token_id": TEKKEN_EOS_ID,
            "pad_token_id": TEKKEN_PAD_ID,
            "image_token_index": vision.image_token_id,
            "image_break_token_id": vision.image_break_token_id,
            "image_end_token_id": vision.image_end_token_id,
            "image_seq_length": 1,
            "multimodal_projector_bias": True,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "mistral",
                "hidden_size": decoder.dim,
                "num_hidden_layers": decoder.n_layers,
                "num_attention_heads": decoder.n_heads,
                "num_key_value_heads": decoder.n_kv_heads,
                "head_dim": decoder.head_dim,
                "intermediate_size": decoder.ffn_dim,
                "hidden_act": "silu",
                "vocab_size": decoder.vocab_size,
                "rms_norm_eps": decoder.norm_eps,
                "rope_theta": decoder.rope_theta,
                "max_position_embeddings": decoder.context,
                "sliding_window": None,
                "tie_word_embeddings": False,
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": vision.dim,
                "num_hidden_layers": vision.n_layers,
                "num_attention_heads": vision.n_heads,
                "head_dim": vision.head_dim,
                "intermediate_size": vision.ffn_dim,
                "hidden_act": "silu",
                "num_channels": vision.n_channels,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "rope_theta": vision.rope_theta,
            },
        }


def _vision_numbers(eye: Section, defaults: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Read the numbers that both formats spell alike."""
    names = ("dim", "n_layers", "n_heads", "ffn_dim", "n_channels", "patch_size", "image_size")
    keys = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "num_channels",
        "patch_size",
        "image_size",
    )
    given: tuple[object, ...] = defaults or (REQUIRED,) * len(keys)
    return {name: eye.integer(key, default) for name, key, default in zip(names, keys, given, strict=True)}


def _hf_theta(section: Section, kind: str) -> float:
    """Read rope_theta, at top level (transformers 4) or under rope_parameters (5); absent means 10000."""
    theta = section.number("rope_theta") if section.has("rope_theta") else None
    section.only("rope_theta", theta, default=None)
    section.only("partial_rotary_factor", 1.0, default=1.0, null=1.0)
    for key in ("rope_parameters", "rope_scaling"):
        if not section.has(key):
            section.only(key, None, default=None)
            continue
        rope = section.section(key)
        for name in ("rope_type", "type"):
            rope.only(name, *dict.fromkeys((kind, "default")), default=kind)
        rope.only("partial_rotary_factor", 1.0, default=1.0, null=1.0)
        if rope.has("rope_theta"):
            found = rope.number("rope_theta")
            rope.only("rope_theta", theta or found, default=None)
            theta = found
        rope.finish(frozenset())
    return 10_000.0 if theta is None else theta


def _with_trained_context(decoder: DecoderConfig) -> DecoderConfig:
    """Take Pixtral-12B's context where a file of its geometry states a longer one.

    mistral-community/pixtral-12b says 1,024,000, as Mistral-Nemo's first files did. A vocabulary may have
    grown in a fine-tune; another theta is another model.
    """
    trained = PIXTRAL_12B_DECODER
    same = replace(decoder, context=trained.context, vocab_size=trained.vocab_size, norm_eps=trained.norm_eps)
    if same != trained or decoder.context <= trained.context:
        return decoder
    return replace(decoder, context=trained.context, stated_context=decoder.context)


_MOST = {"n_layers": 1024, "n_heads": 4096, "n_kv_heads": 4096, "patch_size": 256, "image_size": 1 << 14}


def _check_positive(config: DecoderConfig | VisionConfig) -> None:
    for name, value in vars(config).items():
        if name == "stated_context":
            continue
        if not is_positive(value):
            raise ConfigError(f"{name} is {value!r:.60}, but it must be positive")
        # from a stranger's file, and more than a loop over it or memory for it could take
        if isinstance(value, int) and value > (most := _MOST.get(name, 1 << 24)):
            raise ConfigError(f"{name} is {value:,}, and pixedge takes up to {most:,}")


PIXTRAL_12B_DECODER = DecoderConfig(
    dim=5120,
    n_layers=40,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_dim=14336,
    vocab_size=131_072,
    norm_eps=1e-5,
    rope_theta=1e9,
    context=DEFAULT_CONTEXT,
)
