"""A whole decoding step against the decoder in torch, and the graphs that repeat it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pixedge.config import DecoderConfig
from pixedge.decoder import Decoder, RMSNorm, WholeSequences
from pixedge.kernels.int8 import quantize_rows
from pixedge.packing import QuantizedWeight, dequantize

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import chunk, graph, int8, step, tuning
from pixedge.kernels.cuda.pages import PAGE, LayerPages

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda:0")
CONFIG = DecoderConfig(
    dim=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=16,
    ffn_dim=48,
    vocab_size=90,
    norm_eps=0.3,  # as large as what is normalised, so that a step which drops or changes it is found
    rope_theta=1e4,
    context=64,
)
MAX_PAGES = 4


@dataclass(frozen=True)
class Model:
    """The same random weights twice: as the step takes them, and as a decoder in float32."""

    weights: step.StepWeights
    decoder: Decoder
    embeddings: Tensor


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param, on_device=True)


@pytest.fixture(scope="module")
def half() -> Model:
    return make_model(torch.float16, on_device=True)


def make_model(dtype: torch.dtype, *, on_device: bool) -> Model:
    g = torch.Generator().manual_seed(0)
    decoder = Decoder(CONFIG).to(DEVICE)

    def linear(name: str) -> QuantizedWeight:
        module = decoder.get_submodule(name)
        outputs, inputs = module.weight.shape  # type: ignore[misc, union-attr]
        group = 48 if name.endswith("down_proj") else 32
        q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, generator=g)  # type: ignore[arg-type]
        scales = (0.5 + torch.rand(outputs, inputs // group, generator=g)) * 0.25 / inputs**0.5  # type: ignore[operator, arg-type]
        quantized = QuantizedWeight(q, scales.half().float(), group)
        module.weight.data = dequantize(quantized, torch.float32).to(DEVICE)  # type: ignore[union-attr]
        return quantized

    norms = {
        name: (1 + 0.1 * torch.randn(CONFIG.dim, generator=g)).to(DEVICE, dtype)
        for name, module in decoder.named_modules()
        if isinstance(module, RMSNorm)
    }
    for name, weight in norms.items():
        decoder.get_submodule(name).weight.data = weight.float()  # type: ignore[union-attr]
    head, scales = quantize_rows(torch.randn(CONFIG.vocab_size, CONFIG.dim, generator=g) / 8)
    decoder.lm_head.weight.data = (head.float() * scales.float()[:, None]).to(DEVICE)
    embeddings = torch.randn(CONFIG.vocab_size, CONFIG.dim, generator=g).to(DEVICE, dtype)
    weights = step.StepWeights.assemble(
        CONFIG,
        linear,
        norms.__getitem__,
        (head.to(DEVICE), scales.to(DEVICE)),
        embeddings if on_device else None,
    )
    return Model(weights, decoder, embeddings)


def make_pages(sequences: int, dtype: torch.dtype, eight: bool) -> list[LayerPages]:
    shape = (CONFIG.n_layers, sequences * MAX_PAGES, CONFIG.n_kv_heads, PAGE, CONFIG.head_dim)
    keys, values = (
        torch.full(shape, 3, dtype=torch.int8 if eight else dtype, device=DEVICE) for _ in range(2)
    )
    if not eight:
        return [LayerPages(k, v) for k, v in zip(keys, values, strict=True)]
    scales = [torch.full(shape[:-1], 3, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    return [LayerPages(*parts) for parts in zip(keys, values, *scales, strict=True)]


def scattered_tables(sequences: int) -> Tensor:
    order = torch.randperm(sequences * MAX_PAGES, generator=torch.Generator().manual_seed(5))
    return order.view(sequences, MAX_PAGES).to(torch.int32)


class Recording(WholeSequences):
    """Attention that stores the keys and values it sees in the pages of one sequence."""

    def __init__(self, length: int, pages: list[LayerPages], table: Tensor) -> None:
        super().__init__(length)
        self.pages, self.table = pages, table

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        held = self.pages[layer]
        for stored, scales, x in ((held.keys, held.key_scales, k), (held.values, held.value_scales, v)):
            for at, row in enumerate(x):  # [kv_heads, head_dim]
                page, offset = int(self.table[at // PAGE]), at % PAGE
                if scales is not None:
                    scale = (row.abs().amax(-1) / 127).half()
                    scales[page, :, offset] = scale
                    row = (row / scale[:, None].float()).round().clamp(-127, 127)
                stored[page, :, offset] = row.to(stored.dtype)
        return super().__call__(layer, q, k, v)


@torch.inference_mode()
def fill(model: Model, ids: list[int], pages: list[LayerPages], table: Tensor) -> None:
    """Put a text's keys and values into its pages."""
    x = model.embeddings[torch.tensor(ids, device=DEVICE)].float()
    model.decoder(x, torch.arange(len(ids), device=DEVICE), Recording(len(ids), pages, table))


@torch.inference_mode()
def expected_logits(model: Model, ids: list[int]) -> Tensor:
    """Run a whole sequence through the decoder in float32; return the logits after its last token."""
    x = model.embeddings[torch.tensor(ids, device=DEVICE)].float()
    positions = torch.arange(len(ids), device=DEVICE)
    hidden = model.decoder(x, positions, WholeSequences(len(ids)))
    logits: Tensor = model.decoder.lm_head(hidden[-1])
    return logits


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def capture() -> graph.Capture:
    return graph.direct if DEVICE.type == "cpu" else graph.cuda_capture()


def tolerance(dtype: torch.dtype, eight: bool) -> float:
    """Bound the error of logits of about 1, absolute: 16-bit activations, then the cache's 8 bits."""
    return (0.02 if dtype == torch.float16 else 0.15) + (0.05 if eight else 0.0)


@pytest.mark.parametrize("eight", [False, True], ids=["16-bit pages", "8-bit pages"])
def test_a_mixed_batch_gives_what_each_sequence_gives_alone(model: Model, eight: bool) -> None:
    """Three sequences in a graph for four, one of them begun earlier; it grows into its second page."""
    dtype = model.weights.norm.dtype
    pages, tables = make_pages(3, dtype, eight), scattered_tables(3)
    decode = graph.DecodeGraph(model.weights, pages, MAX_PAGES, batches=(4,), capture=capture())
    g = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, CONFIG.vocab_size, (n,), generator=g).tolist() for n in (17, 2, 2)]
    fill(model, texts[0][:15], pages, tables[0])
    for at in range(2):
        positions = [15 + at, at, at]
        ids = [text[position] for text, position in zip(texts, positions, strict=True)]
        logits, chosen = decode.step(ints(ids), ints(positions), tables)
        for row, position in enumerate(positions):
            expected = expected_logits(model, texts[row][: position + 1])
            assert float((logits[row] - expected).abs().max()) < tolerance(dtype, eight)
            assert int(chosen[row]) == int(logits[row].argmax())


def test_a_batch_is_its_sequences_alone(half: Model) -> None:
    dtype = half.weights.norm.dtype
    tables = scattered_tables(2)
    found = []
    for batches, parts in (((2,), [[0, 1]]), ((1,), [[0], [1]])):
        decode = graph.DecodeGraph(
            half.weights, make_pages(2, dtype, False), MAX_PAGES, batches=batches, capture=capture()
        )
        rows: dict[int, Tensor] = {}
        for part in parts:
            for at in range(2):
                ids = ints([(7 * row + 3 * at) % CONFIG.vocab_size for row in part])
                logits, _ = decode.step(ids, ints([at] * len(part)), tables[part])
                rows |= {row: logits[index].clone() for index, row in enumerate(part)}
        found.append(torch.stack([rows[0], rows[1]]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4 if DEVICE.type == "cpu" else 5e-2)


@pytest.mark.parametrize(
    ("dtype", "eight", "sliced"),
    [(torch.float16, True, 0), (torch.bfloat16, False, 96)],
    ids=["unpacked weights, 8-bit pages", "16 rows at a time, 16-bit pages"],
)
def test_chunks_and_steps_go_on_from_each_other(
    dtype: torch.dtype, eight: bool, sliced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts side by side in two chunks, then a step: each as if it were alone and in one piece."""
    monkeypatch.setattr(chunk, "SLICED", sliced)
    model = make_model(dtype, on_device=True)
    weights = model.weights
    pages, tables = make_pages(2, dtype, eight), scattered_tables(2)
    g = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, CONFIG.vocab_size, (n,), generator=g).tolist() for n in (19, 8)]
    buffers = chunk.ChunkBuffers.allocate(weights, 24, 2, MAX_PAGES)
    places = chunk.ChunkPlaces(buffers, 2, MAX_PAGES)
    for starts, counts in (([0, 0], [10, 5]), ([10, 5], [8, 2])):
        layout = places.lay_out(tables.numpy(), list(zip(starts, counts, strict=True)))
        ids = [text[start : start + count] for text, start, count in zip(texts, starts, counts, strict=True)]
        tokens = torch.tensor([*ids[0], *ids[1]], device=DEVICE)
        buffers.embedded[: len(tokens)] = model.embeddings[tokens]
        hidden = chunk.run_chunk(weights, pages, buffers, layout)
        ends = torch.tensor(counts, device=DEVICE).cumsum(0) - 1
        logits = int8.head(hidden[ends], weights.head, weights.head_scales)
        for row, (text, start, count) in enumerate(zip(texts, starts, counts, strict=True)):
            expected = expected_logits(model, text[: start + count])
            assert float((logits[row] - expected).abs().max()) < tolerance(dtype, eight)
    decode = graph.DecodeGraph(weights, pages, MAX_PAGES, batches=(2,), capture=capture())
    logits, _ = decode.step(ints([texts[0][18], texts[1][7]]), ints([18, 7]), tables)
    for row, text in enumerate(texts):
        expected = expected_logits(model, text)
        assert float((logits[row] - expected).abs().max()) < tolerance(dtype, eight)


def test_embeddings_in_host_memory_change_nothing() -> None:
    results = []
    for on_device in (True, False):
        model = make_model(torch.float16, on_device=on_device)
        decode = graph.DecodeGraph(
            model.weights, make_pages(1, torch.float16, False), MAX_PAGES, batches=(1,), capture=capture()
        )
        for at, token in enumerate((5, 80)):
            rows = None if on_device else model.embeddings[[token]].cpu()
            logits, _ = decode.step(ints([token]), ints([at]), scattered_tables(1), rows)
        results.append(logits.clone())
    assert torch.equal(results[0], results[1])


def test_nothing_is_allocated_after_the_capture(half: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of any batch work in the buffers that were there: torch's ways to make a tensor are shut off."""
    pages = make_pages(4, half.weights.norm.dtype, True)
    decode = graph.DecodeGraph(half.weights, pages, MAX_PAGES, batches=(2, 4), capture=capture())
    places = {
        name: value.data_ptr() for name, value in vars(decode.buffers).items() if isinstance(value, Tensor)
    }
    inputs = [(ints([1] * n), ints([0] * n), scattered_tables(4)[:n]) for n in (1, 3)]

    def refuse(*args: object, **options: object) -> Tensor:
        raise AssertionError("a step allocates")

    results = []
    with monkeypatch.context() as patch:
        for name in (
            "empty",
            "zeros",
            "full",
            "arange",
            "empty_like",
            "zeros_like",
            "tensor",
            "cat",
            "stack",
        ):
            patch.setattr(torch, name, refuse)
        results = [decode.step(*each) for each in inputs]
    assert all(logits.data_ptr() == places["logits"] for logits, _ in results)
    assert all(chosen.data_ptr() == places["chosen"] for _, chosen in results)


def test_the_capture_writes_no_page(half: Model) -> None:
    """What is captured stands for no sequence: pages that others already use stay as they are."""
    captured: list[Callable[[], None]] = []

    def record(body: Callable[[], None]) -> Callable[[], None]:
        captured.append(body)
        return graph.direct(body)

    pages = make_pages(2, half.weights.norm.dtype, False)
    graph.DecodeGraph(half.weights, pages, MAX_PAGES, batches=(1, 2), capture=record)
    assert len(captured) == 2
    assert all(bool((layer.keys == 3).all()) and bool((layer.values == 3).all()) for layer in pages)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device: there are no graphs to compare")
def test_graphs_change_nothing(half: Model) -> None:
    results = []
    for chosen in (graph.direct, graph.cuda_capture()):
        pages = make_pages(1, half.weights.norm.dtype, False)
        decode = graph.DecodeGraph(half.weights, pages, MAX_PAGES, batches=(1,), capture=chosen)
        for at, token in enumerate((5, 80, 3)):
            logits, _ = decode.step(ints([token]), ints([at]), scattered_tables(1))
        results.append(logits.clone())
    assert torch.equal(results[0], results[1])
