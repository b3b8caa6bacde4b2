"""Layer by layer: the streams against whole decoders, what GPTQ gets to see, and what it wins."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.decoder import Decoder, WholeSequences
from pixedge.errors import ExportError, UsageError
from pixedge.packing import QuantizedWeight, dequantize
from pixedge_export import layers
from pixedge_export.gptq import quantize_gptq, quantize_rtn, relative_output_error
from pixedge_export.hessian import HessianAccumulator, Shortfall
from pixedge_export.layer_runner import LayerRunner
from pixedge_export.layers import (
    LINEARS,
    STAGES,
    LinearError,
    Recipe,
    Streams,
    quantize_layer,
)
from tests.random_models import CPU, build_decoder, random_config, random_tensors
from tests.small_exports import CONFIG

GPTQ, RTN = Recipe(group_size=32), Recipe("rtn", group_size=32)
LENGTHS, HELD_OUT = (40, 9, 33, 64, 50), (21, 1, 30)

Quantized = list[dict[str, QuantizedWeight]]


def make_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    return build_decoder(config, random_tensors(config, seed))


def embed(decoder: Decoder, lengths: tuple[int, ...], seed: int) -> list[Tensor]:
    """Draw samples of tokens and look them up: float32 [tokens, dim] each."""
    generator = torch.Generator().manual_seed(seed)
    vocab = decoder.config.vocab_size
    ids = [torch.randint(vocab, (length,), generator=generator) for length in lengths]
    return [decoder.embed_tokens(sample).detach() for sample in ids]


def layer_tensors(decoder: Decoder, index: int) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in decoder.layers[index].state_dict().items()}


def quantize_all(
    decoder: Decoder, streams: Streams, recipe: Recipe, n_layers: int | None = None
) -> tuple[Quantized, list[LinearError]]:
    runner = LayerRunner(decoder.config, CPU, torch.float32)
    quantized, errors = [], []
    for index in range(len(decoder.layers) if n_layers is None else n_layers):
        tensors = partial(layer_tensors, decoder, index)
        chosen, found = quantize_layer(runner, index, tensors, streams, recipe, lambda name, error: None)
        quantized.append(chosen)
        errors += found
    return quantized, errors


def with_weights(decoder: Decoder, quantized: Quantized) -> Decoder:
    """Copy a decoder, the first layers with other weights."""
    copy = Decoder(decoder.config)
    copy.load_state_dict(decoder.state_dict())
    for index, chosen in enumerate(quantized):
        for name, weight in chosen.items():
            copy.layers[index].get_submodule(name).weight.data = dequantize(weight, torch.float32)
    return copy.requires_grad_(False)


def hidden(decoder: Decoder, x: Tensor) -> Tensor:
    return decoder(x, torch.arange(len(x)), WholeSequences(len(x)))


def assert_streams_equal(decoder: Decoder, stream: list[Tensor], start: list[Tensor]) -> None:
    assert len(stream) == len(start)
    for x, first in zip(stream, start, strict=True):
        torch.testing.assert_close(decoder.norm(x), hidden(decoder, first), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return make_decoder(CONFIG)


@pytest.mark.parametrize("recipe", [GPTQ, RTN], ids=["gptq", "rtn"])
def test_streams_equal_whole_decoders(decoder: Decoder, recipe: Recipe) -> None:
    """Dense: the checkpoint's weights. rtn: all rounded. The others: those that quantize_layer returned."""
    calibration, held_out = embed(decoder, LENGTHS, 1), embed(decoder, HELD_OUT, 2)
    streams = Streams(list(calibration), list(held_out))
    quantized, _ = quantize_all(decoder, streams, recipe)

    rounded = [
        {name: quantize_rtn(layer.get_submodule(name).weight, 32) for name in LINEARS}
        for layer in decoder.layers
    ]
    assert_streams_equal(decoder, streams.dense, held_out)
    assert_streams_equal(with_weights(decoder, rounded), streams.rtn, held_out)
    assert_streams_equal(with_weights(decoder, quantized), streams.quantized, held_out)
    assert_streams_equal(with_weights(decoder, quantized), streams.calibration, calibration)
    if recipe is GPTQ:
        assert_streams_equal(decoder, streams.target, calibration)
        assert not hasattr(streams, "middle")
    # else the comparisons above would say little
    assert (streams.dense[0] - streams.quantized[0]).abs().max() > 1e-2
    if recipe is GPTQ:
        assert (streams.rtn[0] - streams.quantized[0]).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(6))
def test_dense_stream_on_random_geometries(seed: int) -> None:
    """Widths that are no multiples of a group never reach quantisation; the layers run alone here."""
    config = random_config(seed)
    decoder = make_decoder(config, seed)
    (start,) = x = embed(decoder, (17,), seed)
    runner = LayerRunner(config.decoder, CPU, torch.float32)
    for index in range(config.decoder.n_layers):
        runner.load(layer_tensors(decoder, index))
        x = [runner.forward(x[0])]
    assert_streams_equal(decoder, x, [start])


def test_every_linear_ends_quantised(decoder: Decoder) -> None:
    runner = LayerRunner(decoder.config, CPU, torch.float32)
    streams = Streams(embed(decoder, LENGTHS, 1), embed(decoder, HELD_OUT, 2))
    steps: list[tuple[str, LinearError | None]] = []
    chosen, errors = quantize_layer(
        runner, 0, partial(layer_tensors, decoder, 0), streams, GPTQ, lambda *step: steps.append(step)
    )
    assert set(chosen) == set(LINEARS) == {error.linear for error in errors}
    assert steps == [step for error in errors for step in ((error.linear, None), (error.linear, error))]
    for name, weight in chosen.items():
        found = runner.weight(name)
        assert torch.equal(found, dequantize(weight, torch.float32))
        assert not torch.equal(found, decoder.layers[0].get_submodule(name).weight)
        groups = (found / weight.scales.repeat_interleave(32, 1)).unflatten(1, (-1, 32))
        assert torch.equal(groups, groups.round()) and groups.min() >= -8 and groups.max() <= 7
    for name in ("input_layernorm", "post_attention_layernorm"):
        assert torch.equal(runner.weight(name), decoder.layers[0].get_submodule(name).weight)


@pytest.fixture
def hessian_inputs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """What every Hessian is summed from, by the linear's title."""
    seen: dict[str, list[Tensor]] = {}

    class Spy(HessianAccumulator):
        def add(self, x: Tensor, counts: Tensor | None = None) -> None:
            seen.setdefault(self.name, []).append(x.clone())
            super().add(x, counts)

    monkeypatch.setattr(layers, "HessianAccumulator", Spy)
    return seen


def inputs_of(decoder: Decoder, index: int, linear: str, start: list[Tensor]) -> list[Tensor]:
    """Run a whole decoder and catch what reaches one linear."""
    caught: list[Tensor] = []
    module = decoder.layers[index].get_submodule(linear)
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    for x in start:
        hidden(decoder, x)
    handle.remove()
    return caught


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_later_layers_are_calibrated_on_quantised_ones(
    decoder: Decoder, hessian_inputs: dict[str, list[Tensor]]
) -> None:
    start = embed(decoder, LENGTHS, 1)
    quantized, _ = quantize_all(decoder, Streams(list(start), embed(decoder, HELD_OUT, 2)), GPTQ)
    first = with_weights(decoder, quantized[:1])
    for stage in STAGES[:1]:
        found = hessian_inputs[f"layer 1 {stage[0]}"]
        assert_same(found, inputs_of(first, 1, stage[0], start))
        dense = inputs_of(decoder, 1, stage[0], start)
        assert max(float((a - b).abs().max()) for a, b in zip(found, dense, strict=True)) > 1e-2


def test_within_a_layer_each_stage_sees_the_stages_before_it_quantised(
    decoder: Decoder, hessian_inputs: dict[str, list[Tensor]]
) -> None:
    start = embed(decoder, LENGTHS, 1)
    (chosen,), _ = quantize_all(decoder, Streams(list(start), embed(decoder, HELD_OUT, 2)), GPTQ, 1)
    assert set(hessian_inputs) == {f"layer 0 {stage[0]}" for stage in STAGES}
    done: dict[str, QuantizedWeight] = {}
    for stage in STAGES:
        so_far = with_weights(decoder, [done])
        assert_same(hessian_inputs[f"layer 0 {stage[0]}"], inputs_of(so_far, 0, stage[0], start))
        done |= {name: chosen[name] for name in stage}


def test_linears_are_told_what_they_lack_of_the_dense_model(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2/n sum d x^T from whole decoders, where every module's input and output can be had at once.

    x is read behind a quantised first layer and the stages before. What q, k, v, gate and up lack is W times
    what their input lacks of the dense one. What o and down lack is what the residual stream lacks after
    them, with their own weight still dense.
    """
    given: dict[str, Tensor] = {}
    take = Shortfall.take

    def spy(weight: Tensor, hessian: Tensor, group_size: int, **options: object) -> object:
        def keep(shortfall: Shortfall) -> tuple[Tensor, Tensor]:
            total, difference = take(shortfall)
            given[str(options["name"])] = total.clone()
            return total, difference

        monkeypatch.setattr(Shortfall, "take", keep)
        return quantize_gptq(weight, hessian, group_size, **options)

    monkeypatch.setattr(layers, "quantize_gptq", spy)
    start = embed(decoder, LENGTHS, 1)
    (first, chosen), _ = quantize_all(decoder, Streams(list(start), embed(decoder, HELD_OUT, 2)), GPTQ)
    assert len(given) == 2 * len(LINEARS)
    assert all(not given[f"layer 0 {name}"].any() for name in STAGES[0])  # nothing is amiss there yet

    done: dict[str, QuantizedWeight] = {}
    for at, stage in enumerate(STAGES):
        before = with_weights(decoder, [first, done])
        x = torch.cat(inputs_of(before, 1, stage[0], start))
        for name in stage:
            if at in (0, 2):
                weight = decoder.layers[1].get_submodule(name).weight
                lacking = (torch.cat(inputs_of(decoder, 1, stage[0], start)) - x) @ weight.t()
            else:
                behind = "post_attention_layernorm" if at == 1 else None
                streams = [stream_of(model, 1, behind, start) for model in (decoder, before)]
                lacking = streams[0] - streams[1]
            expected = 2 / len(x) * lacking.t() @ x
            assert (given[f"layer 1 {name}"] - expected).norm() < 1e-3 * expected.norm() > 0
        done |= {name: chosen[name] for name in stage}


def stream_of(decoder: Decoder, index: int, module: str | None, start: list[Tensor]) -> Tensor:
    """Return the residual stream as a layer's module reads it, or behind the layer: [tokens, dim]."""
    if module is not None:
        return torch.cat(inputs_of(decoder, index, module, start))
    caught: list[Tensor] = []
    handle = decoder.layers[index].register_forward_hook(lambda _, args, out: caught.append(out))
    for x in start:
        hidden(decoder, x)
    handle.remove()
    return torch.cat(caught)


@pytest.mark.parametrize("catch_up", [False, True])
def test_tokens_that_count_nothing_change_nothing(decoder: Decoder, catch_up: bool) -> None:
    """Cut off at the end of samples, or counted as nothing there: the same weights."""
    recipe = replace(GPTQ, catch_up=catch_up)
    whole = embed(decoder, (40, 30, 30, 40), 1)
    half = Streams(list(whole), embed(decoder, HELD_OUT, 2))
    half.counts = [torch.where(torch.arange(len(x)) < len(x) // 2, 1.0, 0.0) for x in whole]
    cut = Streams([x[: len(x) // 2] for x in whole], embed(decoder, HELD_OUT, 2))
    (by_counts,), _ = quantize_all(decoder, half, recipe, 1)
    (by_cutting,), _ = quantize_all(decoder, cut, recipe, 1)
    for name in LINEARS:
        same = (by_counts[name].q == by_cutting[name].q).float().mean()
        assert same > 0.99, name
    plain = Streams(list(whole), embed(decoder, HELD_OUT, 2))
    (all_alike,), _ = quantize_all(decoder, plain, recipe, 1)
    assert not torch.equal(all_alike["self_attn.q_proj"].q, by_cutting["self_attn.q_proj"].q)


def test_without_catching_up_the_dense_stream_is_not_computed(decoder: Decoder) -> None:
    streams = Streams(embed(decoder, LENGTHS, 1), embed(decoder, HELD_OUT, 2))
    quantize_all(decoder, streams, replace(GPTQ, catch_up=False), 1)
    assert streams.target is streams.calibration


@pytest.mark.parametrize("catch_up", [False, True])
def test_errors_are_those_of_held_out_inputs(
    decoder: Decoder, catch_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding to nearest is compared with the dense weight, GPTQ with what it was asked to round."""
    asked: dict[str, Tensor] = {}

    def spy(weight: Tensor, *args: object, **options: object) -> object:
        result = quantize_gptq(weight, *args, **options)
        asked[str(options["name"])] = result.target.clone()
        assert catch_up or torch.equal(result.target, weight)
        return result

    monkeypatch.setattr(layers, "quantize_gptq", spy)
    held_out = embed(decoder, HELD_OUT, 2)
    streams = Streams(embed(decoder, LENGTHS, 1), list(held_out))
    (chosen,), errors = quantize_all(decoder, streams, replace(GPTQ, catch_up=catch_up), 1)
    for error in errors:
        stage = next(stage for stage in STAGES if error.linear in stage)
        before = {name: chosen[name] for earlier in STAGES[: STAGES.index(stage)] for name in earlier}
        x = torch.cat(inputs_of(with_weights(decoder, [before]), 0, error.linear, held_out))
        weight = decoder.layers[0].get_submodule(error.linear).weight
        assert error.layer == 0
        expected = relative_output_error(asked[f"layer 0 {error.linear}"], chosen[error.linear], x)
        assert error.quantized == pytest.approx(expected, rel=1e-4)
        assert error.rtn == pytest.approx(
            relative_output_error(weight, quantize_rtn(weight, 32), x), rel=1e-4
        )


def test_errors_are_measured_on_rows_from_all_samples(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 52 rows in samples of 21, 1 and 30, five are 0, 12, 25, 38 and 51: not the first five."""
    runner = LayerRunner(decoder.config, CPU, torch.float32)
    runner.load(layer_tensors(decoder, 0))
    samples = embed(decoder, HELD_OUT, 2)
    everything = torch.cat(list(runner.inputs("mlp.up_proj", samples)))
    assert torch.equal(layers._held_out_rows(runner, "mlp.up_proj", samples), everything)
    monkeypatch.setattr(layers, "ERROR_ROWS", 5)
    found = layers._held_out_rows(runner, "mlp.up_proj", samples)
    assert torch.equal(found, everything[[0, 12, 25, 38, 51]])


def test_gptq_beats_rounding_on_every_linear_of_the_demos_shape() -> None:
    """dim 256, 6 heads on 2 of 64, ffn 512, groups of 128: two of the demo's layers, on random weights.

    Held-out tokens repeat none of the calibration's sequences, so that a fit to those alone would not win.
    """
    demo = DecoderConfig(256, 2, 6, 2, 64, 512, 512, 1e-5, 1e5, 4096)
    decoder = make_decoder(replace(CONFIG, decoder=demo))
    streams = Streams(embed(decoder, (128,) * 12, 1), embed(decoder, (64,) * 3, 2))
    _, errors = quantize_all(decoder, streams, Recipe())
    assert len(errors) == 2 * 7
    for error in errors:
        assert 0 < error.quantized < 0.97 * error.rtn < 0.2, error
    assert sum(error.quantized for error in errors) < 0.85 * sum(error.rtn for error in errors)


def test_rounding_needs_no_calibration_and_costs_the_same_twice(decoder: Decoder) -> None:
    streams = Streams([], embed(decoder, HELD_OUT, 2))
    quantized, errors = quantize_all(decoder, streams, RTN)
    assert all(error.rtn == error.quantized > 0 for error in errors)
    assert all(torch.equal(a, b) for a, b in zip(streams.rtn, streams.quantized, strict=True))
    weight = decoder.layers[1].get_submodule("mlp.down_proj").weight
    assert torch.equal(quantized[1]["mlp.down_proj"].q, quantize_rtn(weight, 32).q)


def test_gptq_without_calibration_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ExportError, match=r"layer 0 self_attn\.q_proj"):
        quantize_all(decoder, Streams([], embed(decoder, HELD_OUT, 2)), GPTQ)


def test_an_input_that_is_not_finite_names_the_linear(decoder: Decoder) -> None:
    calibration = embed(decoder, LENGTHS, 1)
    calibration[2][3, 4] = torch.nan
    with pytest.raises(ExportError, match=r"layer 0 self_attn\.q_proj contain NaN or infinity"):
        quantize_all(decoder, Streams(calibration, embed(decoder, HELD_OUT, 2)), GPTQ)


def test_inputs_can_be_left_half_read(decoder: Decoder) -> None:
    """The hook that ends a forward pass early must not stay behind: the next pass would end there too."""
    runner = LayerRunner(decoder.config, CPU, torch.float32)
    runner.load(layer_tensors(decoder, 0))
    samples = embed(decoder, HELD_OUT, 2)
    reader: Iterator[Tensor] = runner.inputs("mlp.down_proj", samples)
    assert next(reader).shape == (HELD_OUT[0], CONFIG.decoder.ffn_dim)
    reader.close()
    assert runner.forward(samples[0]).shape == samples[0].shape


def test_an_unknown_tensor_of_a_layer_is_not_dropped(decoder: Decoder) -> None:
    runner = LayerRunner(decoder.config, CPU, torch.float32)
    with pytest.raises(RuntimeError, match="bias"):
        runner.load(layer_tensors(decoder, 0) | {"mlp.up_proj.bias": torch.zeros(160)})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "awq"}, "method is 'awq'; use gptq, rtn"),
        ({"scale_search": "best"}, "scale_search is 'best'; use absmax, uniform, activation"),
        ({"group_size": 0}, "group_size is 0; use a multiple of 8, such as 128"),
        ({"group_size": 100}, "group_size is 100; use a multiple of 8, such as 128"),
        ({"damping": 0.0}, "damping is 0.0; use a share above 0, at most 1"),
        ({"damping": float("nan")}, "damping is nan; use a share above 0, at most 1"),
        ({"polish": -1}, "polish is -1; use 0 or more"),
        ({"image_weight": 0}, "image_weight is 0; use a number above 0, such as 1"),
    ],
)
def test_a_recipe_out_of_range_is_refused(values: dict, sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        Recipe(**values)
    assert str(raised.value) == sentence


def test_a_recipe_that_does_not_fit_names_the_linear() -> None:
    GPTQ.check_fits(CONFIG)
    with pytest.raises(
        ExportError, match=r"layers\.0\.self_attn\.q_proj\.weight has 96 inputs .* groups of 128"
    ):
        Recipe().check_fits(CONFIG)
    odd = replace(CONFIG, decoder=replace(CONFIG.decoder, ffn_dim=164))
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.gate_proj\.weight has 96 inputs and 164 outputs"):
        GPTQ.check_fits(odd)
