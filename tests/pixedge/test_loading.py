"""pixedge.load: its arguments, its progress and what comes of them."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import pixedge
from pixedge import config
from pixedge.errors import ArtifactError, CapacityError, CheckpointError, UsageError
from pixedge.linear import Int4Linear
from pixedge.loading import choose_device
from tests.small_exports import CONFIG, alter_json, hash_again, small_export

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


def test_one_answer_at_a_time_goes_beyond_the_models_context_on_request(folder: Path) -> None:
    """With several at a time --context is the room that they share: each keeps to the model's."""
    long = [{"role": "user", "content": "word " * 700}]
    params = pixedge.SamplingParams(max_tokens=3)
    with pytest.raises(CapacityError, match="the model's context holds 600"):
        pixedge.load(folder, device="cpu", context=1600).generate(long, params)
    model = pixedge.load(folder, device="cpu", context=1600, max_requests=1)
    assert model.config.decoder.context == 1600 == model.engine.cache.tokens
    answer = model.generate(long, params)
    assert answer.prompt_tokens > 700 and answer.completion_tokens > 0
    with pytest.raises(CapacityError, match="the model's context holds 1,600"):
        model.generate([{"role": "user", "content": "word " * 1700}], params)


def test_an_earlier_export_that_states_too_long_a_context(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What mistral-community/pixtral-12b says went into exports; the cache was eight times too large."""
    shutil.copytree(folder, tmp_path / "export")
    alter_json(tmp_path / "export" / "params.json", lambda data: data.update(max_position_embeddings=4800))
    hash_again(tmp_path / "export")
    monkeypatch.setattr(config, "PIXTRAL_12B_DECODER", CONFIG.decoder)
    model = pixedge.load(tmp_path / "export", device="cpu")
    assert model.engine.cache.tokens == 608
    told = capsys.readouterr().err
    assert told.count("states a context of 4,800 tokens") == 1 == told.count("\n")


def test_the_plan_is_what_is_taken(folder: Path) -> None:
    model = pixedge.load(
        folder, device="cpu", context=100, max_requests=3, vram_limit="1GiB", max_image_size=64
    )
    plan, options = model.plan, model.engine.options
    assert plan is not None and plan.fits and plan.limit == 1 << 30
    assert plan.workload.cache_tokens == model.engine.cache.tokens == options.cache_tokens == 112
    assert plan.workload.batch == options.max_requests == 3
    assert plan.workload.picture == (64, 64) == (model.max_image_size, model.max_image_size)
    assert plan.kept_pictures == options.picture_bytes
    linears = [part for part in model.engine.decoder.modules() if isinstance(part, Int4Linear)]
    held = sum(part.nbytes for linear in linears for part in linear.buffers() if part is not None)
    assert held == plan.device.linears
    assert sum(part.nbytes for part in model.engine.decoder.lm_head.buffers()) == pytest.approx(
        plan.device.head, abs=64
    )
    pool = model.engine.cache.pool
    assert pool.key_scales is not None and pool.value_scales is not None
    assert plan.device.kv_cache == sum(
        part.nbytes for part in (pool.keys, pool.values, pool.key_scales, pool.value_scales)
    )


def test_no_picture_is_larger_than_planned(folder: Path) -> None:
    model = pixedge.load(folder, device="cpu", max_image_size=32)
    picture = {"type": "image", "image": Image.new("RGB", (128, 128))}
    question = [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]
    for asked, tokens in ((None, 4), (64, 4), (16, 1)):
        params = pixedge.SamplingParams(max_tokens=1)
        assert model.generate(question, params, max_image_size=asked).image_tokens == tokens


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"vram_limit": 100 << 20},
            r"and may take 100\.00 MiB; free some memory, or give a greater --vram-limit",
        ),
        ({"vram_limit": "400MiB", "context": 10_000_000}, r"give a --context of at most [\d,]+$"),
    ],
)
def test_what_cannot_fit_is_refused_before_weights_are_read(
    folder: Path, arguments: dict, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixedge.loading.load_any_decoder", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(CapacityError, match=sentence):
        pixedge.load(folder, device="cpu", **arguments)


def test_a_smaller_cache_where_the_limit_is_small(folder: Path) -> None:
    whole = pixedge.load(folder, device="cpu")
    assert whole.plan is not None
    # the pictures that are kept give way first
    limit = whole.plan.total - whole.plan.kept_pictures * 102 // 100 - whole.plan.device.kv_cache // 4
    model = pixedge.load(folder, device="cpu", vram_limit=limit)
    assert model.plan is not None and model.plan.fits
    assert 0 < model.engine.cache.tokens < whole.engine.cache.tokens


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            "the GPU's memory is full; use a ",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory is full; use a "),
        (MemoryError("no memory for a product of a prompt"), "the memory is full; use a "),
    ],
)
def test_memory_that_runs_out_is_a_sentence(
    folder: Path, error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While loading, and in a step: the requests of the step end with it, and the engine goes on."""
    model = pixedge.load(folder, device="cpu")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("pixedge.loading.load_any_decoder", fail)
        with pytest.raises(CapacityError, match=sentence):
            pixedge.load(folder, device="cpu")
        patched.setattr(model.engine.runner, "outcomes", fail)
        with pytest.raises(CapacityError, match=sentence):
            model.generate(QUESTION, pixedge.SamplingParams(max_tokens=3))
    assert model.generate(QUESTION, pixedge.SamplingParams(max_tokens=3)).completion_tokens


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
        ({"max_image_size": 0}, "max_image_size is 0; give 1 or more pixels"),
        ({"max_requests": 0}, "max_requests is 0; give 1 or more"),
        ({"vram_limit": 0}, "vram_limit is 0; give 1 or more bytes"),
        ({"vram_limit": "24"}, "vram_limit is '24'; give a number with a unit, such as 24GiB, 12GB or 800MB"),
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
    """With its index: torch's memory limit refused "cuda", so every load on a card ended in a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="finds no CUDA device; install a CUDA build"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="the CUDA devices are 0 to 1; name one"):
        choose_device("cuda:2")
