"""pixedge.load: its arguments, its progress and what comes of them."""

from pathlib import Path

import pytest
import torch

import pixedge
from pixedge.errors import ArtifactError, CapacityError, CheckpointError, UsageError
from pixedge.loading import choose_device
from tests.small_exports import CONFIG, small_export

QUESTION = [{"role": "user", "content": "What is in this picture?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def same_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("auto", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("float16", torch.float16),
    ],
)
def test_it_answers_in_every_dtype(folder: Path, name: str, dtype: torch.dtype) -> None:
    model = pixedge.load(str(folder), device="cpu", dtype=name)
    assert (model.config, model.folder, model.engine.dtype) == (CONFIG, folder, dtype)
    assert model.load_seconds > 0
    answer = model.generate(QUESTION, pixedge.SamplingParams(max_tokens=3))
    assert answer.completion_tokens == 3 or answer.finish_reason == "stop"


def test_progress_counts_to_the_end_of_each_phase(folder: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    pixedge.load(folder, device="cpu", progress=lambda *step: steps.append(step))
    assert steps == [("weights", done, 5) for done in range(6)] + [("vision", 0, 1), ("vision", 1, 1)]


@pytest.mark.parametrize(
    ("dtype", "kv_cache", "stored"),
    [
        ("auto", "auto", torch.int8),
        ("float32", "auto", torch.float32),
        ("bfloat16", "16bit", torch.bfloat16),
        ("float16", "8bit", torch.int8),
        ("float32", "8bit", torch.int8),
    ],
)
def test_the_cache_is_what_was_asked_for(
    folder: Path, dtype: str, kv_cache: str, stored: torch.dtype
) -> None:
    model = pixedge.load(folder, device="cpu", dtype=dtype, kv_cache=kv_cache, context=100)
    assert model.engine.cache.pool.keys.dtype == stored
    assert model.engine.cache.tokens == 112  # whole pages
    answer = model.generate(QUESTION, pixedge.SamplingParams(max_tokens=3))
    assert answer.completion_tokens == 3 or answer.finish_reason == "stop"
    with pytest.raises(CapacityError, match=r"an answer of up to [\d,]+ do not fit the cache of 112"):
        model.stream(QUESTION)


def test_the_whole_context_is_the_default(folder: Path) -> None:
    model = pixedge.load(folder, device="cpu")
    assert model.engine.cache.tokens == -(-CONFIG.decoder.context // 16) * 16


def test_threads(folder: Path) -> None:
    pixedge.load(folder, device="cpu", threads=1)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; use auto, float32, bfloat16, float16"),
        ({"threads": 0}, "threads is 0; give 1 or more"),
        ({"kv_cache": "4bit"}, "kv_cache is '4bit'; use auto, 16bit, 8bit"),
        ({"context": 0}, "context is 0; give 1 or more tokens"),
        ({"device": "gpu"}, "device is 'gpu'; use auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device is 'meta'; use auto, cpu, cuda or cuda:N"),
        ({"device": ""}, "device is ''; use auto, cpu, cuda or cuda:N"),
        ({"vision_device": "npu"}, "device is 'npu'; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_arguments_out_of_range(folder: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        pixedge.load(folder, **({"device": "cpu"} | arguments))
    assert str(raised.value) == sentence


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a finished export"):
        pixedge.load(tmp_path)


def test_a_tokenizer_of_another_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixedge.tokenizer.Tekkenizer.n_words", 7)
    with pytest.raises(CheckpointError, match="has a vocabulary of 7 tokens"):
        pixedge.load(folder, device="cpu")


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="finds no CUDA device; install a CUDA build"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="the CUDA devices are 0 to 1; name one"):
        choose_device("cuda:2")
