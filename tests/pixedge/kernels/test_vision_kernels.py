"""The vision encoder's C kernels against their torch references.

Operands are rounded to bfloat16 (8 bits: at most 2^-9 off each) and sums are float32, so a result is off by a
few 2^-9 of its norm.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixedge.kernels.cpu.compiled import VARIABLE
from pixedge.kernels.vision import fast, reference
from pixedge.kernels.vision.reference import EncoderLayerWeights

BOUND = 0.02


def variants() -> list[str]:
    """List the instructions of this machine that the kernels know."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("amx", "avx512"):
            patch.setenv(VARIABLE, name)
            try:
                if fast.vision_library() is not None:
                    found.append(name)
            except Exception:  # not in this CPU
                continue
    return found


VARIANTS = variants()
pytestmark = pytest.mark.skipif(not VARIANTS, reason="needs a CPU with AVX-512 and bfloat16, and the kernels")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


every_variant = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def angles(patches: int, head_dim: int) -> tuple[Tensor, Tensor]:
    turned = torch.rand(patches, head_dim // 2) * 100
    return turned.cos(), turned.sin()


def layer_weights(dim: int, ffn_dim: int) -> EncoderLayerWeights:
    shapes = [(dim,), *[(dim, dim)] * 4, (dim,), *[(ffn_dim, dim)] * 2, (dim, ffn_dim)]
    return EncoderLayerWeights(
        *(
            (torch.randn(shape) * shape[-1] ** -0.5 if len(shape) > 1 else 1 + torch.randn(shape) / 4).half()
            for shape in shapes
        )
    )


# Around the blocks of 16 and 32 rows, the chunk of 256 keys, and the pictures of the extremes.
PATCHES = [1, 15, 16, 17, 32, 33, 64, 255, 256, 257, 63 * 8]


@pytest.mark.parametrize("patches", PATCHES)
def test_attention(patches: int, variant: str) -> None:
    torch.manual_seed(patches)
    q, k, v = torch.randn(3, patches, 3, 64) * 1.5
    cos, sin = angles(patches, 64)
    assert error(fast.attention(q, k, v, cos, sin), reference.attention(q, k, v, cos, sin)) < BOUND


@every_variant
@given(
    heads=st.integers(1, 3), half=st.integers(1, 64), patches=st.integers(1, 70), seed=st.integers(0, 2**31)
)
def test_attention_of_any_width(heads: int, half: int, patches: int, seed: int, variant: str) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, patches, heads, 2 * half)
    cos, sin = angles(patches, 2 * half)
    assert error(fast.attention(q, k, v, cos, sin), reference.attention(q, k, v, cos, sin)) < BOUND


@pytest.mark.parametrize("rising", [False, True])
def test_attention_to_one_of_many(rising: bool, variant: str) -> None:
    """Scores of up to 280, in order, so that the running maximum moves with each chunk or never.

    A maximum that was kept in spite of rising scores would overflow; one that was lost would give zeros.
    """
    patches = 1024
    q = torch.zeros(patches, 1, 64)
    q[..., 0] = 1.0
    k = torch.zeros(patches, 1, 64)
    k[:, 0, 0] = torch.arange(patches).float() * 2
    k = k if rising else k.flip(0)
    v = torch.randn(patches, 1, 64)
    cos, sin = torch.ones(patches, 32), torch.zeros(patches, 32)
    found = fast.attention(q, k, v, cos, sin)
    expected = reference.attention(q.bfloat16().float(), k.bfloat16().float(), v, cos, sin)
    assert error(found, expected) < BOUND


def test_attention_keeps_nan(variant: str) -> None:
    q, k, v = torch.randn(3, 40, 1, 32)
    cos, sin = angles(40, 32)
    k[7] = torch.nan
    assert fast.attention(q, k, v, cos, sin).isnan().all()


def test_layer_sees_nothing_of_the_one_before(variant: str) -> None:
    """Rows that a block of 32 has and a picture has not must be zero: no share of NaN is none.

    The layer before leaves NaN wherever the kernels keep something.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    weights = layer_weights(64, 96)
    x = torch.randn(1, 64)
    expected = reference.encoder_layer(x, *angles(1, 32), weights, 2, 1e-5)
    fast.encoder_layer(torch.full((64, 64), torch.nan), *angles(64, 32), weights, 2, 1e-5)
    # one patch: its value whatever its angle
    assert error(fast.encoder_layer(x, *angles(1, 32), weights, 2, 1e-5), expected) < BOUND


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("patches", [1, 64, 63 * 8])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_layer(patches: int, threads: int, epsilon: float, variant: str) -> None:
    """An epsilon as large as what is normalised is seen in both norms; 1e-5 beside 1 is not."""
    torch.manual_seed(patches)
    torch.set_num_threads(threads)
    weights = layer_weights(128, 352)
    x = torch.randn(patches, 128)
    cos, sin = angles(patches, 32)
    expected = reference.encoder_layer(x, cos, sin, weights, 4, epsilon)
    found = fast.encoder_layer(x, cos, sin, weights, 4, epsilon)
    # what the layer adds is what the kernel computes
    assert error(found - x, expected - x) < BOUND


@every_variant
@given(
    heads=st.integers(1, 4),
    half=st.integers(4, 20),  # a norm over two or four numbers may amplify any rounding
    ffn_dim=st.integers(1, 90),
    patches=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_layer_of_any_shape(
    heads: int, half: int, ffn_dim: int, patches: int, seed: int, variant: str
) -> None:
    torch.manual_seed(seed)
    dim = 2 * half * heads
    weights = layer_weights(dim, ffn_dim)
    x = torch.randn(patches, dim)
    cos, sin = angles(patches, 2 * half)
    expected = reference.encoder_layer(x, cos, sin, weights, heads, 1e-5)
    off = fast.encoder_layer(x, cos, sin, weights, heads, 1e-5) - expected
    # against the size of what is added up: in a layer this small it may cancel
    assert off.norm() < BOUND * (x.norm() + (expected - x).norm())


def test_layer_with_loud_channels(variant: str) -> None:
    """A residual stream whose loudest channels are 1,000 times the others."""
    torch.manual_seed(0)
    weights = layer_weights(256, 384)
    x = torch.randn(77, 256)
    x[:, [3, 100]] *= 1000
    cos, sin = angles(77, 64)
    expected = reference.encoder_layer(x, cos, sin, weights, 4, 1e-5)
    found = fast.encoder_layer(x, cos, sin, weights, 4, 1e-5)
    assert error(found - x, expected - x) < BOUND


@every_variant
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 100),
    outputs=st.integers(1, 100),
    biased=st.booleans(),
    gelu=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_linear(
    rows: int, inputs: int, outputs: int, biased: bool, gelu: bool, seed: int, variant: str
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs)
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).half()
    bias = torch.randn(outputs).half() if biased else None
    found = fast.linear(x, weight, bias, gelu)
    off = (found - reference.linear(x, weight, bias, gelu)).abs().max()
    # against the size of what is summed: sums and GELU may come out near zero
    assert off < BOUND * max(1.0, float(x.abs().max()))


def test_gelu_of_extreme_values(variant: str) -> None:
    values = torch.tensor([-1e30, -1e4, -88.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 88.0, 1e4, 1e30])
    values = values.bfloat16().float()
    one = torch.ones(1, 1, dtype=torch.float16)
    found = fast.linear(values[:, None], one, gelu=True)[:, 0]
    expected = torch.nn.functional.gelu(values)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_variants_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """They round the same operands alike; only the order of sums differs."""
    torch.manual_seed(0)
    x, weights = torch.randn(50, 128), layer_weights(128, 96)
    cos, sin = angles(50, 32)
    found = []
    for name in VARIANTS:
        monkeypatch.setenv(VARIABLE, name)
        found.append(fast.encoder_layer(x, cos, sin, weights, 4, 1e-5))
    for one, other in itertools.pairwise(found):
        assert error(one, other) < 2e-3
