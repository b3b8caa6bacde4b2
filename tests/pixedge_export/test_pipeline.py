"""The whole export: what it writes, that it writes the same again, and that a failure leaves nothing."""

import errno
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pixedge
from pixedge.artifact import INDEX, MANIFEST, REPORT, REPORT_PAGE, open_artifact
from pixedge.engine import Engine, greedy
from pixedge.errors import CapacityError, CheckpointError, ExportError, UsageError
from pixedge.kernels.int8 import quantize_rows
from pixedge.packing import dequantize, unpack_gptq
from pixedge.self_digest import KEY
from pixedge.tensor_shapes import exported_shapes, is_quantized
from pixedge.terminal import size
from pixedge.tokenizer import Tokenizer
from pixedge_export import decoder_export, pipeline, writer
from pixedge_export import vision as vision_module
from pixedge_export.calibration import EncodedSample, default_samples, encode_samples
from pixedge_export.decoder_export import DecoderExport
from pixedge_export.gptq import quantize_rtn
from pixedge_export.known_picture import known_conversation
from pixedge_export.pipeline import DEFAULT_SAMPLES, MAX_SAMPLE_TOKENS, Event, Recipe, export
from pixedge_export.synthetic import PIXTRAL_12B, write_synthetic
from pixedge_export.weights import Weights
from pixedge_export.writer import ShardWriter, estimate_bytes
from tests.random_models import (
    CPU,
    Tensors,
    TorchVision,
    build_decoder,
    build_encoder,
    make_prompt,
    random_pixels,
)
from tests.small_exports import (
    CONFIG,
    RECIPE,
    ROUNDED,
    SAMPLES,
    TEKKEN,
    alter_json,
    small_export,
    small_tensors,
    write_checkpoint,
)

HEAD = "language_model.lm_head.weight"
TABLE = "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return folder.parent / "small"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the comparison with torch out, which takes most of a small export's time."""
    monkeypatch.setattr(pipeline, "check_parity", lambda *_: [])


def export_small(source: Path, out: Path, recipe: Recipe = ROUNDED, **options: object) -> Path:
    return export(source, out, recipe, **({"samples": 4, "device": "cpu", "threads": 1} | options))


def read_tensors(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def dequantized(folder: Path) -> Tensors:
    """Read an export back as canonical tensors in float32, the head in 8 bits as it is run."""
    stored = read_tensors(folder)
    found: Tensors = {}
    for name in small_tensors():
        linear = name.removesuffix("weight")
        if is_quantized(name):
            packed = {key: stored[linear + key] for key in ("qweight", "qzeros", "scales", "g_idx")}
            found[name] = dequantize(unpack_gptq(packed, RECIPE.group_size), torch.float32)
        else:
            found[name] = stored[name].float()
    q, scales = quantize_rows(stored[HEAD])
    return found | {HEAD: q.float() * scales.float()[:, None]}


def test_the_folder_holds_what_every_engine_reads(folder: Path) -> None:
    stored = read_tensors(folder)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == exported_shapes(CONFIG, 32)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    assert {file.name for file in folder.iterdir()} == {
        *(
            "pixedge.json",
            "params.json",
            "tekken.json",
            "config.json",
            "tokenizer.json",
            "export_report.json",
            "export_report.html",
        ),
        *("tokenizer_config.json", "special_tokens_map.json", "processor_config.json"),
        *("preprocessor_config.json", "chat_template.jinja", "model.safetensors.index.json"),
        *("vision_encoder.onnx", "vision_encoder_cpu.onnx", "vision_encoder_fused.onnx"),
        *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
    }
    assert (folder / "tekken.json").read_bytes() == TEKKEN.read_bytes()


def test_what_is_not_quantised_is_as_it_was(folder: Path) -> None:
    stored = read_tensors(folder)
    for name, tensor in small_tensors().items():
        if name.startswith("language_model.") and not is_quantized(name):
            assert stored[name].dtype == torch.bfloat16 and torch.equal(stored[name], tensor)
        elif not is_quantized(name):
            assert torch.equal(stored[name], tensor.to(torch.float16))


def test_the_manifest_says_what_was_done(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["pixedge_version"] == pixedge.__version__
    assert manifest["source"]["name"] == "small" and manifest["source"]["layout"] == "mistral"
    assert manifest["recipe"] == {
        "method": "gptq",
        "group_size": 32,
        "damping": 0.01,
        "act_order": True,
        "scale_search": "activation",
        "polish": 1,
        "catch_up": True,
        "image_weight": 0.25,
    }
    calibration = manifest["calibration"]
    # 8 of the mix: one picture and one text are held out, and the known picture is measured on too
    assert (calibration["built_in"], calibration["samples"], calibration["held_out_samples"]) == (True, 6, 3)
    assert calibration["tokens"] > calibration["image_tokens"] > 0


def test_the_report_says_what_it_cost(folder: Path) -> None:
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    assert len(report["linear_errors"]) == 7 * CONFIG.decoder.n_layers
    assert {row["layer"] for row in report["linear_errors"]} == {0, 1}
    for row in report["linear_errors"]:
        assert 0 < row["quantized"] < row["rtn"] < 0.2
    measured = report["divergence_from_16_bits"]
    assert measured.keys() == {"rtn", "gptq"}
    for kind in ("text", "image"):
        assert measured["gptq"][kind]["tokens"] == measured["rtn"][kind]["tokens"] > 10
        assert 0 < measured["gptq"][kind]["kl"] < measured["rtn"][kind]["kl"]
        assert 0.5 < measured["gptq"][kind]["top1"] <= 1
    assert len({(row["height"], row["width"]) for row in report["vision_parity"]}) >= 8
    assert all(row["error"] <= row["bound"] for row in report["vision_parity"])
    assert list(report["seconds"]) == ["samples", "vision", "encode", "layers", "measure"]


def comparable(folder: Path) -> dict[str, object]:
    """Every file's bytes; of the report all but the seconds, which its page tells too."""
    found: dict[str, object] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != REPORT_PAGE
    }
    report = json.loads(found[REPORT])
    assert report.pop("seconds") and report.pop("page_sha256") and report.pop(KEY)
    return found | {REPORT: report}


def test_the_same_export_gives_the_same_bytes(folder: Path, source: Path, tmp_path: Path) -> None:
    """Only the report's seconds differ, and the manifest does not depend on them."""
    again = export_small(source, tmp_path / "again", RECIPE, samples=SAMPLES)
    assert comparable(again) == comparable(folder)


def test_both_layouts_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Only what is said about the source differs, in the manifest and in the report."""
    source = write_checkpoint(tmp_path / "small", "hf")
    other = comparable(export_small(source, tmp_path / "out", RECIPE, samples=SAMPLES))
    expected = comparable(folder)
    for files in (other, expected):
        files[MANIFEST] = json.loads(files[MANIFEST])
        assert files[MANIFEST].pop(KEY)
    for name in (MANIFEST, REPORT):
        there, here = other[name].pop("source"), expected[name].pop("source")
        assert (there["layout"], here["layout"]) == ("hf", "mistral")
        assert there["sha256"] != here["sha256"]
    assert other == expected


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_export_says_what_a_dense_decoder_with_its_weights_says(folder: Path, pictures: int) -> None:
    tensors = dequantized(folder)
    model = pixedge.load(folder, device="cpu", dtype="float32", threads=1)
    vision = TorchVision(build_encoder(CONFIG, tensors))
    decoder = build_decoder(CONFIG, tensors)
    dense = Engine(CONFIG, decoder, vision, CPU, torch.float32, model.tokenizer.stop_ids)
    images = [random_pixels(CONFIG.vision, 2 + at, 5, at) for at in range(pictures)]
    prompt = make_prompt(CONFIG.vision, [1, 3, 1500], *images, [1600, 2000, 4])
    torch.testing.assert_close(model.engine.score(prompt), dense.score(prompt), atol=1e-4, rtol=0)
    found = greedy(model.engine, prompt, 24)
    assert found == greedy(dense, prompt, 24) and len(set(found)) > 3


def test_the_known_scores_are_those_of_the_finished_folder(folder: Path) -> None:
    known = open_artifact(folder).manifest["known_picture"]
    assert known["messages"] == known_conversation()
    model = pixedge.load(folder, device="cpu", dtype="float32")
    prompt = model.tokenizer.encode(known["messages"])
    words = len(prompt.ids) - 1 - prompt.ids.index(CONFIG.vision.image_end_token_id)
    found = model.engine.score(prompt)[-words:]
    torch.testing.assert_close(found, torch.tensor(known["logprobs"]), atol=2e-4, rtol=0)


def test_rounding_a_float32_checkpoint(quick: None, tmp_path: Path) -> None:
    """rtn reads no calibration data; what stays unquantised is stored in 16 bits."""
    tensors = {name: tensor.float() * 1.001 for name, tensor in small_tensors().items()}
    source = write_checkpoint(tmp_path / "float32", tensors=tensors)
    out = export_small(source, tmp_path / "out")
    stored = read_tensors(out)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.float16, torch.int32}
    assert torch.equal(stored[TABLE], tensors[TABLE].bfloat16())
    found = dequantized(out)
    for name, tensor in tensors.items():
        if is_quantized(name):
            assert torch.equal(found[name], dequantize(quantize_rtn(tensor, 32), torch.float32))
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    assert report["divergence_from_16_bits"].keys() == {"rtn"}
    assert report["calibration"]["samples"] == 0 and report["calibration"]["held_out_samples"] == 3
    assert all(row["rtn"] == row["quantized"] for row in report["linear_errors"])
    assert pixedge.load(out, device="cpu").config == CONFIG


def test_events_come_phase_by_phase(quick: None, source: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    export_small(source, tmp_path / "out", report=events.append)
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == list(PHASES)
    for phase in phases:
        done = [event.done for event in events if event.phase == phase]
        assert done == sorted(done) or phase == "measure"  # positions are known once it has begun
        last = [event for event in events if event.phase == phase][-1]
        assert last.done == last.total > 0
    assert "real data, close to what will be asked, does better" in events[0].detail
    order = sorted(range(len(events)), key=lambda at: phases.index(events[at].phase))
    assert order == list(range(len(events)))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Ten conversations without a picture."""
    folder = tmp_path / "samples"
    folder.mkdir()
    turns = [
        [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": "One, two, three."}]
        for n in range(10)
    ]
    lines = [json.dumps({"messages": messages}) for messages in turns]
    (folder / "calibration.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_calibration_data_of_ones_own(quick: None, source: Path, samples: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    out = export_small(
        source, tmp_path / "out", RECIPE, calibration=samples, samples=None, report=events.append
    )
    calibration = open_artifact(out).manifest["calibration"]
    assert (calibration["built_in"], calibration["samples"], calibration["held_out_samples"]) == (False, 8, 3)
    assert calibration["image_tokens"] == 0
    assert not any("real data" in event.detail for event in events)
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    # text comes from the samples, and what follows a picture from the known picture alone
    assert report["divergence_from_16_bits"]["gptq"].keys() == {"text", "image"}


@pytest.mark.parametrize(("limit", "expected"), [(None, 10), (4, 4), (10, 10), (99, 10)])
def test_samples_of_a_folder_are_limited_in_their_order(
    samples: Path, limit: int | None, expected: int
) -> None:
    found = pipeline._choose(samples, limit)
    numbers = [int(sample.name.partition(":")[2]) for sample in found]
    assert len(found) == expected and numbers == sorted(set(numbers))
    assert [sample.name for sample in pipeline._choose(samples, limit)] == [sample.name for sample in found]


def test_a_limit_draws_from_the_whole_folder(tmp_path: Path) -> None:
    """Files are often sorted by kind: the first N lines would be one kind. The draw reaches all."""
    lines = [json.dumps({"messages": [{"role": "user", "content": f"Question {i}"}]}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    chosen = [int(sample.name.partition(":")[2]) for sample in pipeline._choose(tmp_path, 20)]
    assert len(chosen) == 20 and chosen == sorted(set(chosen))
    for start in (1, 21, 41):  # a fair draw misses one third once in 3 x 10^4 times, and the seed is fixed
        assert any(start <= number < start + 20 for number in chosen), chosen
    assert len({later - number for number, later in itertools.pairwise(chosen)}) > 1, "every n-th line"


def test_a_picture_s_tokens_count_a_quarter_and_text_in_full() -> None:
    """Which of the two is which: with the weights swapped every export still works, only worse."""
    decoder = DecoderExport(
        CONFIG, cast(Weights, None), RECIPE, cast(ShardWriter, None), torch.device("cpu"), print
    )
    text = make_prompt(CONFIG.vision, [500, 600, 700])
    seen = make_prompt(CONFIG.vision, [500], np.zeros((3, 32, 48), np.float32), [600])
    (plain,), (mixed,) = (decoder.counts([EncodedSample("s", each)]) for each in (text, seen))
    assert plain.tolist() == [1.0] * 3
    vision = CONFIG.vision
    pictured = {vision.image_token_id, vision.image_break_token_id, vision.image_end_token_id}
    expected = [0.25 if token in pictured else 1.0 for token in seen.ids]
    assert mixed.tolist() == expected and {0.25, 1.0} == set(expected)
    assert expected[0] == expected[-1] == 1.0


def test_the_built_in_mix_has_as_many_samples_as_the_guide_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pipeline, "default_samples", lambda seed, n: asked.append((seed, n)) or [])
    pipeline._choose(None, None)
    pipeline._choose(None, 12)
    assert asked == [(0, DEFAULT_SAMPLES), (0, 12)]
    guide = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8")
    assert f"export draws {DEFAULT_SAMPLES} conversations" in guide


def test_the_built_in_mix_fits_the_real_model() -> None:
    """Pictures cannot be cut, so the largest must fit: with a limit of 2,048 no default export began."""

    def pixels(messages: list[dict]) -> int:
        parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
        return sum(part["image"].width * part["image"].height for part in parts if part["type"] == "image")

    largest = sorted(default_samples(0, DEFAULT_SAMPLES), key=lambda sample: pixels(sample.messages))[-3:]
    encoded = encode_samples(largest, Tokenizer(TEKKEN, PIXTRAL_12B.vision), MAX_SAMPLE_TOKENS)
    assert max(len(sample.prompt.ids) for sample in encoded) > 2048
    assert all(len(sample.prompt.ids) < MAX_SAMPLE_TOKENS for sample in encoded)


# Nothing half-written may be left where the artifact goes, whatever fails and whenever. What can be gone on
# with stays beside it (see test_resume).

PHASES = ("samples", "plan", "vision", "encode", "layers", "measure", "source", "hash")


def interrupt_at(phase: str, which: int) -> object:
    """Make a reporter that acts as Ctrl-C at a phase's first or last event."""
    seen = 0

    def report(event: Event) -> None:
        nonlocal seen
        if event.phase == phase:
            seen += 1
            if (which == 0 and seen == 1) or (which == 1 and event.done == event.total):
                raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("which", [0, 1], ids=["begin", "end"])
@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_leaves_nothing_half_written(
    quick: None, source: Path, tmp_path: Path, phase: str, which: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_small(source, tmp_path / "out", report=interrupt_at(phase, which))
    early = PHASES.index(phase) < PHASES.index("encode")
    assert [path.name for path in tmp_path.iterdir()] == ([] if early else [".out.partial"])


def test_ctrl_c_leaves_the_old_export(quick: None, folder: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        export_small(source, tmp_path / "out", force=True, report=interrupt_at("hash", 1))
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.partial"}
    assert comparable(tmp_path / "out") == comparable(folder)


def test_force_replaces_the_old_export(quick: None, folder: Path, source: Path, tmp_path: Path) -> None:
    out = shutil.copytree(folder, tmp_path / "out")
    (out / "leftover.bin").write_text("of the old one")
    with pytest.raises(ExportError, match="already holds an export; add --force"):
        export_small(source, out)
    assert open_artifact(out).manifest["recipe"]["method"] == "gptq"
    assert export_small(source, out, force=True) == out
    assert open_artifact(out).manifest["recipe"]["method"] == "rtn"
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (out / "leftover.bin").exists()


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("shard", [1, 2, 3, 4])
def test_a_disk_that_fills_while_weights_are_written(
    quick: None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    real = writer.save_tensors

    def save(file: Path, tensors: dict[str, Tensor]) -> None:
        real(file, tensors)
        if f"model-0000{shard}-" in file.name:
            raise FULL

    monkeypatch.setattr(writer, "save_tensors", save)
    with pytest.raises(CapacityError, match=f"the disk of {tmp_path} is full; free some space"):
        export_small(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ([] if shard == 1 else [".out.partial"])


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "config.json", INDEX, REPORT, MANIFEST]
)
def test_a_disk_that_fills_while_a_text_is_written(
    quick: None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for kind in ("write_text", "write_bytes"):
        real = getattr(Path, kind)

        def write(self: Path, *args: object, real: Callable[..., int] = real, **options: object) -> int:
            if self.name in (name, f"{name}.new"):
                raise FULL
            return real(self, *args, **options)

        monkeypatch.setattr(Path, kind, write)
    with pytest.raises(CapacityError, match="is full"):
        export_small(source, tmp_path / "out")
    late = name in (INDEX, REPORT, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ([".out.partial"] if late else [])


def test_a_graph_that_differs_from_torch_is_no_export(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_module, "FLOAT32_BOUND", 1e-12)
    with pytest.raises(ExportError, match="differs from torch by"):
        export_small(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


LAYER = "language_model.model.layers.1."


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}self_attn.k_proj.weight",
        f"{LAYER}mlp.down_proj.weight",
        f"{LAYER}post_attention_layernorm.weight",
        TABLE,
        HEAD,
        "language_model.model.norm.weight",
        "vision_tower.patch_conv.weight",
        "vision_tower.transformer.layers.1.attention.q_proj.weight",
        "multi_modal_projector.linear_2.bias",
    ],
)
def test_a_weight_that_is_not_finite_is_named(quick: None, tmp_path: Path, name: str) -> None:
    tensors = small_tensors()
    tensors[name].view(-1)[-1] = torch.nan
    source = write_checkpoint(tmp_path / "source", tensors=tensors)
    with pytest.raises(ExportError) as raised:
        export_small(source, tmp_path / "out")
    assert str(raised.value) == f"{name} contains NaN or infinity; check the checkpoint"
    assert not (tmp_path / "out").exists()


# What can be said at once is said before any work.


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("this is too late for an error")

    for module, name in (
        (pipeline, "default_samples"),
        (pipeline, "export_vision"),
        (decoder_export, "encode"),
        (decoder_export, "quantize_layer"),
    ):
        monkeypatch.setattr(module, name, work)


def refusal(source: Path, out: Path, recipe: Recipe = RECIPE, **options: object) -> str:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(pixedge.errors.PixedgeError) as raised:
        export_small(source, out, recipe, **options)
    assert sorted(out.parent.rglob("*")) == before
    return str(raised.value)


def test_a_missing_tokenizer(no_work: None, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    (source / "tekken.json").unlink()
    assert refusal(source, tmp_path / "out").startswith(f"{source} has no tekken.json; copy it there")


def test_a_tokenizer_of_another_model(no_work: None, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    alter_json(source / "tekken.json", lambda data: data["config"].update(default_vocab_size=1500))
    assert "has a vocabulary of 1500 tokens, but the model has" in refusal(source, tmp_path / "out")


def test_an_architecture_that_is_not_supported(no_work: None, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    alter_json(source / "params.json", lambda data: data["vision_encoder"].update(image_size=1000))
    assert "the image size 1000 is not a multiple" in refusal(source, tmp_path / "out")


def test_groups_that_do_not_fit(no_work: None, source: Path, tmp_path: Path) -> None:
    message = refusal(source, tmp_path / "out", Recipe())
    assert message.startswith("language_model.model.layers.0.self_attn.q_proj.weight has 96 inputs")


def test_a_device_that_is_not_there(no_work: None, source: Path, tmp_path: Path) -> None:
    assert refusal(source, tmp_path / "out", device="gpu") == "device is 'gpu'; use auto, cpu, cuda or cuda:N"
    assert refusal(source, tmp_path / "out", threads=0) == "threads is 0; give 1 or more"


def test_a_destination_that_cannot_be(no_work: None, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "is not an exported folder" in refusal(source, tmp_path / "out", force=True)
    assert "or inside it; choose another folder" in refusal(source, source / "out")


def test_a_disk_that_is_too_small(
    no_work: None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10**6))
    message = refusal(source, tmp_path / "out")
    assert message == (
        f"the export takes about {size(estimate_bytes(CONFIG, RECIPE))} and the disk of {tmp_path} has 1.0 "
        "MB free; free some space, or choose another folder"
    )


def test_too_few_samples(source: Path, tmp_path: Path) -> None:
    assert refusal(source, tmp_path / "out", samples=3).startswith("3 calibration samples were given")


def test_errors_have_their_kind(source: Path, tmp_path: Path) -> None:
    for error, options in ((UsageError, {"threads": 0}), (UsageError, {"device": "tpu"})):
        with pytest.raises(error):
            export_small(source, tmp_path / "out", **options)
    with pytest.raises(CheckpointError):
        export_small(tmp_path / "nothing", tmp_path / "out")


def test_every_layer_has_a_shard_of_its_own(quick: None, tmp_path: Path) -> None:
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, n_layers=3))
    write_synthetic(tmp_path / "source", config)
    out = export_small(tmp_path / "source", tmp_path / "out")
    weight_map = open_artifact(out).weight_map
    files = [weight_map[f"language_model.model.layers.{i}.mlp.up_proj.scales"] for i in range(3)]
    assert files == [f"model-0000{i}-of-00005.safetensors" for i in (3, 4, 5)]
    assert len(pixedge.load(out, device="cpu").engine.decoder.layers) == 3


def test_too_little_memory_is_refused_unless_forced(
    quick: None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pixedge_export.estimate.free_ram", lambda: 10**6)
    with pytest.raises(
        CapacityError, match=r"of memory \(1\.0 MB free\).*, so the memory will not do; free some"
    ):
        export_small(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    events: list[Event] = []
    export_small(source, tmp_path / "out", force=True, report=events.append)
    assert any(event.phase == "plan" and "will not do" in event.detail for event in events)
