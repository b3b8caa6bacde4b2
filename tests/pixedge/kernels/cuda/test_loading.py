"""A folder into the kernels' layout: from a file's words, whatever quantiser made them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pixedge.artifact import load_any_decoder, load_decoder, open_artifact
from pixedge.decoder import Decoder
from pixedge.engine import Engine, EngineOptions
from pixedge.packing import GptqWeight, dequantize

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge import artifact as artifacts
from pixedge.gpu_decoder import GpuDecoder, load_gpu_decoder
from pixedge.kernels.cuda import int4_weight, staging
from pixedge.kernels.cuda.int4_weight import Int4Weight, UnsuitedWeightError, stack, unpack_reference
from tests.engines import prompt_logits
from tests.gpu_engines import DEVICE
from tests.random_models import CPU, TorchVision, build_encoder, make_prompt, random_tensors, random_text
from tests.small_exports import CONFIG, small_export


def file_weight(outputs: int, inputs: int, group: int, zeros: bool, ordered: bool, seed: int) -> GptqWeight:
    g = torch.Generator().manual_seed(seed)
    shape = (inputs // group, outputs)
    return GptqWeight(
        torch.randint(-(2**31), 2**31, (inputs // 8, outputs), generator=g).to(torch.int32),
        (1 + torch.rand(shape, generator=g)).half(),
        group,
        torch.randint(0, 17, shape, dtype=torch.uint8, generator=g) if zeros else None,
        torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs)) if ordered else None,
    )


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 20).map(lambda n: 8 * n), min_size=1, max_size=3),
    st.sampled_from([(32, 96), (32, 160), (64, 64), (128, 384), (24, 24), (256, 512)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from((128, 256)),
)
@example([136, 8], (32, 160), False, False, 128)
def test_words_of_a_file_stand_for_the_same_values(
    outputs: list[int], grid: tuple[int, int], zeros: bool, ordered: bool, at_once: int
) -> None:
    """Only some parts have zero points; outputs end inside a block and inside what is laid out at a time."""
    group, inputs = grid
    parts = [
        file_weight(count, inputs, group, zeros and index == 0, ordered, index)
        for index, count in enumerate(outputs)
    ]
    whole = stack([part.unpacked() for part in parts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int4_weight, "OUTPUTS_AT_ONCE", at_once)
        found = Int4Weight.repack(parts, DEVICE)
        other = Int4Weight.pack(whole, DEVICE)
    assert torch.equal(found.words, other.words) and torch.equal(found.scales, other.scales)
    assert (found.zeros is None) == (other.zeros is None)
    values = unpack_reference(found, torch.float32).cpu()
    assert torch.equal(values, dequantize(whole, torch.float32))


def test_what_the_layout_cannot_hold_is_told() -> None:
    odd = file_weight(8, 96, 24, False, False, 0)
    with pytest.raises(UnsuitedWeightError, match="groups of 24 inputs"):
        Int4Weight.repack([odd], DEVICE)
    one, other = (file_weight(8, 96, 32, False, False, 0) for _ in range(2))
    with pytest.raises(UnsuitedWeightError, match="groups of 32, 96"):
        Int4Weight.repack([one, file_weight(8, 96, 96, False, False, 0)], DEVICE)
    mixed = dataclasses.replace(other, order=torch.arange(96).flip(0))
    with pytest.raises(UnsuitedWeightError, match="orders of columns"):
        Int4Weight.repack([one, mixed], DEVICE)
    large = dataclasses.replace(one, scales=torch.full_like(one.scales, 1e30, dtype=torch.bfloat16))
    with pytest.raises(UnsuitedWeightError, match="float16"):
        Int4Weight.repack([large], DEVICE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


def engine_of(decoder: Decoder | GpuDecoder, device: torch.device, dtype: torch.dtype) -> Engine:
    vision = TorchVision(build_encoder(CONFIG, random_tensors(CONFIG, 3)))
    options = EngineOptions(kv_bits=16, cache_tokens=64, max_requests=1)
    return Engine(CONFIG, decoder, vision, device, dtype, frozenset(), options)


@pytest.mark.parametrize("on_host", [False, True])
def test_an_exported_folder(folder: Path, on_host: bool) -> None:
    artifact, steps = open_artifact(folder), []
    decoder = load_gpu_decoder(
        artifact, torch.float16, DEVICE, lambda *step: steps.append(step), host_embeddings=on_host
    )
    assert (decoder.table is None) != on_host
    assert [done for done, _ in steps] == list(range(len(steps))) and steps[-1] == (16, 16)
    decoder = dataclasses.replace(decoder, capture=(lambda step: step) if DEVICE == CPU else None)
    exact = engine_of(load_decoder(artifact, torch.float32, CPU), CPU, torch.float32)
    prompt = make_prompt(CONFIG.vision, random_text(1, 3, CONFIG.decoder.vocab_size))
    found = prompt_logits(engine_of(decoder, DEVICE, torch.float16), prompt)
    expected = prompt_logits(exact, prompt)
    assert float((found - expected).abs().max()) < 0.01 * float(expected.abs().max())


def test_what_does_not_suit_is_run_by_torch_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each reason once, for a GPU that is only spoken of: nothing is sent to it before torch's way begins."""
    artifact, gpu, loaded = open_artifact(folder), torch.device("cuda:0"), []
    monkeypatch.setattr(artifacts, "load_decoder", lambda *arguments: loaded.append(arguments))
    load_any_decoder(artifact, torch.float32, gpu)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(artifacts, "available", lambda device: False)
    load_any_decoder(artifact, torch.float16, gpu)
    assert "need triton and a GPU of compute capability 8.0" in capfd.readouterr().err
    monkeypatch.setattr(artifacts, "available", lambda device: True)
    monkeypatch.setattr("pixedge.gpu_decoder.MAX_COLUMNS", 64)
    load_any_decoder(artifact, torch.float16, gpu)
    assert "this folder has rows of 96 values" in capfd.readouterr().err
    assert [dtype for _, dtype, *_ in loaded] == [torch.float32, torch.float16, torch.float16]


class Sent:
    """Stands in for an event of a GPU: waits until the copy that it was recorded behind is done."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def record(self) -> None:
        self.log.append(f"send {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"wait {self.name}")


@pytest.mark.parametrize("count", [1, 16, 17, 50])
def test_tensors_go_through_two_buffers_in_turn(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer is filled before what it held is sent; buffers of 32 bytes are all that is large about it."""
    monkeypatch.setattr(staging, "BYTES", 32)
    log: list[str] = []
    stage = staging.Staging(CPU)
    stage._buffers = [torch.empty(32, dtype=torch.uint8) for _ in range(2)]
    stage._sent = [Sent(log, name) for name in "ab"]  # type: ignore[misc]
    for seed in range(2):
        tensor = torch.randn(count, generator=torch.Generator().manual_seed(seed)).half()
        kept = tensor.clone()
        assert torch.equal(stage.send(tensor), kept)
    expected = [
        f"{step} {'ab'[turn % 2]}" for turn in range(2 * -(-2 * count // 32)) for step in ("wait", "send")
    ]
    assert log == expected
