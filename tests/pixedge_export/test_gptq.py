"""The 4-bit solver against the paper's own algorithm, and everything that could make it fail."""

import itertools
import math

import pytest
import torch

from pixedge.errors import ExportError
from pixedge.packing import QuantizedWeight, dequantize, pack_gptq, unpack_gptq
from pixedge_export.gptq import (
    MAX_SCALE,
    MIN_SCALE,
    GptqResult,
    quantize_gptq,
    quantize_rtn,
    relative_error_from_hessian,
    relative_output_error,
    round_scales,
    search_scales,
)
from pixedge_export.hessian import HessianAccumulator, Shortfall

GROUP = 32


def correlated_inputs(rows: int, in_features: int, seed: int = 0) -> torch.Tensor:
    """Activations as a trained network has them: a falling spectrum, a mean, and a few loud channels."""
    shape = torch.Generator().manual_seed(1)  # the distribution; the seed draws the rows
    mixing = torch.randn(in_features, in_features, generator=shape)
    mixing *= torch.arange(1, in_features + 1).float().pow(-0.6)[:, None]
    loudness = torch.exp(0.5 * torch.randn(in_features, generator=shape))
    loudness[:: max(1, in_features // 3)] *= 20
    mean = 0.3 * torch.randn(in_features, generator=shape)
    x = torch.randn(rows, in_features, generator=torch.Generator().manual_seed(seed)) @ mixing
    return (x / mixing.square().sum(0).mean().sqrt() + mean) * loudness


def heavy_tailed_weight(out_features: int, in_features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(out_features, in_features, generator=generator)
    tail = torch.exp(0.4 * torch.randn(out_features, in_features, generator=generator))
    return 0.02 * normal * tail


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    accumulator = HessianAccumulator(x.shape[1], "cpu")
    accumulator.add(x)
    return accumulator.hessian()


def error_of(result: GptqResult, hessian: torch.Tensor) -> float:
    return relative_error_from_hessian(result.target, result.quantized, hessian)


def textbook_gptq(weight, hessian, scales, group_size, damp, act_order):
    """Algorithm 1 of arXiv 2210.17323 in float64, without blocks: one column, then all the others.

    The inverse Hessian is formed and shrunk column by column (equation 3), so nothing here shares a
    formula with the solver under test. Returns levels -8 .. 7 [out, in].
    """
    w, h = weight.double().clone(), hessian.double().clone()
    n = w.shape[1]
    diagonal = h.diagonal().clone()
    h += damp * diagonal.mean() * torch.eye(n, dtype=torch.float64)
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(n)
    inverse = torch.linalg.inv(h)
    levels = torch.zeros_like(w)
    for i in order.tolist():
        scale = scales[:, i // group_size].double()
        levels[:, i] = (w[:, i] / scale).round().clamp(-8, 7)
        error = (w[:, i] - levels[:, i] * scale) / inverse[i, i]
        w -= error[:, None] * inverse[i][None]
        inverse -= inverse[:, i : i + 1] @ inverse[i : i + 1] / inverse[i, i]
    return levels


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("block_size", [1, 24, 128, 500])
def test_solver_equals_the_paper(act_order: bool, block_size: int) -> None:
    """float32 and float64 may part only where a value lies on the edge between two levels.

    Such a column then sends its row another way, so whole rows are compared: at most one in a hundred may
    differ, and the errors must agree closely.
    """
    weight, hessian = heavy_tailed_weight(200, 96), hessian_of(correlated_inputs(2000, 96))
    result = quantize_gptq(
        weight, hessian, GROUP, act_order=act_order, block_size=block_size, scale_search="uniform", polish=0
    )
    scales = search_scales(weight, GROUP)
    assert torch.equal(result.quantized.scales, scales)
    levels = textbook_gptq(weight, hessian, scales, GROUP, 0.01, act_order)
    same = (result.quantized.q.double() - 8 == levels).all(1)
    assert same.float().mean() >= 0.99
    textbook = QuantizedWeight((levels + 8).to(torch.uint8), scales, GROUP)
    assert error_of(result, hessian) == pytest.approx(
        relative_error_from_hessian(weight, textbook, hessian), rel=1e-3
    )


def test_gptq_beats_rounding_on_inputs_it_never_saw() -> None:
    weight = heavy_tailed_weight(128, 256)
    hessian = hessian_of(correlated_inputs(4000, 256))
    unseen = correlated_inputs(2000, 256, seed=9)
    rtn = relative_output_error(weight, quantize_rtn(weight, 128), unseen)
    gptq = relative_output_error(weight, quantize_gptq(weight, hessian, 128).quantized, unseen)
    assert gptq < 0.5 * rtn


def test_each_default_measures_better_than_its_absence() -> None:
    """The reason for the defaults, on unseen inputs; docs/decisions.md has the figures at real widths."""
    weight = heavy_tailed_weight(256, 256)
    hessian = hessian_of(correlated_inputs(4000, 256))
    unseen = correlated_inputs(2000, 256, seed=9)

    def error(**options) -> float:
        return relative_output_error(
            weight, quantize_gptq(weight, hessian, GROUP, **options).quantized, unseen
        )

    chosen = error()
    assert chosen < error(act_order=False)
    assert chosen < error(scale_search="uniform") < error(scale_search="absmax")
    assert chosen < error(polish=0)


def test_without_correlation_gptq_is_rounding_to_nearest() -> None:
    weight = heavy_tailed_weight(64, 128)
    result = quantize_gptq(weight, torch.eye(128), GROUP, scale_search="absmax", polish=0)
    rtn = quantize_rtn(weight, GROUP)
    assert torch.equal(result.quantized.q, rtn.q) and torch.equal(result.quantized.scales, rtn.scales)


def test_rtn_rounds_by_its_formula() -> None:
    weight = torch.linspace(-1.0, 1.0, 64).reshape(8, 8)
    quantized = quantize_rtn(weight, 8)
    for o in range(8):
        scale = (weight[o].abs().max() / 7.5).to(torch.bfloat16).float()
        assert quantized.scales[o, 0] == scale
        expected = [max(-8, min(7, round(value / scale.item()))) + 8 for value in weight[o].tolist()]
        assert quantized.q[o].tolist() == expected


def test_stored_layout_is_in_natural_order() -> None:
    """A wrong permutation would be invisible to shapes: with distinct columns it ruins the output."""
    weight = heavy_tailed_weight(64, 128)
    hessian = torch.diag(torch.rand(128, generator=torch.Generator().manual_seed(0)) + 0.1)
    quantized = quantize_gptq(weight, hessian, GROUP, act_order=True, polish=0).quantized
    # With a diagonal Hessian every column is rounded to nearest, wherever it comes in the order.
    scales = quantized.scales.repeat_interleave(GROUP, 1)
    assert torch.equal(quantized.q.float() - 8, (weight / scales).round().clamp(-8, 7))
    packed = pack_gptq(quantized)
    assert torch.equal(packed["g_idx"], torch.arange(128, dtype=torch.int32) // GROUP)
    back = unpack_gptq(packed, GROUP)
    assert torch.equal(dequantize(back, torch.float32), dequantize(quantized, torch.float32))


@pytest.mark.parametrize("magnitude", [1e-7, 1e-3, 1.0, 1e3])
def test_scales_are_exact_in_both_16_bit_formats(magnitude: float) -> None:
    weight = heavy_tailed_weight(64, 128) * magnitude
    hessian = hessian_of(correlated_inputs(500, 128))
    for quantized in (quantize_rtn(weight, GROUP), quantize_gptq(weight, hessian, GROUP).quantized):
        scales = quantized.scales
        assert scales.dtype == torch.float32 and bool((scales > 0).all())
        assert torch.equal(scales.to(torch.bfloat16).float(), scales)
        assert torch.equal(scales.to(torch.float16).float(), scales)
        assert bool(torch.isfinite(dequantize(quantized, torch.float16)).all())


def test_scale_bounds_are_the_ones_of_float16() -> None:
    """2**-14 is float16's smallest normal; 8160 * 8 = 65280 fits, the next bfloat16's 8192 * 8 does not."""
    assert torch.finfo(torch.float16).tiny == MIN_SCALE
    following = torch.nextafter(
        torch.tensor(MAX_SCALE, dtype=torch.bfloat16), torch.tensor(math.inf).bfloat16()
    )
    assert torch.isfinite(torch.tensor(8 * MAX_SCALE).half()) and torch.isinf((8 * following.float()).half())
    kept = round_scales(torch.tensor([0.0, 1e-9, MIN_SCALE, 0.1, MAX_SCALE]))
    assert kept.tolist() == [MIN_SCALE, MIN_SCALE, MIN_SCALE, 0.10009765625, MAX_SCALE]
    for bad in (8192.0, math.inf, math.nan):
        with pytest.raises(ExportError, match=r"^layer 7 needs a quantisation scale of .*"):
            round_scales(torch.tensor([1.0, bad]), "layer 7")


def test_groups_of_zeros_stay_zero() -> None:
    weight = heavy_tailed_weight(16, 128)
    weight[:, :GROUP] = 0
    weight[3] = 0
    hessian = torch.eye(128)
    for quantized in (quantize_rtn(weight, GROUP), quantize_gptq(weight, hessian, GROUP).quantized):
        restored = dequantize(quantized, torch.float32)
        assert not restored[:, :GROUP].any() and not restored[3].any()


def test_search_never_does_worse_than_absmax() -> None:
    weight = heavy_tailed_weight(64, 128)
    importance = correlated_inputs(500, 128).square().mean(0)

    def squared_error(scales: torch.Tensor) -> torch.Tensor:
        spread = scales.repeat_interleave(GROUP, 1)
        error = (weight - (weight / spread).round().clamp(-8, 7) * spread).square() * importance
        return error.view(64, -1, GROUP).sum(-1)

    searched = squared_error(search_scales(weight, GROUP, importance))
    absmax = squared_error(quantize_rtn(weight, GROUP).scales)
    assert bool((searched <= absmax * (1 + 1e-5)).all())
    assert searched.sum() < 0.8 * absmax.sum()


def test_a_group_of_dead_inputs_is_searched_as_if_all_inputs_counted_alike() -> None:
    weight, importance = (
        heavy_tailed_weight(64, 128),
        torch.rand(128, generator=torch.Generator().manual_seed(0)),
    )
    importance[:GROUP] = 0
    assert torch.equal(search_scales(weight, GROUP, importance)[:, 0], search_scales(weight, GROUP)[:, 0])


def test_polishing_lowers_the_damped_error_every_time() -> None:
    weight = heavy_tailed_weight(64, 128)
    hessian = hessian_of(correlated_inputs(1000, 128))
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(128)
    errors = [
        relative_error_from_hessian(weight, quantize_gptq(weight, hessian, GROUP, polish=k).quantized, damped)
        for k in range(4)
    ]
    assert errors[1] < errors[0]
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors))


def test_fewer_samples_than_columns() -> None:
    weight = heavy_tailed_weight(64, 256)
    x = correlated_inputs(40, 256)
    result = quantize_gptq(weight, hessian_of(x), GROUP)
    assert result.damp_used == 0.01
    assert relative_output_error(weight, result.quantized, x) < 0.5 * relative_output_error(
        weight, quantize_rtn(weight, GROUP), x
    )


def test_damping_grows_until_cholesky_succeeds() -> None:
    """The smallest eigenvalue is -0.05 of the mean diagonal: 0.01 cannot lift it above zero, 0.1 can."""
    weight = heavy_tailed_weight(16, 64)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    eigenvalues = torch.ones(64)
    eigenvalues[0] = -0.05
    hessian = basis @ torch.diag(eigenvalues) @ basis.t()
    hessian = (hessian + hessian.t()) / 2
    result = quantize_gptq(weight, hessian, GROUP, polish=0)
    assert result.damp_used == pytest.approx(0.1)
    eigenvalues[0] = -3.0
    hopeless = basis @ torch.diag(eigenvalues) @ basis.t()
    with pytest.raises(ExportError, match=r"^The Hessian of layers\.0\.q_proj is not positive definite"):
        quantize_gptq(weight, (hopeless + hopeless.t()) / 2, GROUP, name="layers.0.q_proj")


@pytest.mark.parametrize("polish", [0, 1])
def test_dead_columns_are_rounded_to_nearest(polish: int) -> None:
    """An input that was always zero says nothing about its weight, so the weight is kept as it is."""
    weight = heavy_tailed_weight(64, 128)
    x = correlated_inputs(1000, 128)
    dead = torch.zeros(128, dtype=torch.bool)
    dead[[5, 17, 40]] = True
    dead[96:] = True  # a whole group
    x[:, dead] = 0
    quantized = quantize_gptq(weight, hessian_of(x), GROUP, polish=polish).quantized
    scales = quantized.scales.repeat_interleave(GROUP, 1)
    nearest = (weight / scales).round().clamp(-8, 7) + 8
    assert (quantized.q.float() == nearest)[:, dead].float().mean() > 0.999
    assert relative_output_error(weight, quantized, x) < 0.1


def test_a_hessian_of_zeros_rounds_to_nearest() -> None:
    weight = heavy_tailed_weight(16, 64)
    result = quantize_gptq(weight, torch.zeros(64, 64), GROUP, scale_search="absmax", polish=0)
    assert torch.equal(result.quantized.q, quantize_rtn(weight, GROUP).q)
    assert error_of(result, torch.zeros(64, 64)) == 0.0


def test_same_inputs_same_result_and_inputs_untouched() -> None:
    weight, hessian = heavy_tailed_weight(64, 128), hessian_of(correlated_inputs(1000, 128))
    # Stored so that its transpose is contiguous: a solver that worked in place would show here.
    weight = weight.t().contiguous().t()
    kept_weight, kept_hessian = weight.clone(), hessian.clone()
    first, second = quantize_gptq(weight, hessian, GROUP), quantize_gptq(weight, hessian, GROUP)
    assert torch.equal(first.quantized.q, second.quantized.q)
    assert torch.equal(first.quantized.scales, second.quantized.scales)
    assert first.damp_used == second.damp_used
    assert torch.equal(weight, kept_weight) and torch.equal(hessian, kept_hessian)


def test_16_bit_weights_and_strides_give_the_same_as_float32() -> None:
    weight, hessian = heavy_tailed_weight(64, 128).to(torch.bfloat16), hessian_of(correlated_inputs(500, 128))
    expected = quantize_gptq(weight.float(), hessian, GROUP).quantized
    for given in (weight, weight.t().contiguous().t()):
        assert torch.equal(quantize_gptq(given, hessian, GROUP).quantized.q, expected.q)
        assert torch.equal(quantize_rtn(given, GROUP).q, quantize_rtn(weight.float(), GROUP).q)


def shortfall_of(weight: torch.Tensor, wanted: torch.Tensor, x: torch.Tensor, samples: int = 8) -> Shortfall:
    """Sum what the outputs W x lack of wanted [rows, out]; the rows are several samples."""
    shortfall = Shortfall(*weight.shape, "cpu")
    for d, rows in zip((wanted - x @ weight.t()).chunk(samples), x.chunk(samples), strict=True):
        shortfall.add(d, rows)
    return shortfall


def test_a_shortfall_is_made_up_for_in_closed_form() -> None:
    """Halves that agree in all are followed in all: U = W + C (H + damping)^-1, and U is then quantised.

    U is found here in float64 with an inverse. Few weights may round another way.
    """
    weight, x = heavy_tailed_weight(128, 96), correlated_inputs(2000, 96)
    wanted = (x + 0.1 * correlated_inputs(2000, 96, seed=7)) @ weight.t()
    hessian = hessian_of(x)
    shortfall = shortfall_of(weight, torch.cat([wanted, wanted]), torch.cat([x, x]), samples=2)
    damped = hessian.double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    cross = 2 / 2000 * (wanted - x @ weight.t()).double().t() @ x.double()
    target = weight.double() + cross @ torch.linalg.inv(damped)
    assert (target - weight).norm() > 0.05 * weight.norm()
    found = quantize_gptq(weight, hessian, GROUP, shortfall=shortfall)
    expected = quantize_gptq(target.float(), hessian, GROUP)
    assert (found.target - target).norm() < 1e-3 * (target - weight).norm()
    assert found.share == 1 and error_of(found, hessian) == pytest.approx(
        error_of(expected, hessian), rel=1e-2
    )
    same = (found.quantized.q == expected.quantized.q).all(1)
    assert same.float().mean() >= 0.9


def faulty_layer(rows: int, seed: int, fault: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw inputs as they should be, and as they come out of a layer that mixes and blurs them."""
    clean = correlated_inputs(rows, 128, seed)
    mixing = torch.eye(128) + fault * torch.randn(128, 128, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(rows, 128, generator=torch.Generator().manual_seed(seed + 50))
    return clean, clean @ mixing + 0.3 * clean.std(0) * noise


@pytest.mark.parametrize(("rows", "fault", "share"), [(4000, 0.02, (0.8, 1)), (160, 0.0, (0, 0.75))])
def test_only_what_can_be_foreseen_is_made_up_for(
    rows: int, fault: float, share: tuple[float, float]
) -> None:
    """A fault that is always the same is made up for, and noise seen on hardly more rows than columns is not.

    Judged on other rows, by what the outputs should be.
    """
    weight = heavy_tailed_weight(128, 128)
    clean, x = faulty_layer(rows, 0, fault)
    unseen_clean, unseen = faulty_layer(1000, 9, fault)

    def outputs_error(shortfall: Shortfall | None) -> tuple[float, float]:
        solved = quantize_gptq(weight, hessian_of(x), GROUP, shortfall=shortfall)
        outputs = unseen @ dequantize(solved.quantized, torch.float32).t()
        wanted = unseen_clean @ weight.t()
        return float((outputs - wanted).norm() / wanted.norm()), solved.share

    plain, none = outputs_error(None)
    made_up, taken = outputs_error(shortfall_of(weight, clean @ weight.t(), x))
    all_of_it, everything = outputs_error(
        shortfall_of(weight, torch.cat([clean, clean]) @ weight.t(), torch.cat([x, x]), samples=2)
    )
    assert none == 0 and everything == 1 and share[0] <= taken <= share[1]
    assert made_up < plain
    assert made_up < 1.02 * all_of_it


def test_no_shortfall_changes_nothing() -> None:
    weight, x = heavy_tailed_weight(64, 128), correlated_inputs(1000, 128)
    plain = quantize_gptq(weight, hessian_of(x), GROUP)
    zero = quantize_gptq(weight, hessian_of(x), GROUP, shortfall=shortfall_of(weight, x @ weight.t(), x))
    assert torch.equal(plain.quantized.q, zero.quantized.q)
    assert torch.equal(plain.target, weight) and torch.equal(zero.target, weight)


def test_one_sample_shows_nothing_that_can_be_foreseen() -> None:
    weight = heavy_tailed_weight(64, 128)
    clean, x = faulty_layer(1000, 0, 0.02)
    shortfall = shortfall_of(weight, clean @ weight.t(), x, samples=1)
    assert quantize_gptq(weight, hessian_of(x), GROUP, shortfall=shortfall).share == 0


def test_a_shortfall_that_is_not_finite_is_refused() -> None:
    weight, x = heavy_tailed_weight(16, 64), correlated_inputs(100, 64)
    shortfall = shortfall_of(weight, x @ weight.t() * torch.nan, x)
    with pytest.raises(ExportError, match=r"^What the 16-bit layer 3 gives contains NaN or infinity"):
        quantize_gptq(weight, torch.eye(64), GROUP, shortfall=shortfall, name="layer 3")


def test_a_shortfall_is_summed_in_halves() -> None:
    """Of four samples the halves are the outer and the inner two; through a weight is what outputs lack."""
    x, d = correlated_inputs(150, 96), torch.randn(150, 24, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    shortfall = Shortfall(24, 96, "cpu")
    parts = list(zip(d.split([20, 60, 30, 40]), x.split([20, 60, 30, 40]), strict=True))
    for part in parts:
        shortfall.add(*part)
    assert shortfall.n == 150
    through = shortfall.through(weight)
    sums = [part.double().t() @ rows.double() for part, rows in parts]
    outer, inner = sums[0] + sums[3], sums[1] + sums[2]
    for found, factor in ((shortfall, torch.eye(24)), (through, weight)):
        total, difference = found.take()
        for tensor, plain in ((total, outer + inner), (difference, outer - inner)):
            expected = 2 / 150 * factor.double() @ plain
            assert (tensor - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("in_features", [100, 2048 + 64])
def test_hessian_in_pieces_equals_the_formula(in_features: int) -> None:
    """2112 columns are two blocks, so that the mirrored part is checked too."""
    x = correlated_inputs(150, in_features) if in_features < 2048 else torch.randn(150, in_features)
    accumulator = HessianAccumulator(in_features, "cpu")
    for piece in x.split([1, 100, 49]):
        accumulator.add(piece)
    assert accumulator.n == 150
    hessian = accumulator.hessian()
    expected = 2 / 150 * x.double().t() @ x.double()
    assert torch.equal(hessian, hessian.t())
    assert (hessian - expected).norm() < 1e-5 * expected.norm()


def test_rows_that_count_twice_are_as_good_as_two_rows() -> None:
    x, d = correlated_inputs(60, 96), torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([1.0, 2.0, 0.0]).repeat(20)
    repeated = torch.arange(60).repeat_interleave(counts.long())
    sums = []
    for rows, weights in ((torch.arange(60), counts), (repeated, None)):
        accumulator, shortfall = HessianAccumulator(96, "cpu"), Shortfall(24, 96, "cpu")
        accumulator.add(x[rows], weights)
        shortfall.add(d[rows], x[rows], weights)
        sums.append((accumulator.hessian(), shortfall.take()[0]))
    for weighted, expected in zip(*sums, strict=True):
        torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-3)


def test_trace_form_equals_the_outputs() -> None:
    for in_features in (96, 2048 + 64):
        weight, x = heavy_tailed_weight(24, in_features), torch.randn(300, in_features)
        quantized = quantize_rtn(weight, GROUP)
        hessian = hessian_of(x)
        direct = relative_output_error(weight, quantized, x)
        assert relative_error_from_hessian(weight, quantized, hessian) == pytest.approx(direct, rel=1e-4)
        difference = weight.double() - dequantize(quantized, torch.float32).double()
        by_hand = (x.double() @ difference.t()).norm() / (x.double() @ weight.double().t()).norm()
        assert direct == pytest.approx(float(by_hand), rel=1e-4)


def test_what_is_not_finite_is_named() -> None:
    weight, hessian = heavy_tailed_weight(16, 64), torch.eye(64)
    for value in (math.nan, math.inf):
        accumulator = HessianAccumulator(64, "cpu", name="layers.3.mlp.down_proj")
        x = torch.zeros(4, 64)
        x[2, 7] = value
        with pytest.raises(ExportError, match=r"calibration inputs of layers\.3\.mlp\.down_proj contain NaN"):
            accumulator.add(x)
        bad_weight, bad_hessian = weight.clone(), hessian.clone()
        bad_weight[1, 1] = bad_hessian[2, 3] = value
        for attempt in (
            lambda w=bad_weight: quantize_rtn(w, GROUP, name="layer 5"),
            lambda w=bad_weight: quantize_gptq(w, hessian, GROUP, name="layer 5"),
        ):
            with pytest.raises(ExportError, match="weight of layer 5 contains NaN"):
                attempt()
        with pytest.raises(ExportError, match="Hessian of layer 5 contains NaN"):
            quantize_gptq(weight, bad_hessian, GROUP, name="layer 5")


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ExportError, match="100 inputs, which do not divide into groups of 32"):
        quantize_rtn(torch.ones(16, 100), GROUP)
    with pytest.raises(ExportError, match="12 outputs"):
        quantize_gptq(torch.ones(12, 64), torch.eye(64), GROUP)
    with pytest.raises(ExportError, match=r"^No calibration input reached layer 2"):
        HessianAccumulator(8, "cpu", name="layer 2").hessian()
    with pytest.raises(ExportError, match="needs a quantisation scale"):
        quantize_rtn(torch.full((8, 64), 1e6), GROUP)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_solves_as_well_as_the_cpu() -> None:
    weight, hessian = heavy_tailed_weight(128, 256), hessian_of(correlated_inputs(2000, 256))
    on_cpu = quantize_gptq(weight, hessian, GROUP)
    on_gpu = quantize_gptq(weight.cuda(), hessian.cuda(), GROUP)
    assert on_gpu.quantized.q.is_cuda
    assert error_of(on_gpu, hessian.cuda()) == pytest.approx(error_of(on_cpu, hessian), rel=0.02)
