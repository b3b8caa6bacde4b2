"""A model, a quantisation or a file that pixedge does not take is named as its publisher names it.

Configurations are written by transformers' own classes, or are the public params.json of the family.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner, Result

from pixedge.cli import main
from pixedge.known_shapes import PIXTRAL_12B

NEMO = {
    "dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "rope_theta": 1e6, "norm_eps": 1e-5, "vocab_size": 131072, "max_position_embeddings": 128000,
}  # fmt: skip
SMALL_3 = NEMO | {"hidden_dim": 32768, "rope_theta": 1e8, "max_seq_len": 32768}
MERGING = {
    "hidden_size": 1024, "num_channels": 3, "image_size": 1540, "max_image_size": 1540, "patch_size": 14,
    "rope_theta": 10000.0, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "adapter_bias": False, "mm_projector_id": "patch_merge", "spatial_merge_size": 2, "image_token_id": 10,
    "add_pre_mm_projector_layer_norm": True, "image_break_token_id": 12, "image_end_token_id": 13,
}  # fmt: skip
YARN = {"original_max_position_embeddings": 16384, "factor": 16, "apply_scale": False, "beta": 32, "alpha": 1}
MINISTRAL = {
    "tied_embeddings": False, "model_type": "transformer", "max_position_embeddings": 262144, "yarn": YARN,
    "llama_4_scaling": {"original_max_position_embeddings": 16384, "beta": 0.1}, "q_lora_rank": None,
    "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}, "vision_encoder": MERGING,
}  # fmt: skip
LARGE_EYE = MERGING | {"image_size": 1024, "max_image_size": 1024, "patch_size": 16, "spatial_merge_size": 1,
                       "mm_projector_id": "", "add_pre_mm_projector_layer_norm": False}  # fmt: skip
PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "Nemo": (NEMO, "this looks like Mistral-Nemo-12B (text only: no vision_encoder)"),
    "7B": (NEMO | {"dim": 4096, "n_layers": 32}, "this looks like Mistral-7B (text only"),
    "Small 3": (SMALL_3, "this looks like Mistral-Small-3 (24B) (text only"),
    "Small 3.1": (
        SMALL_3 | {"vision_encoder": MERGING},
        "this looks like Mistral-Small-3.1 or 3.2 (24B), whose vision encoder merges patches",
    ),
    "Devstral 2": (
        SMALL_3 | MINISTRAL,
        "this looks like Devstral-Small-2 (24B), whose vision encoder merges",
    ),
    "Ministral 3": (
        NEMO | MINISTRAL | {"hidden_dim": 16384},
        "this looks like Ministral-3-14B, whose vision",
    ),
    "Pixtral Large": (
        NEMO | {"dim": 12288, "n_layers": 88, "hidden_dim": 28672, "vision_encoder": LARGE_EYE},
        "this looks like Pixtral-Large (124B), whose weights take about 60 GiB in 4 bits",
    ),
    "Mixtral": (NEMO | {"moe": {"num_experts": 8}}, "this looks like a mixture of experts of Mistral's"),
    "unknown": (NEMO | {"dim": 6000}, "this looks like a Mistral model of width 6000, 40 layers (text only"),
}


def of_transformers(name: str, **values: Any) -> dict[str, Any]:
    config = getattr(transformers, name)(**values)
    data: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return data


CONFIGS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "Nemo": (
        lambda: of_transformers("MistralConfig", hidden_size=5120, num_hidden_layers=40, head_dim=128),
        'this looks like Mistral-Nemo-12B (text only: model_type "mistral")',
    ),
    "Small 3.1": (
        lambda: of_transformers("Mistral3Config"),
        "this looks like Mistral-Small-3.1 or 3.2 (24B), whose vision encoder merges patches",
    ),
    "LLaVA-1.5": (
        lambda: of_transformers("LlavaConfig"),
        'this looks like LLaVA-1.5 (text_config.model_type "llama"',
    ),
    "Qwen2-VL": (lambda: of_transformers("Qwen2VLConfig"), "this looks like Qwen2-VL"),
    "Gemma-3": (lambda: of_transformers("Gemma3Config"), "this looks like Gemma-3"),
    "encoder": (
        lambda: of_transformers("PixtralVisionConfig"),
        "this looks like the vision encoder of a Pixtral without its decoder",
    ),
    "unknown": (lambda: {"model_type": "newest"}, 'this looks like a model of the type "newest"'),
}


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """Run a command; return its one sentence on stderr."""
    result = ask(*arguments, *(["--quiet"] if arguments[0] == "export" else []))
    assert result.exit_code == 1 and result.stdout == "", (result.exit_code, result.output)
    assert result.stderr.startswith("pixedge: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("name", PARAMS)
def test_other_models_in_mistrals_layout(name: str, tmp_path: Path) -> None:
    data, sentence = PARAMS[name]
    (tmp_path / "params.json").write_text(json.dumps(data))
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    for command in ("export", "plan"):
        found = refused(command, tmp_path)
        assert f"{tmp_path}/params.json: {sentence}" in found
        assert found.endswith("such as mistralai/Pixtral-12B-2409\n")


@pytest.mark.parametrize("name", CONFIGS)
def test_other_models_in_hugging_faces_layout(name: str, tmp_path: Path) -> None:
    make, sentence = CONFIGS[name]
    # quantised too: the original of another model would not help
    (tmp_path / "config.json").write_text(json.dumps(make() | {"quantization_config": {"bits": 4}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    for command in (("export", tmp_path), ("import", tmp_path, tmp_path / "out"), ("plan", tmp_path)):
        assert f"{tmp_path}/config.json: {sentence}" in refused(*command)


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, "FP8"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "newest"}}, "newest"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX"),
    ],
)
def test_quantised_folders_say_with_what(said: dict[str, Any], method: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PIXTRAL_12B.to_hf() | said))
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = refused("export", tmp_path)
    assert f"quantised already ({method}); give the original 16-bit checkpoint" in found
    assert ("pixedge import" in found) == (method == "GPTQ")


def test_fp8_in_mistrals_layout(tmp_path: Path) -> None:
    said = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    (tmp_path / "params.json").write_text(json.dumps(PIXTRAL_12B.to_params() | said))
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert "quantised already (FP8_E4M3)" in refused("export", tmp_path)


def test_gptq_folders_are_for_import(tmp_path: Path) -> None:
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(PIXTRAL_12B.to_hf() | said))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "(GPTQ); give the original 16-bit checkpoint; 4-bit GPTQ weights are taken by pixedge import" in (
        refused("export", tmp_path)
    )


def test_gguf(tmp_path: Path) -> None:
    file = tmp_path / "pixtral-12b-Q4_K_M.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00")
    named = f"{file} is a GGUF file, the format of llama.cpp, which pixedge does not read; give the original"
    for command in (
        ("export", file),
        ("import", file, tmp_path / "out"),
        ("plan", file),
        ("run", "--model", file, "hello"),
        ("count", "--model", file, "hello"),
    ):
        assert named in refused(*command)
    for command in (("export", tmp_path), ("import", tmp_path, tmp_path / "out"), ("plan", tmp_path)):
        assert f"{tmp_path} holds GGUF files" in refused(*command)


def test_a_weights_file_in_place_of_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert f"{file} is a file; give the folder that holds it" in refused("export", file)


def test_a_lora_adapter(tmp_path: Path) -> None:
    data = {"peft_type": "LORA", "base_model_name_or_path": "mistral-community/pixtral-12b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(data))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    sentence = (
        f"{tmp_path} holds a LoRA adapter for mistral-community/pixtral-12b (adapter_config.json) without "
        "the weights that it adapts; merge it into them with peft"
    )
    assert sentence in refused("export", tmp_path) and sentence in refused("plan", tmp_path)
    # beside whole weights transformers applies it, and pixedge would leave it out
    (tmp_path / "config.json").write_text(json.dumps(PIXTRAL_12B.to_hf()))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "would leave the adapter out: merge it" in refused("export", tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    assert f"{tmp_path} holds a LoRA adapter (adapter_config.json) beside" in refused("export", tmp_path)


def test_an_export_is_not_exported_again(tmp_path: Path) -> None:
    (tmp_path / "pixedge.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(PIXTRAL_12B.to_hf()))
    for command in (("export", tmp_path), ("import", tmp_path, tmp_path / "out")):
        assert f"{tmp_path} was exported by pixedge already; ask it: pixedge run" in refused(*command)


@pytest.mark.parametrize("name", ["model.safetensors", "tekken.json"])
def test_a_clone_without_its_large_files(name: str, tmp_path: Path) -> None:
    """It was called truncated, with a header of 2,336,927,755,350,992,254 bytes."""
    (tmp_path / "config.json").write_text(json.dumps(PIXTRAL_12B.to_hf()))
    (tmp_path / "model.safetensors").write_bytes(b"")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 25000000000\n"
    (tmp_path / name).write_text(pointer)
    for command in (("export", tmp_path), ("import", tmp_path, tmp_path / "out")):
        assert f"without its large files: {name} is a pointer of Git LFS; run git lfs" in refused(*command)


def test_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "c0ffee").mkdir(parents=True)
    found = refused("export", tmp_path)
    assert f"give the folder of one commit: {tmp_path / 'snapshots' / 'c0ffee'}" in found
