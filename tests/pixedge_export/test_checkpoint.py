"""Checkpoints: both layouts give the same canonical tensors, and whatever does not fit is named."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import PermuteForRope

from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.errors import CheckpointError, ConfigError
from pixedge_export.canonical import to_half_split, to_interleaved
from pixedge_export.checkpoint import (
    expected_shapes,
    open_checkpoint,
    save_checkpoint,
    to_mistral_name,
)

Tensors = dict[str, torch.Tensor]

CONFIG = ModelConfig(
    DecoderConfig(
        dim=24,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=20,
        vocab_size=32,
        norm_eps=1e-5,
        rope_theta=1e6,
        context=64,
    ),
    VisionConfig(
        dim=16,
        n_layers=2,
        n_heads=2,
        ffn_dim=12,
        n_channels=3,
        patch_size=4,
        image_size=32,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)
QUERY = "layers.0.attention.wq.weight"
CANONICAL_QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


def random_tensors(dtype: torch.dtype = torch.bfloat16) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    shapes = expected_shapes(CONFIG)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "mistral")
    return tmp_path


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "hf")
    return tmp_path


def rewrite(file: Path, change: Callable[[Tensors], object]) -> None:
    """Save a weights file again after changing the tensors in it."""
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a weights file again after changing its header, leaving the data as it is."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def refusal(folder: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        open_checkpoint(folder)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("layout", ["mistral", "hf"])
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 4000, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_saved_is_read(tmp_path: Path, layout: Any, max_shard_bytes: int, dtype: torch.dtype) -> None:
    tensors = random_tensors(dtype)
    save_checkpoint(tmp_path, CONFIG, tensors, layout, max_shard_bytes)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config, checkpoint.layout, checkpoint.folder) == (CONFIG, layout, tmp_path)
    assert (len(checkpoint.weight_files) > 1) == (max_shard_bytes < 1 << 30)
    assert checkpoint.names() == tuple(expected_shapes(CONFIG))
    for name in checkpoint.names():
        found = checkpoint.tensor(name)
        assert found.dtype == dtype
        assert torch.equal(found, tensors[name]), name


def test_mistral_files_carry_mistral_names_and_interleaved_rows(mistral: Path) -> None:
    stored = load_file(mistral / "consolidated.safetensors")
    layer = "attention.w{q,k,v,o} attention_norm ffn_norm feed_forward.w1 feed_forward.w2 feed_forward.w3"
    parts = layer.replace("attention.w{q,k,v,o}", " ".join(f"attention.w{p}" for p in "qkvo")).split()
    expected = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    expected |= {f"layers.{i}.{part}.weight" for i in range(2) for part in parts}
    expected |= {f"vision_encoder.transformer.layers.{i}.{part}.weight" for i in range(2) for part in parts}
    expected |= {"vision_encoder.patch_conv.weight", "vision_encoder.ln_pre.weight"}
    expected |= {
        f"vision_language_adapter.w_{way}.{kind}" for way in ("in", "out") for kind in ("weight", "bias")
    }
    assert stored.keys() == expected

    tensors = random_tensors()
    for name, mine in (
        (CANONICAL_QUERY, QUERY),
        # two heads of keys, where the queries have four: the number of heads is the weight's own
        (CANONICAL_QUERY.replace("q_proj", "k_proj"), QUERY.replace("wq", "wk")),
        (
            "vision_tower.transformer.layers.1.attention.k_proj.weight",
            "vision_encoder.transformer.layers.1.attention.wk.weight",
        ),
    ):
        # Head by head, canonical rows are the stored rows 0, 2, 4, 6, then 1, 3, 5, 7.
        order = [8 * head + row for head in range(len(stored[mine]) // 8) for row in (0, 2, 4, 6, 1, 3, 5, 7)]
        assert torch.equal(tensors[name], stored[mine][order])
        theirs = SimpleNamespace(num_attention_heads=len(stored[mine]) // 8)  # transformers' own conversion
        assert torch.equal(tensors[name], PermuteForRope()._permute_for_rope(stored[mine], theirs))
    gate = "language_model.model.layers.1.mlp.gate_proj.weight"
    assert torch.equal(tensors[gate], stored["layers.1.feed_forward.w1.weight"])
    down = "language_model.model.layers.1.mlp.down_proj.weight"
    assert torch.equal(tensors[down], stored["layers.1.feed_forward.w2.weight"])
    value = "language_model.model.layers.0.self_attn.v_proj.weight"
    assert torch.equal(tensors[value], stored["layers.0.attention.wv.weight"])


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_rotary_orders_are_inverse(heads: int, pairs: int, width: int) -> None:
    rows = heads * pairs * 2
    weight = torch.arange(rows * width).reshape(rows, width)
    assert torch.equal(to_interleaved(to_half_split(weight, heads), heads), weight)
    assert torch.equal(to_half_split(to_interleaved(weight, heads), heads), weight)


def test_rotating_either_order_gives_the_same_scores() -> None:
    """Interleaved rotary on the stored rows and half-split rotary on the permuted ones agree on q · k."""
    torch.manual_seed(0)
    heads, head_dim, width, length = 2, 8, 5, 6
    wq, wk = torch.randn(2, heads * head_dim, width, dtype=torch.float64)
    x = torch.randn(length, width, dtype=torch.float64)
    angles = torch.arange(length)[:, None] * 100.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = angles[:, None].double()  # [length, 1, head_dim / 2]

    def interleaved(weight: torch.Tensor) -> torch.Tensor:
        y = (x @ weight.T).view(length, heads, head_dim // 2, 2)
        turned = torch.view_as_complex(y) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(2)

    def half_split(weight: torch.Tensor) -> torch.Tensor:
        first, second = (x @ to_half_split(weight, heads).T).view(length, heads, head_dim).chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    theirs = torch.einsum("qhd,khd->hqk", interleaved(wq), interleaved(wk))
    ours = torch.einsum("qhd,khd->hqk", half_split(wq), half_split(wk))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("max_shard_size", ["5GB", "3KB"])
def test_reads_what_transformers_saves(tmp_path: Path, max_shard_size: str) -> None:
    torch.manual_seed(1)
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**CONFIG.to_hf())).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == CONFIG
    assert (len(checkpoint.weight_files) > 1) == (max_shard_size == "3KB")
    modules = {
        "language_model.model.layers.1.self_attn.k_proj": model.model.language_model.layers[
            1
        ].self_attn.k_proj,
        "language_model.model.embed_tokens": model.model.language_model.embed_tokens,
        "language_model.lm_head": model.lm_head,
        "vision_tower.patch_conv": model.model.vision_tower.patch_conv,
        "vision_tower.transformer.layers.0.attention.q_proj": model.model.vision_tower.transformer.layers[
            0
        ].attention.q_proj,
        "multi_modal_projector.linear_2": model.model.multi_modal_projector.linear_2,
    }
    for name, module in modules.items():
        assert torch.equal(checkpoint.tensor(f"{name}.weight"), module.weight), name


def test_transformers_loads_what_save_checkpoint_writes(hf: Path) -> None:
    model = transformers.LlavaForConditionalGeneration.from_pretrained(hf, dtype="auto")
    assert model.dtype == torch.bfloat16
    tensors = random_tensors()
    layer = model.model.language_model.layers[0]
    assert torch.equal(layer.self_attn.q_proj.weight, tensors[CANONICAL_QUERY])
    assert torch.equal(model.lm_head.weight, tensors["language_model.lm_head.weight"])


def test_reads_the_names_that_transformers_has_in_memory(hf: Path) -> None:
    prefixes = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    file = hf / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        (old,) = (prefix for prefix in prefixes if name.startswith(prefix))
        renamed[prefixes[old] + name.removeprefix(old)] = tensor.clone()
    save_file(renamed, file)
    checkpoint, tensors = open_checkpoint(hf), random_tensors()
    assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in checkpoint.names())


def test_a_folder_with_both_layouts_is_read_as_mistrals(mistral: Path) -> None:
    save_checkpoint(mistral, CONFIG, random_tensors(), "hf")
    assert open_checkpoint(mistral).layout == "mistral"
    (mistral / "consolidated.safetensors").unlink()
    assert open_checkpoint(mistral).layout == "hf"


@pytest.mark.parametrize("pattern", ["consolidated-{0:05d}-of-{1:05d}", "consolidated.{2:02d}"])
def test_mistral_shards_need_no_index(tmp_path: Path, pattern: str) -> None:
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "mistral", max_shard_bytes=8000)
    (tmp_path / "consolidated.safetensors.index.json").unlink()
    shards = sorted(tmp_path.glob("*.safetensors"))
    for number, shard in enumerate(shards):
        shard.rename(tmp_path / f"{pattern.format(number + 1, len(shards), number)}.safetensors")
    checkpoint, tensors = open_checkpoint(tmp_path), random_tensors()
    assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in checkpoint.names())


def test_saving_again_replaces_the_old_shards(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "hf", max_shard_bytes=4000)
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_refuses_tensors_that_do_not_fit_the_config(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors.pop("multi_modal_projector.linear_1.bias")
    with pytest.raises(ValueError, match="expected_shapes"):
        save_checkpoint(tmp_path, CONFIG, tensors, "hf")
    assert not list(tmp_path.glob("*.safetensors"))


def test_digest_covers_config_and_weights_and_reports_progress(mistral: Path) -> None:
    checkpoint = open_checkpoint(mistral)
    steps: list[int] = []
    digest = checkpoint.digest(steps.append)
    plain = hashlib.sha256()
    for name in ("params.json", "consolidated.safetensors"):
        content = (mistral / name).read_bytes()
        plain.update(f"{name}\0{len(content)}\0".encode() + content)
    assert digest == plain.hexdigest() == open_checkpoint(mistral).digest()
    assert sum(steps) == checkpoint.nbytes()

    file = mistral / "consolidated.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    assert open_checkpoint(mistral).digest() != digest


def test_tokenizer_file(mistral: Path) -> None:
    checkpoint = open_checkpoint(mistral)
    with pytest.raises(
        CheckpointError, match=r"has no tekken\.json; copy it there from Mistral's own repository"
    ):
        checkpoint.tokenizer_file()
    (mistral / "tekken.json").write_text("{}")
    assert checkpoint.tokenizer_file() == mistral / "tekken.json"


def test_names_are_canonical_in_a_fixed_order() -> None:
    names = list(expected_shapes(CONFIG))
    assert names[0] == "language_model.model.embed_tokens.weight"
    assert names[-1] == "multi_modal_projector.linear_2.bias"
    assert len(names) == 3 + 2 * 9 + 2 + 2 * 9 + 4
    assert len({to_mistral_name(name) for name in names}) == len(names)


def test_a_file_that_goes_away_after_opening_is_named(mistral: Path) -> None:
    checkpoint = open_checkpoint(mistral)
    (mistral / "consolidated.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"consolidated\.safetensors: output\.weight cannot be read any more"
    ):
        checkpoint.tensor("language_model.lm_head.weight")


# One sentence for everything that can be wrong.


def test_no_folder_no_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing").endswith(
        "missing is not a folder; give the folder that holds the checkpoint"
    )
    assert "has neither params.json nor config.json" in refusal(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_text("")
    assert "has params.json but no weights: neither consolidated.safetensors nor" in refusal(tmp_path)
    (tmp_path / "params.json").rename(tmp_path / "config.json")
    assert "has config.json but no weights: neither model.safetensors nor" in refusal(tmp_path)


def test_corrupt_config(mistral: Path) -> None:
    (mistral / "params.json").write_text('{"dim": 24')
    assert "params.json is not valid JSON" in refusal(mistral)


def test_unsupported_config(mistral: Path) -> None:
    (mistral / "params.json").write_text(json.dumps(CONFIG.to_params() | {"tied_embeddings": True}))
    assert "params.json: tied_embeddings is true; pixedge supports only false" in refusal(
        mistral, ConfigError
    )


def test_quantised_checkpoint(hf: Path) -> None:
    (hf / "config.json").write_text(json.dumps(CONFIG.to_hf() | {"quantization_config": {"bits": 4}}))
    assert (
        "config.json says that these weights are quantised already (an unnamed method); give the"
        in refusal(hf)
    )


def test_missing_tensors_are_named_and_counted(mistral: Path) -> None:
    file = mistral / "consolidated.safetensors"
    rewrite(file, lambda tensors: tensors.pop("norm.weight"))
    assert refusal(mistral).startswith(f"{file} lacks norm.weight, which params.json asks for")
    for name in (QUERY, "layers.0.attention.wk.weight", "vision_language_adapter.w_in.bias", "output.weight"):
        rewrite(file, lambda tensors, name=name: tensors.pop(name))
    expected = (
        f"{file} lacks {QUERY}, layers.0.attention.wk.weight, norm.weight and 2 more, which params.json"
    )
    assert refusal(mistral).startswith(expected)


def test_extra_tensors_are_named_and_counted(hf: Path) -> None:
    file = hf / "model.safetensors"
    rewrite(file, lambda tensors: tensors.update({"language_model.model.rope.inv_freq": torch.ones(4)}))
    expected = f"{file} also holds language_model.model.rope.inv_freq, for which config.json has no place"
    assert refusal(hf) == expected
    rewrite(file, lambda tensors: tensors.update({f"x{i}": torch.ones(1) for i in range(3)}))
    assert "also holds language_model.model.rope.inv_freq, x0, x1 and 1 more" in refusal(hf)


def test_misshapen_tensor(mistral: Path) -> None:
    file = mistral / "consolidated.safetensors"
    rewrite(file, lambda tensors: tensors.update({QUERY: torch.zeros(24, 32).bfloat16()}))
    assert refusal(mistral) == f"{file}: {QUERY} has the shape [24, 32], but params.json asks for [32, 24]"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int32, "I32"), (torch.float64, "F64")],
)
def test_unsupported_dtype(mistral: Path, dtype: torch.dtype, name: str) -> None:
    file = mistral / "consolidated.safetensors"
    rewrite(file, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(dtype)}))
    expected = f"{file}: {QUERY} is stored as {name}, but only BF16, F16 and F32 are read"
    assert refusal(mistral).startswith(expected)


def test_missing_shard(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "hf", max_shard_bytes=8000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert refusal(tmp_path) == f"{tmp_path} lacks {shard.name}; fetch the rest of the checkpoint"
    (tmp_path / "model.safetensors.index.json").unlink()
    assert refusal(tmp_path) == f"{tmp_path} lacks {shard.name}; fetch the rest of the checkpoint"


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": {}}, {"weight_map": {"a": ["b"]}}, {"weight_map": {"a": "../model.safetensors"}}],
)
def test_unusable_index(hf: Path, index: object) -> None:
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json has no weight_map from tensors to file names" in refusal(hf)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CONFIG, random_tensors(), "mistral", max_shard_bytes=8000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    name = "tok_embeddings.weight"
    rewrite(second, lambda tensors: tensors.update({name: load_file(first)[name].clone()}))
    assert refusal(tmp_path) == f"{second}: {name} is also in {first.name}"


@pytest.mark.parametrize("keep", [0, 7, 8, 100])
def test_file_cut_inside_its_header(mistral: Path, keep: int) -> None:
    file = mistral / "consolidated.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert refusal(mistral).startswith(
        f"{file} is truncated: it has {keep} bytes, but its header alone needs"
    )


def test_file_of_another_length_than_its_header_says(mistral: Path) -> None:
    file = mistral / "consolidated.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    size = len(content)
    assert refusal(mistral).startswith(
        f"{file} is truncated: it has {size - 10} bytes, but its header describes {size};"
    )
    file.write_bytes(content + b"\0")
    assert refusal(mistral).startswith(
        f"{file} is too long: it has {size + 1} bytes, but its header describes {size};"
    )


@pytest.mark.parametrize(
    "text", [b"not json", b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1]}}', b"\xff"]
)
def test_corrupt_header(mistral: Path, text: bytes) -> None:
    file = mistral / "consolidated.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    assert refusal(mistral) == f"{file} is not a safetensors file, or its header is corrupt; fetch it again"


@pytest.mark.parametrize(
    ("key", "value"),
    [("data_offsets", [0, 2]), ("data_offsets", [4, 2]), ("shape", [32, 25]), ("dtype", "F32")],
)
def test_header_that_contradicts_itself(mistral: Path, key: str, value: object) -> None:
    file = mistral / "consolidated.safetensors"
    rewrite_header(file, lambda header: header[QUERY].update({key: value}))
    assert "of the data, which cannot be right; fetch the file again" in refusal(mistral)


def test_negative_shape(mistral: Path) -> None:
    file = mistral / "consolidated.safetensors"
    rewrite_header(file, lambda header: header[QUERY].update(shape=[-32, -24]))
    assert "is not a safetensors file, or its header is corrupt" in refusal(mistral)
