"""Pixtral-12B's config.json as fourteen versions of transformers and other tools save it.

The files in saved_configs/ were written by those versions. Up to 4.49 they hold generation defaults in both
nested configurations; 4.47 and 4.48 leave out head_dim; 5 moves the rotation. All mean one model.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from pixedge.config import ModelConfig
from pixedge.errors import ConfigError
from pixedge.known_shapes import PIXTRAL_12B

SAVED = sorted((Path(__file__).parent / "saved_configs").glob("*.json"))
SECTIONS = ("", "text_config", "vision_config")


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((SAVED[0].parent / f"{name}.json").read_text(encoding="utf-8"))
    return data


def with_key(data: dict[str, Any], section: str, key: str, value: object) -> dict[str, Any]:
    data = copy.deepcopy(data)
    (data[section] if section else data)[key] = value
    return data


@pytest.mark.parametrize("file", SAVED, ids=lambda file: file.stem)
def test_every_version_saves_the_same_model(file: Path) -> None:
    config = ModelConfig.from_hf(json.loads(file.read_text(encoding="utf-8")))
    assert config == PIXTRAL_12B
    assert config.decoder.stated_context == 1_024_000


def test_the_files_are_what_their_names_say() -> None:
    versions = {file.stem.removesuffix("-whole") for file in SAVED} - {"hub"}
    assert versions == {load(version)["transformers_version"] for version in versions}
    assert {"4.45.2", "4.49.0", "4.51.3", "4.53.3", "4.57.1", "5.24.0"} <= versions
    assert "bad_words_ids" in load("4.45.2")["vision_config"]
    assert "head_dim" not in load("4.47.1")["text_config"]


@pytest.mark.parametrize("section", SECTIONS)
def test_what_generate_and_every_configuration_may_hold_is_let_stand(section: str) -> None:
    """The keys come from transformers itself, so that those of a later version are seen here."""
    keys = transformers.GenerationConfig().to_dict() | transformers.PretrainedConfig().to_dict()
    for key, value in keys.items():
        if key not in ("model_type", "rope_parameters"):
            assert ModelConfig.from_hf(with_key(load("hub"), section, key, value)) == PIXTRAL_12B, key


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "unsloth_fixed", True),
        ("", "unsloth_version", "2025.3.1"),
        ("", "use_cache", False),
        ("", "quantization_config", None),
        ("", "architectures", None),
        ("", "auto_map", {"AutoModel": "modeling.Model"}),
        ("", "_attn_implementation_autoset", True),
        ("text_config", "_attn_implementation_autoset", True),
        ("text_config", "unsloth_fixed", True),
        ("text_config", "torch_dtype", "bfloat16"),
        ("text_config", "dtype", "bfloat16"),
        ("text_config", "pruned_heads", {}),
        ("text_config", "rope_scaling", None),
        ("vision_config", "rope_scaling", None),
        ("vision_config", "use_cache", False),
        # beside text_config and in it again: the text's own value counts
        ("", "hidden_size", 4096),
        ("", "rope_parameters", {"rope_theta": 10000.0, "rope_type": "default"}),
        ("", "rope_theta", 10000.0),
        ("", "max_position_embeddings", 4096),
        ("", "vocab_size", 32000),
    ],
)
def test_what_tools_leave_behind_is_let_stand(section: str, key: str, value: object) -> None:
    assert ModelConfig.from_hf(with_key(load("hub"), section, key, value)) == PIXTRAL_12B


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "pruned_heads", {"0": [1]}),
        ("vision_config", "pruned_heads", {"0": [1]}),
        ("text_config", "attention_bias", True),
        ("text_config", "logit_softcapping", 30.0),
        ("text_config", "tie_word_embeddings", True),
        ("text_config", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("text_config", "sliding_window", 4096),
        ("", "hidden_scale", 2.0),
    ],
)
def test_what_changes_a_forward_pass_stays_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_hf(with_key(load("hub"), section, key, value))


def test_a_rotation_at_the_top_alone_is_refused() -> None:
    data = load("5.24.0")
    data["rope_parameters"] = data["text_config"].pop("rope_parameters")
    with pytest.raises(ConfigError, match=r"config\.json: rope_parameters is .*1000000000"):
        ModelConfig.from_hf(data)


def test_head_dim_is_left_out_by_two_versions_only() -> None:
    """4.47 and 4.48 drop the default of 128 and read 160 back; elsewhere absence means the width's share."""
    data = load("4.48.3")
    assert ModelConfig.from_hf(data).decoder.head_dim == 128
    assert ModelConfig.from_hf(data | {"transformers_version": "4.49.0"}).decoder.head_dim == 160
    assert ModelConfig.from_hf(with_key(data, "text_config", "head_dim", 64)).decoder.head_dim == 64


def test_pixtral_12b_has_its_own_context() -> None:
    """1,024,000 planned a context of 186,976 on 24 GiB and went into exports."""
    config = ModelConfig.from_hf(load("hub"))
    assert config.decoder.context == 131_072
    assert "states a context of 1,024,000 tokens" in str(config.decoder.context_note())
    written = (config.to_params(), config.to_hf())
    assert written[0]["max_position_embeddings"] == 131_072
    assert written[1]["text_config"]["max_position_embeddings"] == 131_072
    again = ModelConfig.from_params(written[0])
    assert again == config and again.decoder.context_note() is None
    # as an earlier pixedge exported it
    assert ModelConfig.from_params(written[0] | {"max_position_embeddings": 1_024_000}) == config
    assert config.reaching(200_000).decoder.context == 200_000
    assert config.reaching(1000) == config


@pytest.mark.parametrize(
    ("key", "value", "context"),
    [
        ("vocab_size", 131_080, 131_072),  # tokens added by a fine-tune
        ("max_position_embeddings", 32_768, 32_768),
        ("rope_theta", 1e10, 1_024_000),
        ("num_hidden_layers", 48, 1_024_000),
    ],
)
def test_only_pixtral_12b_is_held_to_its_context(key: str, value: object, context: int) -> None:
    config = ModelConfig.from_hf(with_key(load("hub"), "text_config", key, value))
    assert config.decoder.context == context
    assert (config.decoder.context_note() is None) == (context != 131_072)
