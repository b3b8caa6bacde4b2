"""Configurations from both formats: equal where they say the same, refused where pixedge would differ."""

import copy
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]

# Pixtral-12B-2409 as Mistral spells it.
PARAMS: dict[str, Any] = {
    "dim": 5120,
    "n_layers": 40,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "rope_theta": 1000000000.0,
    "norm_eps": 1e-05,
    "vocab_size": 131072,
    "vision_encoder": {
        "hidden_size": 1024,
        "num_channels": 3,
        "image_size": 1024,
        "patch_size": 16,
        "rope_theta": 10000.0,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "adapter_bias": True,
        "image_token_id": 10,
        "image_break_token_id": 12,
        "image_end_token_id": 13,
    },
}
# The same model as transformers 4 writes it: keys that equal a class default are left out.
HF: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_seq_length": 1,
    "image_token_index": 10,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "is_composition": True,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vision_config": {
        "head_dim": 64,
        "hidden_act": "silu",
        "image_size": 1024,
        "is_composition": True,
        "model_type": "pixtral",
        "patch_size": 16,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
PIXTRAL_12B = ModelConfig(
    DecoderConfig(
        dim=5120,
        n_layers=40,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        ffn_dim=14336,
        vocab_size=131072,
        norm_eps=1e-5,
        rope_theta=1e9,
        context=131072,
    ),
    VisionConfig(
        dim=1024,
        n_layers=24,
        n_heads=16,
        ffn_dim=4096,
        n_channels=3,
        patch_size=16,
        image_size=1024,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)
REMOVE = object()


def edited(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Copy `data` with one key set, or removed where the value is REMOVE."""
    data = copy.deepcopy(data)
    *parents, key = path.split(".")
    target = data
    for parent in parents:
        target = target[parent]
    if value is REMOVE:
        del target[key]
    else:
        target[key] = value
    return data


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    small = st.integers(1, 6)
    n_kv_heads, vision_heads, patch = draw(small), draw(small), draw(st.integers(1, 20))
    image, *rest = draw(st.lists(st.integers(1, 40), min_size=3, max_size=3, unique=True))
    decoder = DecoderConfig(
        dim=draw(st.integers(1, 99)),
        n_layers=draw(small),
        n_heads=n_kv_heads * draw(small),
        n_kv_heads=n_kv_heads,
        head_dim=2 * draw(small),
        ffn_dim=draw(st.integers(1, 99)),
        vocab_size=draw(st.integers(41, 200_000)),
        norm_eps=draw(st.floats(1e-12, 1e-2)),
        rope_theta=draw(st.floats(1.0, 1e12)),
        context=draw(st.integers(1, 10**6)),
    )
    vision = VisionConfig(
        dim=vision_heads * 4 * draw(small),
        n_layers=draw(small),
        n_heads=vision_heads,
        ffn_dim=draw(st.integers(1, 99)),
        n_channels=3,
        patch_size=patch,
        image_size=patch * draw(small),
        rope_theta=draw(st.floats(1.0, 1e12)),
        norm_eps=1e-5,
        image_token_id=image,
        image_break_token_id=rest[0],
        image_end_token_id=rest[1],
    )
    return ModelConfig(decoder, vision)


def test_both_files_of_pixtral_12b_give_the_same_geometry() -> None:
    assert ModelConfig.from_params(PARAMS) == PIXTRAL_12B
    assert ModelConfig.from_hf(HF) == PIXTRAL_12B
    assert PIXTRAL_12B.vision.head_dim == 64


@given(configs())
def test_round_trips(config: ModelConfig) -> None:
    assert ModelConfig.from_params(json.loads(json.dumps(config.to_params()))) == config
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@given(configs())
@settings(max_examples=25, deadline=None)
def test_transformers_reads_to_hf_and_from_hf_reads_what_transformers_writes(config: ModelConfig) -> None:
    theirs = transformers.LlavaConfig(**config.to_hf())
    assert ModelConfig.from_hf(json.loads(theirs.to_json_string(use_diff=True))) == config
    assert ModelConfig.from_hf(json.loads(theirs.to_json_string(use_diff=False))) == config
    text, eye = theirs.text_config, theirs.vision_config
    assert isinstance(text, transformers.MistralConfig) and isinstance(eye, transformers.PixtralVisionConfig)
    assert text.rope_parameters["rope_theta"] == config.decoder.rope_theta
    assert eye.rope_parameters["rope_theta"] == config.vision.rope_theta
    assert not theirs.tie_word_embeddings and not text.tie_word_embeddings
    assert theirs.image_token_id == config.vision.image_token_id


def test_transformers_knows_which_tokens_begin_and_end_a_text() -> None:
    theirs = transformers.LlavaConfig(**PIXTRAL_12B.to_hf())
    generation = transformers.GenerationConfig.from_model_config(theirs)
    tekken = Tekkenizer.from_file(ROOT / "models" / "demo" / "tekken.json")
    ids = generation.bos_token_id, generation.eos_token_id, generation.pad_token_id
    assert ids == (tekken.bos_id, tekken.eos_id, tekken.pad_id) == (1, 2, 11)


def test_transformers_builds_a_model_of_the_right_shapes() -> None:
    decoder = replace(
        PIXTRAL_12B.decoder, dim=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=40
    )
    vision = replace(PIXTRAL_12B.vision, dim=32, n_layers=3, n_heads=2, ffn_dim=24, image_size=64)
    config = ModelConfig(replace(decoder, vocab_size=64), vision)
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**config.to_hf()))
    text, eye = model.model.language_model, model.model.vision_tower
    assert (len(text.layers), len(eye.transformer.layers)) == (2, 3)
    assert text.layers[0].self_attn.q_proj.weight.shape == (32, 48)
    assert text.layers[0].self_attn.k_proj.weight.shape == (16, 48)
    assert text.layers[0].mlp.down_proj.weight.shape == (48, 40)
    assert eye.patch_conv.weight.shape == (32, 3, 16, 16)
    assert eye.transformer.layers[0].feed_forward.gate_proj.weight.shape == (24, 32)
    assert model.model.multi_modal_projector.linear_1.weight.shape == (48, 32)
    assert model.model.multi_modal_projector.linear_2.bias.shape == (48,)
    assert model.lm_head.weight.shape == (64, 48) and model.lm_head.weight is not text.embed_tokens.weight


def test_rope_theta_may_stand_under_rope_parameters() -> None:
    # transformers 5.0 calls the encoder's rotation "default"; later releases call it "axial".
    for kind in ("default", "axial"):
        data = edited(HF, "text_config.rope_theta", REMOVE)
        data = edited(data, "vision_config.rope_theta", REMOVE)
        data["text_config"]["rope_parameters"] = {"rope_theta": 1e9, "rope_type": "default"}
        data["vision_config"]["rope_parameters"] = {"rope_theta": 1e4, "rope_type": kind}
        assert ModelConfig.from_hf(data) == PIXTRAL_12B


@pytest.mark.parametrize("key", ["max_position_embeddings", "max_seq_len"])
def test_params_may_state_the_context(key: str) -> None:
    assert ModelConfig.from_params(edited(PARAMS, key, 4096)).decoder.context == 4096


def test_the_smaller_of_two_contexts_counts() -> None:
    data = PARAMS | {"max_position_embeddings": 65536, "max_seq_len": 32768}
    assert ModelConfig.from_params(data).decoder.context == 32768


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("use_biases", False),
        ("sliding_window", None),
        ("sliding_window", 131072),
        ("moe", None),
        ("tied_embeddings", False),
        ("yarn", None),
        ("model_type", "transformer"),
        ("max_batch_size", 1),
        ("vision_encoder.adapter_bias", REMOVE),
        ("vision_encoder.max_image_size", 1024),
        ("vision_encoder.spatial_merge_size", 1),
        ("vision_encoder.mm_projector_id", ""),
        ("vision_encoder.add_pre_mm_projector_layer_norm", False),
    ],
)
def test_neutral_values_in_params_are_accepted(path: str, value: object) -> None:
    assert ModelConfig.from_params(edited(PARAMS, path, value)) == PIXTRAL_12B


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("text_config.head_dim", None),
        ("text_config.num_key_value_heads", 8),
        ("text_config.layer_types", ["full_attention"] * 40),
        ("text_config.rope_scaling", None),
        ("text_config.use_cache", True),
        ("text_config._name_or_path", "somewhere"),
        ("vision_config.num_attention_heads", 16),
        ("image_break_token_id", 12),
        ("vocab_size", 32000),
    ],
)
def test_neutral_values_in_hf_are_accepted(path: str, value: object) -> None:
    if path == "text_config.head_dim":
        data = edited(edited(HF, path, value), "text_config.hidden_size", 4096)
        assert ModelConfig.from_hf(data).decoder.head_dim == 128
        return
    assert ModelConfig.from_hf(edited(HF, path, value)) == PIXTRAL_12B


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("dim", REMOVE, "params.json has no dim, which a Pixtral checkpoint must state"),
        ("dim", "5120", "params.json: dim is '5120', but it must be a positive whole number"),
        ("dim", 5120.0, "params.json: dim is 5120.0, but it must be a positive whole number"),
        ("n_layers", 0, "params.json: n_layers is 0, but it must be a positive whole number"),
        ("n_layers", True, "params.json: n_layers is True, but it must be a positive whole number"),
        ("norm_eps", -1e-5, "params.json: norm_eps is -1e-05, but it must be a positive number"),
        ("rope_theta", float("nan"), "params.json: rope_theta is nan, but it must be a positive number"),
        ("rope_theta", 10**400, "but it must be a positive number"),
        ("n_kv_heads", 5, "params.json: the decoder has 32 heads, which 5 key-value heads do not divide"),
        ("head_dim", 127, "params.json: the decoder's head_dim is 127, but rotary pairs need an even number"),
        ("vocab_size", 13, "params.json: the image token id 13 lies outside the vocabulary of 13"),
        ("use_biases", True, "params.json: use_biases is true; pixedge supports only false"),
        ("use_biases", 0, "params.json: use_biases is 0; pixedge supports only false"),
        ("tied_embeddings", True, "params.json: tied_embeddings is true; pixedge supports only false"),
        ("yarn", {"factor": 4}, 'params.json: yarn is {"factor": 4}; pixedge supports only null'),
        ("moe", {"num_experts": 8}, "params.json: this looks like a mixture of experts of Mistral's"),
        (
            "sliding_window",
            4096,
            "sliding_window is 4096; pixedge supports only null or at least the context",
        ),
        ("q_lora_rank", 64, "params.json: q_lora_rank is 64, but that key is not one that pixedge knows"),
        (
            "vision_encoder",
            REMOVE,
            "params.json: this looks like Mistral-Nemo-12B (text only: no vision_encoder)",
        ),
        ("vision_encoder", 3, "params.json: vision_encoder is 3, but it must be a JSON object"),
        ("vision_encoder.hidden_size", 1000, "the vision width 1000 is not a multiple of its 16 heads"),
        ("vision_encoder.num_attention_heads", 512, "the vision head_dim is 2, but two rotary axes need a"),
        ("vision_encoder.image_size", 1000, "image size 1000 is not a multiple of the patch size 16"),
        ("vision_encoder.num_channels", 4, "the vision encoder takes 4 channels; pixedge gives it 3 (RGB)"),
        (
            "vision_encoder.adapter_bias",
            False,
            "vision_encoder.adapter_bias is false; pixedge supports only true",
        ),
        (
            "vision_encoder.spatial_merge_size",
            2,
            "whose vision encoder merges patches (vision_encoder.spatial_merge_size), which pixedge does not",
        ),
        (
            "vision_encoder.mm_projector_id",
            "patch_merge",
            "whose vision encoder merges patches",
        ),
        (
            "vision_encoder.add_pre_mm_projector_layer_norm",
            True,
            "layer_norm is true; pixedge supports only false",
        ),
        ("vision_encoder.max_image_size", 512, "max_image_size is 512; pixedge supports only 1024"),
        ("vision_encoder.image_end_token_id", 12, "are (10, 12, 12), but they must differ"),
        (
            "vision_encoder.window",
            8,
            "vision_encoder.window is 8, but that key is not one that pixedge knows",
        ),
    ],
)
def test_params_refusals_name_file_key_and_value(path: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_params(edited(PARAMS, path, value))
    assert sentence in str(error.value) and str(error.value).startswith("params.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, {}, [], ""])
@pytest.mark.parametrize("path", ["kv_cache_scheme", "text_config.lm_head", "vision_config.layer_types_v2"])
def test_keys_that_hold_nothing_are_let_stand(path: str, value: object) -> None:
    """Configurations are saved with the switches of a newer library, all of them off."""
    assert ModelConfig.from_hf(edited(HF, path, value)) == ModelConfig.from_hf(HF)
    with pytest.raises(ConfigError, match="not one that pixedge knows"):
        ModelConfig.from_hf(edited(HF, path, 0))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("model_type", "mistral3", 'whose vision encoder merges patches (model_type "mistral3")'),
        (
            "model_type",
            REMOVE,
            'model_type is null by default, as the key is absent; pixedge supports only "llava"',
        ),
        ("projector_hidden_act", "relu", 'projector_hidden_act is "relu"; pixedge supports only "gelu"'),
        ("vision_feature_layer", REMOVE, "vision_feature_layer is -2 by default, as the key is absent"),
        ("vision_feature_layer", [-1], "vision_feature_layer is [-1]; pixedge supports only -1"),
        ("vision_feature_select_strategy", "default", 'is "default"; pixedge supports only "full"'),
        (
            "multimodal_projector_bias",
            False,
            "multimodal_projector_bias is false; pixedge supports only true",
        ),
        ("image_token_index", REMOVE, "config.json has no image_token_index"),
        ("image_token_id", 11, "image_token_index is 10; pixedge supports only 11"),
        ("spatial_merge_size", 2, "config.json: spatial_merge_size is 2, but that key is not one"),
        (
            "tie_word_embeddings",
            True,
            "config.json: tie_word_embeddings is true; pixedge supports only false",
        ),
        ("text_config", REMOVE, "config.json has no text_config"),
        (
            "text_config.model_type",
            "qwen2",
            'looks like a LLaVA with another decoder (text_config.model_type "qwen2")',
        ),
        ("text_config.tie_word_embeddings", True, "text_config.tie_word_embeddings is true"),
        ("text_config.hidden_act", "gelu", 'text_config.hidden_act is "gelu"; pixedge supports only "silu"'),
        ("text_config.sliding_window", REMOVE, "text_config.sliding_window is 4096 by default"),
        ("text_config.num_hidden_layers", -1, "text_config.num_hidden_layers is -1, but it must be"),
        ("text_config.rope_scaling", {"type": "linear"}, 'type is "linear"; pixedge supports only "default"'),
        ("text_config.rope_scaling", {"factor": 2.0}, "text_config.rope_scaling.factor is 2.0, but that key"),
        (
            "text_config.rope_parameters",
            {"rope_theta": 5.0},
            "rope_parameters.rope_theta is 5.0; pixedge supports",
        ),
        ("text_config.rope_theta", 0, "text_config.rope_theta is 0, but it must be a positive number"),
        ("text_config.layer_types", ["sliding_attention"], "text_config.layer_types is"),
        ("vision_config.model_type", "siglip", 'vision encoder (vision_config.model_type "siglip")'),
        ("vision_config.hidden_act", REMOVE, 'vision_config.hidden_act is "gelu" by default'),
        ("vision_config.head_dim", 32, "vision_config.head_dim is 32; pixedge supports only 64"),
        ("vision_config.image_size", [1024, 512], "vision_config.image_size is [1024, 512], but it must be"),
        (
            "vision_config.rope_parameters",
            {"rope_type": "yarn"},
            'pixedge supports only "axial" or "default"',
        ),
    ],
)
def test_hf_refusals_name_file_key_and_value(path: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_hf(edited(HF, path, value))
    assert sentence in str(error.value) and str(error.value).startswith("config.json")
    assert "\n" not in str(error.value)


def test_load_prefers_params_and_names_the_file_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HF))
    assert ModelConfig.load(tmp_path) == PIXTRAL_12B
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"max_seq_len": 1024}))
    assert ModelConfig.load(str(tmp_path)).decoder.context == 1024
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | {"dim": 0}))
    with pytest.raises(ConfigError, match=r"params\.json: dim is 0") as error:
        ModelConfig.load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", '{"dim": 5120', "\udcff", "[" * 100_000])
def test_load_refuses_what_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"params\.json is not valid JSON \(.*\); fetch it again"):
        ModelConfig.load(tmp_path)


def test_load_refuses_json_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"config\.json is \[1, 2\], but it must be a JSON object"):
        ModelConfig.load(tmp_path)


def test_load_refuses_a_folder_without_either_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither params\.json nor config\.json"):
        ModelConfig.load(tmp_path)
    with pytest.raises(CheckpointError, match="missing is not a folder"):
        ModelConfig.load(tmp_path / "missing")


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PIXTRAL_12B.decoder.dim = 1  # type: ignore[misc]


def test_importing_config_imports_nothing_heavy() -> None:
    code = "import pixedge.config, sys; print(sorted({'torch', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
