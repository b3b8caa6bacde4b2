"""The ONNX graphs against torch: structure, weights by offset, unseen sizes, and exports to refuse."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.errors import ExportError
from pixedge.kernels.vision.fast import operators_file
from pixedge.vision import CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH, fused_options
from pixedge_export.encoder import VisionEncoder, encode
from pixedge_export.vision import (
    FLOAT16_BOUND,
    FLOAT32_BOUND,
    FUSED_BOUND,
    check_parity,
    export_vision,
    parity_grids,
)

SHARD = "model-00001-of-00002.safetensors"

CONFIG = ModelConfig(
    DecoderConfig(
        dim=48,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=16,
        vocab_size=32,
        norm_eps=1e-5,
        rope_theta=1e4,
        context=128,
    ),
    VisionConfig(
        dim=64,
        n_layers=3,
        n_heads=4,
        ffn_dim=96,
        n_channels=3,
        patch_size=16,
        image_size=160,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)


def make_encoder(config: ModelConfig = CONFIG, seed: int = 0) -> VisionEncoder:
    """Random weights, large enough that every part of the graph matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    encoder = VisionEncoder(config).requires_grad_(False)
    for weight in encoder.parameters():
        weight.normal_(generator=generator)
        if weight.ndim == 1:
            weight.mul_(0.3).add_(1)
        else:
            weight.mul_(weight[0].numel() ** -0.5)
    return encoder


def save(encoder: VisionEncoder, folder: Path) -> None:
    # Neighbours before and after, of another size in bytes, so that offsets are not what they would be alone.
    others = {"a": torch.ones(3, dtype=torch.int32), "z": torch.ones(5)}
    tensors = {name: weight.half().contiguous() for name, weight in encoder.state_dict().items()}
    save_file(tensors | others, folder / SHARD, {"format": "pt"})


def make_export(folder: Path, config: ModelConfig = CONFIG, seed: int = 0) -> VisionEncoder:
    encoder = make_encoder(config, seed)
    save(encoder, folder)
    export_vision(config, folder, SHARD)
    return encoder


def with_vision(**changes: int | float) -> ModelConfig:
    return replace(CONFIG, vision=replace(CONFIG.vision, **changes))


def test_parity_on_unseen_sizes(tmp_path: Path) -> None:
    rows = check_parity(lambda: make_export(tmp_path), tmp_path, CONFIG)
    exact = [row for row in rows if row.graph == CPU_GRAPH]
    sizes = {(row.height, row.width) for row in exact}
    assert len(sizes) == len(exact) >= 8
    assert {(16, 16), (16, 160), (160, 16), (160, 160)} <= sizes
    assert all(row.error <= row.bound == FLOAT32_BOUND for row in exact)
    rounded = [row for row in rows if row.graph == CUDA_GRAPH]
    assert len(rounded) == 3
    assert all(0 < row.error <= row.bound == FLOAT16_BOUND for row in rounded)
    fused = [row for row in rows if row.graph == FUSED_GRAPH]
    assert [(row.height, row.width) for row in fused] == (
        [(row.height, row.width) for row in exact] if operators_file() else []
    )
    assert all(0 < row.error <= row.bound == FUSED_BOUND for row in fused)


@pytest.mark.parametrize("seed", range(6))
def test_parity_over_geometries(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    heads, patch = rng.randint(1, 5), rng.choice((4, 14, 16))
    config = with_vision(
        dim=heads * rng.choice((4, 12, 20, 64)),
        n_heads=heads,
        n_layers=rng.randint(1, 4),
        ffn_dim=rng.randint(3, 150),
        patch_size=patch,
        image_size=patch * rng.randint(3, 9),
        rope_theta=rng.choice((100.0, 1e4)),
    )
    assert check_parity(lambda: make_export(tmp_path, config, seed), tmp_path, config)


def test_parity_grids_of_pixtral() -> None:
    vision = with_vision(patch_size=16, image_size=1024).vision
    grids = parity_grids(vision)
    assert grids[:4] == [(1, 1), (1, 64), (64, 1), (64, 64)]
    assert (21, 33) in grids  # 517x333, rounded up to whole patches
    assert (1, 64) in grids  # 3000x40, brought down to 1024
    assert len(set(grids)) == len(grids) >= 8
    # 64 x 64 dominates what the check costs: all others together are fewer patches.
    assert sum(rows * columns for rows, columns in grids) < 2 * 64 * 64


@pytest.mark.parametrize("side", [1, 2, 3])
def test_parity_grids_of_a_tiny_encoder(side: int) -> None:
    grids = parity_grids(with_vision(image_size=16 * side).vision)
    assert len(set(grids)) == len(grids) >= min(8, side**2)
    assert all(1 <= rows <= side and 1 <= columns <= side for rows, columns in grids)


@pytest.mark.parametrize("graph", [CPU_GRAPH, CUDA_GRAPH])
def test_graph_is_small_standard_and_fused(graph: str, tmp_path: Path) -> None:
    make_export(tmp_path)
    nodes = list(onnx.load(tmp_path / graph, load_external_data=False).graph.node)
    make_export(tmp_path, with_vision(n_layers=4))
    more = list(onnx.load(tmp_path / graph, load_external_data=False).graph.node)
    assert len(more) - len(nodes) <= 40  # a layer
    assert (tmp_path / graph).stat().st_size < 100_000
    kinds = [node.op_type for node in nodes]
    assert kinds.count("MultiHeadAttention") == 3
    assert kinds.count("RMSNormalization") == 7
    assert "Attention" not in kinds
    assert "Softmax" not in kinds
    foreign = {node.op_type for node in nodes if node.domain}
    assert foreign == {"MultiHeadAttention", "QuickGelu"}
    onnx.checker.check_model(str(tmp_path / graph), full_check=True)


@pytest.mark.parametrize("graph", [CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH])
def test_no_size_is_baked_in(graph: str, tmp_path: Path) -> None:
    make_export(tmp_path)
    model = onnx.load(tmp_path / graph, load_external_data=False)
    (pixels,), (embeddings,) = model.graph.input, model.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim]
    assert dims == [3, "height", "width"]
    assert [dim.dim_param or dim.dim_value for dim in embeddings.type.tensor_type.shape.dim] == [
        "patches",
        48,
    ]
    # A bound on sizes would have to come from image_size, which the graph does not know.
    again = tmp_path / "again"
    again.mkdir()
    make_export(again, with_vision(image_size=480))
    assert (again / graph).read_bytes() == (tmp_path / graph).read_bytes()


def test_fused_graph_is_a_node_a_layer(tmp_path: Path) -> None:
    make_export(tmp_path)
    model = onnx.load(tmp_path / FUSED_GRAPH, load_external_data=False)
    kinds = [node.op_type for node in model.graph.node if node.domain == "pixedge"]
    assert kinds == ["Linear", *["EncoderLayer"] * 3, "Linear", "Linear"]
    assert {node.domain for node in model.graph.node} == {"", "pixedge"}
    onnx.checker.check_model(str(tmp_path / FUSED_GRAPH))


@pytest.mark.parametrize("graph", [CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH])
def test_every_norm_has_the_encoder_s_epsilon(graph: str, tmp_path: Path) -> None:
    """No comparison of outputs shows it: after ln_pre the mean square is 1, beside which 1e-5 is nothing."""
    make_export(tmp_path)
    model = onnx.load(tmp_path / graph, load_external_data=False)
    found = [
        (node.name, attribute.f)
        for node in model.graph.node
        if node.op_type in ("RMSNormalization", "EncoderLayer")
        for attribute in node.attribute
        if attribute.name == "epsilon"
    ]
    layers = CONFIG.vision.n_layers
    assert len(found) == (1 + layers if graph == FUSED_GRAPH else 1 + 2 * layers)
    assert all(value == np.float32(CONFIG.vision.norm_eps) for _, value in found), found


def test_no_fused_graph_for_heads_that_its_kernels_do_not_take(tmp_path: Path) -> None:
    rows = check_parity(
        lambda: make_export(tmp_path, with_vision(dim=132, n_heads=1)),
        tmp_path,
        with_vision(dim=132, n_heads=1),
    )
    assert {row.graph for row in rows} == {CPU_GRAPH, CUDA_GRAPH}
    assert not (tmp_path / FUSED_GRAPH).exists()


@pytest.mark.skipif(operators_file() is None, reason="needs a CPU and a library with the fused kernels")
@pytest.mark.parametrize("change", ["heads", "weight order", "bias"])
def test_fused_operators_refuse_what_does_not_fit(change: str, tmp_path: Path) -> None:
    """A graph whose shapes do not fit each other must end in an error: C reads by them."""
    make_export(tmp_path)
    model = onnx.load(tmp_path / FUSED_GRAPH, load_external_data=False)
    layer = next(node for node in model.graph.node if node.op_type == "EncoderLayer")
    if change == "heads":
        next(entry for entry in layer.attribute if entry.name == "heads").i = 3
    elif change == "weight order":
        layer.input[9], layer.input[11] = layer.input[11], layer.input[9]
    else:
        linear = next(node for node in model.graph.node if node.name.endswith("gelu"))
        linear.input[2] = layer.input[3]
    (tmp_path / FUSED_GRAPH).write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match="the weights' shapes do not fit each other"):
        onnxruntime.InferenceSession(
            tmp_path / FUSED_GRAPH, fused_options(), providers=["CPUExecutionProvider"]
        )


def test_larger_than_image_size_works_in_the_graph(tmp_path: Path) -> None:
    encoder = make_export(tmp_path).half().float()
    pixels = torch.randn(3, 16 * 23, 16 * 11)
    session = onnxruntime.InferenceSession(tmp_path / CPU_GRAPH, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    expected = encode(encoder, pixels).numpy()
    assert np.abs(found - expected).max() <= FLOAT32_BOUND * np.abs(expected).max()


@pytest.mark.parametrize("size", [(17, 16), (16, 40)])
def test_graph_refuses_broken_patches(size: tuple[int, int], tmp_path: Path) -> None:
    make_export(tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / CPU_GRAPH, options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Reshape"):
        session.run(None, {"pixels": np.zeros((3, *size), np.float32)})


def test_weights_are_stored_once(tmp_path: Path) -> None:
    """All graphs name the same bytes of the shard, and no weight lies inside a graph."""
    encoder = make_export(tmp_path)
    raw = (tmp_path / SHARD).read_bytes()
    stored = load_file(tmp_path / SHARD)
    for graph in (CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH):
        model = onnx.load(tmp_path / graph, load_external_data=False)
        external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert {tensor.name for tensor in external} == set(encoder.state_dict())
        for tensor in external:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == SHARD
            start, length = int(place["offset"]), int(place["length"])
            assert raw[start : start + length] == stored[tensor.name].numpy().tobytes()
            assert tensor.data_type == onnx.TensorProto.FLOAT16
        inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert sum(len(tensor.raw_data) for tensor in inside) < 1000


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    """The graphs depend on the geometry and on where the weights lie, not on their values."""
    make_export(tmp_path, seed=0)
    first = {graph: (tmp_path / graph).read_bytes() for graph in (CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH)}
    make_export(tmp_path, seed=1)
    assert {graph: (tmp_path / graph).read_bytes() for graph in first} == first


def test_large_activations_stay_finite_in_float16(tmp_path: Path) -> None:
    """The residual stream reaches 40 000 here, and its sums of squares 1e10, where float16 ends at 65 504.

    The CPU provider computes in float32 between roundings, so the values alone would prove little: the dtypes
    of norms and residual sums are read from the graph too.
    """
    encoder = make_encoder()
    with torch.no_grad():
        for layer in encoder.vision_tower.transformer.layers:
            layer.feed_forward.down_proj.weight.mul_(8000)
        encoder.multi_modal_projector.linear_1.weight.mul_(1e-3)
    save(encoder, tmp_path)
    export_vision(CONFIG, tmp_path, SHARD)
    rows = check_parity(lambda: encoder, tmp_path, CONFIG)
    assert {row.graph for row in rows} >= {CPU_GRAPH, CUDA_GRAPH}
    model = onnx.load(tmp_path / CUDA_GRAPH, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "RMSNormalization" or node.output[0].endswith("residual"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT, node.name


def test_unrounded_encoder_is_compared_with_rounded_weights(tmp_path: Path) -> None:
    """The export holds float16; the encoder may be given as it was read, and is left as it was."""
    encoder = make_export(tmp_path)
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    assert any((weight.half().float() != weight).any() for weight in before.values())
    check_parity(lambda: encoder, tmp_path, CONFIG)
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())
    assert check_parity(lambda: encoder.to(torch.float16), tmp_path, CONFIG)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """One query matrix with its heads in another order: shapes and norms agree, embeddings do not."""
    encoder = make_export(tmp_path)
    weight = encoder.vision_tower.transformer.layers[1].attention.q_proj.weight
    with torch.no_grad():
        weight.copy_(weight.roll(16, 0))
    with pytest.raises(
        ExportError, match=r"vision_encoder_cpu.onnx on a picture of \d+x\d+ pixels differs .* 1e-04"
    ):
        check_parity(lambda: encoder, tmp_path, CONFIG)


def test_other_rotation_is_refused(tmp_path: Path) -> None:
    """Rotary tables do not matter to a picture of one patch; the larger ones must show the difference."""
    encoder = make_export(tmp_path)
    with pytest.raises(ExportError) as caught:
        check_parity(lambda: encoder, tmp_path, with_vision(rope_theta=9_000.0))
    assert "16x16" not in str(caught.value)


def test_nan_is_refused(tmp_path: Path) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.multi_modal_projector.linear_2.bias[3] = 1e6  # infinite in float16
    save(encoder, tmp_path)
    export_vision(CONFIG, tmp_path, SHARD)
    with pytest.raises(ExportError, match="not finite"):
        check_parity(lambda: encoder, tmp_path, CONFIG)


def test_unfused_attention_is_refused(tmp_path: Path) -> None:
    encoder = make_export(tmp_path)
    model = onnx.load(tmp_path / CPU_GRAPH, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "MultiHeadAttention")
    node.op_type, node.domain = "Attention", ""
    attributes = [onnx.helper.make_attribute(f"{side}_num_heads", 4) for side in ("q", "kv")]
    del node.attribute[:]
    node.attribute.extend(attributes)
    (tmp_path / CPU_GRAPH).write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="holds 2 MultiHeadAttention nodes, but the encoder has 3 layers"):
        check_parity(lambda: encoder, tmp_path, CONFIG)


def test_bad_shards_are_refused(tmp_path: Path) -> None:
    tensors = {name: weight.half().contiguous() for name, weight in make_encoder().state_dict().items()}
    name = "vision_tower.transformer.layers.2.feed_forward.up_proj.weight"

    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / SHARD)
    with pytest.raises(ExportError, match=re.escape(f"has no {name}")):
        export_vision(CONFIG, tmp_path, SHARD)

    save_file(tensors | {name: tensors[name].bfloat16()}, tmp_path / SHARD)
    with pytest.raises(ExportError, match=re.escape(f"{name} is BF16 [96, 64]")):
        export_vision(CONFIG, tmp_path, SHARD)

    save_file(tensors | {name: tensors[name].T.contiguous()}, tmp_path / SHARD)
    with pytest.raises(ExportError, match=re.escape("F16 [64, 96], but the vision graph reads F16 [96, 64]")):
        export_vision(CONFIG, tmp_path, SHARD)
