"""GPTQ folders of other tools: every form that they come in computes as its dequantised weights do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

import pixedge
from pixedge import config
from pixedge.artifact import INDEX, MANIFEST, open_artifact
from pixedge.commands.import_ import import_
from pixedge.engine import Engine
from pixedge.errors import CheckpointError, ExportError, PixedgeError, UsageError
from pixedge.linear import Int4Linear, Int8Linear
from pixedge.verify import verify_artifact
from pixedge_export.events import Event
from pixedge_export.gptq_folder import open_gptq_folder
from pixedge_export.importer import import_folder
from pixedge_export.known_picture import known_conversation
from tests.gptq_folders import CONFIG, Variant, write_gptq_folder
from tests.random_models import CPU, Tensors, TorchVision, build_decoder, build_encoder
from tests.small_exports import TEKKEN, alter_json

VARIANTS = {
    "asymmetric": Variant(group_size=32, act_order=False),
    "activation order": Variant(group_size=64, modules=True),
    "gptq_v2": Variant(group_size=128, checkpoint_format="gptq_v2", scale_dtype=torch.bfloat16),
    "symmetric, activation order": Variant(group_size=32, symmetric=True),
    "per channel": Variant(group_size=-1, act_order=False, checkpoint_format="gptq_v2", with_g_idx=False),
    "AutoGPTQ": Variant(group_size=128, symmetric=True, act_order=False, legacy=True),
}
LAYER = "language_model.model.layers.1."
UP = f"{LAYER}mlp.up_proj"


def dense_engine(tensors: Tensors) -> Engine:
    """Join the weights that a folder stands for; the head is rounded to 8 bits, as the runtime does it."""
    decoder = build_decoder(CONFIG, tensors)
    head = Int8Linear(decoder.lm_head.weight.bfloat16(), torch.float32, CPU)
    decoder.lm_head.weight.copy_(head.weight.float() * head.scales.float()[:, None])
    vision = TorchVision(build_encoder(CONFIG, tensors))
    return Engine(CONFIG, decoder, vision, CPU, torch.float32, frozenset())


@pytest.mark.parametrize("name", VARIANTS)
def test_an_imported_folder_computes_as_its_weights_do(name: str, tmp_path: Path) -> None:
    """Scores of a conversation with a picture, against a dense model of the dequantised weights.

    A wrong zero point or order moves them by whole nats, which the last lines show for these weights.
    """
    variant = VARIANTS[name]
    meant = write_gptq_folder(tmp_path / "source", variant)
    out = import_folder(tmp_path / "source", tmp_path / "out", threads=1, device="cpu")

    exact = pixedge.load(out, device="cpu", dtype="float32")
    prompt = exact.tokenizer.encode(known_conversation())
    expected = dense_engine(meant).score(prompt)
    torch.testing.assert_close(exact.engine.score(prompt), expected, atol=2e-3, rtol=0)
    rounded = pixedge.load(out, device="cpu").engine
    assert float((rounded.score(prompt) - expected).abs().mean()) < 0.1
    assert all(check.ok for check in verify_artifact(out, device="cpu"))

    linears = [module for module in exact.engine.decoder.modules() if isinstance(module, Int4Linear)]
    several = [linear for linear in linears if linear.in_features > variant.group_size > 0]
    assert {linear.order is not None for linear in several} == ({variant.act_order} if several else set())
    assert {linear.scales.ndim for linear in linears} == {2 if variant.symmetric else 3}

    for linear in linears:
        if linear.order is not None:
            linear.order = torch.arange(linear.in_features)
        elif linear.scales.ndim == 3:
            linear.scales[..., 1] = 8  # the zero points
    wrong = float((exact.engine.score(prompt) - expected).abs().mean())
    assert wrong > 0.2 or (variant.symmetric and not variant.act_order)


def test_packed_tensors_stay_as_they_came(tmp_path: Path) -> None:
    write_gptq_folder(tmp_path / "source", Variant(scale_dtype=torch.bfloat16, modules=True))
    came = load_file(tmp_path / "source" / "model.safetensors")
    out = import_folder(tmp_path / "source", tmp_path / "out", threads=1, device="cpu")
    artifact = open_artifact(out)
    assert artifact.config == CONFIG and (artifact.group_size, artifact.zero_offset) == (32, 1)
    for key in ("qweight", "qzeros", "scales", "g_idx"):
        stored = artifact.tensors(f"{UP}.{key}")[""]
        source = came[f"model.language_model.layers.1.mlp.up_proj.{key}"]
        assert stored.dtype == source.dtype and torch.equal(stored, source)
    index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    assert all(name.split(".")[0] in ("language_model", "vision_tower", "multi_modal_projector")
               for name in index["weight_map"])  # fmt: skip


def test_the_manifest_and_config_keep_what_the_source_said(tmp_path: Path) -> None:
    write_gptq_folder(tmp_path / "source", Variant(group_size=64))
    (tmp_path / "source" / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")
    alter_json(tmp_path / "source" / "preprocessor_config.json", lambda data: data.update(mine=1))
    steps: list[tuple[str, int, int]] = []
    out = import_folder(
        tmp_path / "source",
        tmp_path / "out",
        threads=1,
        device="cpu",
        report=lambda event: steps.append((event.phase, event.done, event.total)),
    )
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    recipe = manifest["recipe"]
    assert (recipe["method"], recipe["group_size"], recipe["checkpoint_format"]) == ("imported", 64, "gptq")
    assert recipe["source_says"]["meta"] == {"quantizer": ["gptqmodel:7.7.0"]}
    assert manifest["source"]["name"] == "source" and len(manifest["source"]["sha256"]) == 64
    said = json.loads((out / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (said["desc_act"], said["sym"], said["damp_percent"]) == (True, False, 0.05)
    assert said["modules_in_block_to_quantize"][0][0] == "self_attn.q_proj"
    assert (out / "generation_config.json").is_file()
    assert json.loads((out / "preprocessor_config.json").read_text(encoding="utf-8"))["mine"] == 1
    names = {path.name for path in out.iterdir()}
    assert {"tekken.json", "params.json", "vision_encoder.onnx", "chat_template.jinja"} <= names
    assert list(dict.fromkeys(phase for phase, _, _ in steps)) == ["vision", "layers", "source", "hash"]
    assert ("layers", 2, 2) in steps


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptq") / "source"
    write_gptq_folder(folder)
    return folder


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A folder to damage: links to the files, so that each test replaces only what it changes."""
    folder = tmp_path / "source"
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def alter_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def said(folder: Path, **values: object) -> None:
    alter_json(folder / "config.json", lambda data: data["quantization_config"].update(values))


def nothing_is_left(folder: Path) -> bool:
    return [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_no_tekken(source: Path, tmp_path: Path) -> None:
    (source / "tekken.json").unlink()
    with pytest.raises(CheckpointError) as raised:
        import_folder(source, tmp_path / "out")
    assert str(raised.value) == (
        f"{source} has no tekken.json, from which pixedge builds prompts; give it with --tekken FILE, from "
        "Mistral's own repository of the original (mistralai/Pixtral-12B-2409 for Pixtral-12B)"
    )
    with pytest.raises(UsageError, match=r"--tekken names .*none, which is no file"):
        import_folder(source, tmp_path / "out", tekken=tmp_path / "none")
    assert nothing_is_left(source)


def test_another_models_tekken(source: Path, tmp_path: Path) -> None:
    """Both have as many tokens; only their ids tell that they do not belong together."""
    (source / "tekken.json").unlink()

    def swap(data: dict) -> None:
        vocab = data["model"]["vocab"]
        first, second = list(vocab)[-2:]
        vocab[first], vocab[second] = vocab[second], vocab[first]

    alter_json(source / "tokenizer.json", swap)
    with pytest.raises(
        CheckpointError, match=r"is another model's: it gives 2 tokens, such as .*, other ids"
    ):
        import_folder(source, tmp_path / "out", tekken=TEKKEN)
    assert nothing_is_left(source)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (f"{UP}.scales", lambda t: t.fill_(torch.nan), "up_proj: a scale is negative or not finite"),
        (f"{UP}.scales", lambda t: t.neg_(), "up_proj: a scale is negative or not finite"),
        (f"{UP}.g_idx", lambda t: t.fill_(0), "up_proj: g_idx does not put 32 inputs into each of 4 groups"),
        (f"{LAYER}input_layernorm.weight", lambda t: t.fill_(torch.inf), "contains NaN or infinity"),
        ("vision_tower.ln_pre.weight", lambda t: t.fill_(torch.nan), "contains NaN or infinity"),
    ],
)
def test_damaged_values_leave_nothing_behind(
    source: Path, tmp_path: Path, name: str, change: Callable[[Tensor], object], sentence: str
) -> None:
    alter_tensors(source, lambda tensors: change(tensors[name]))
    with pytest.raises(PixedgeError, match=sentence) as raised:
        import_folder(source, tmp_path / "out", threads=1, device="cpu")
    assert "\n" not in str(raised.value) and nothing_is_left(source)


def test_an_artifact_is_replaced_only_by_force(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text("{}", encoding="utf-8")
    with pytest.raises(ExportError, match="already holds an export; add --force"):
        import_folder(source, out)
    result = CliRunner().invoke(
        import_, [str(source), str(out), "--force", "--quiet", "--device", "cpu", "--threads", "1"],
        env={"XDG_STATE_HOME": str(tmp_path / "state"), "LOCALAPPDATA": str(tmp_path / "state")},
    )  # fmt: skip
    assert result.output == f"{out}\n" and result.exit_code == 0
    assert open_artifact(out).config == CONFIG


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"quant_method": "awq"}, "its weights were quantised with 'awq', and pixedge runs only GPTQ"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes', and pixedge runs only GPTQ"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors', and pixedge runs only GPTQ"),
        ({"bits": 8}, "its weights have 8 bits, and pixedge runs 4-bit ones"),
        ({"checkpoint_format": "marlin"}, "packed as 'marlin', and pixedge reads gptq and gptq_v2"),
        ({"is_marlin_format": True}, "packed as 'marlin'"),
        ({"pack_dtype": "int64"}, "packed into 'int64', and pixedge reads int32"),
        ({"rotation": "hadamard"}, "rotated \\('hadamard'\\)"),
        ({"lm_head": True}, "its output head is quantised"),
        ({"group_size": None}, "group_size is None, which is neither -1 nor a number of inputs"),
        ({"group_size": 48}, "the 128 inputs of .*q_proj do not divide into groups of 48"),
        ({"group_size": 64}, r"qzeros has the shape \[4, 16\], but config.json asks for \[2, 16\]"),
    ],
)
def test_what_is_said_and_cannot_be_run(source: Path, values: dict, sentence: str) -> None:
    said(source, **values)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        open_gptq_folder(source)
    assert "\n" not in str(raised.value) and str(source) in str(raised.value)


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def pack_somewhere(name: str) -> Callable[[dict[str, Tensor]], object]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop(f"{name}.weight")
        tensors[f"{name}.qweight"] = torch.zeros(4, 8, dtype=torch.int32)

    return change


def make_dense(tensors: dict[str, Tensor]) -> None:
    for key in ("qweight", "qzeros", "scales", "g_idx"):
        tensors.pop(f"{UP}.{key}")
    tensors[f"{UP}.weight"] = torch.zeros(256, 128, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            pack_somewhere("vision_tower.transformer.layers.0.feed_forward.up_proj"),
            "up_proj is quantised, and",
        ),
        (pack_somewhere("multi_modal_projector.linear_1"), "linear_1 is quantised, and"),
        (pack_somewhere("language_model.lm_head"), "lm_head is quantised, and"),
        (make_dense, f"{UP} is not quantised, and pixedge runs all seven linears"),
        (lambda t: t.pop(f"{UP}.scales"), f"lacks {UP}.scales; fetch or quantise it again"),
        (lambda t: t.pop(f"{UP}.g_idx"), f"lacks {UP}.g_idx"),
        (lambda t: rename(t, f"{LAYER}input_layernorm.weight", "x.weight"), "lacks .*input_layernorm"),
        (lambda t: t.update(more=torch.zeros(1)), "also holds more, for which config.json has no place"),
        (lambda t: t.update({f"{UP}.bias": torch.ones(256)}), f"{UP}.bias is not zero"),
        (lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"].float()}), "scales is stored as F32"),
        (lambda t: t.update({f"{UP}.qweight": t[f"{UP}.qweight"][:8]}), r"qweight has the shape \[8, 256\]"),
    ],
)
def test_tensors_that_cannot_be_run(
    source: Path, change: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    alter_tensors(source, change)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        open_gptq_folder(source)
    assert "\n" not in str(raised.value) and str(source) in str(raised.value)


def test_a_made_up_rotation_at_the_top_is_left_out(source: Path, tmp_path: Path) -> None:
    """GPTQModel 7.7 writes theta 10000 there whatever the text's own is; every real folder was refused."""

    def change(data: dict) -> None:
        data["text_config"]["rope_parameters"]["rope_theta"] = 1e9
        data["rope_parameters"] = {"rope_theta": 10_000.0, "rope_type": "default"}

    alter_json(source / "config.json", change)
    out = import_folder(source, tmp_path / "out", threads=1, device="cpu")
    assert open_artifact(out).config.decoder.rope_theta == 1e9
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert "rope_parameters" not in written
    assert written["text_config"]["rope_parameters"]["rope_theta"] == 1e9


def test_the_context_that_counts_is_written_and_told_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of Pixtral-12B's geometry whose file states eight times its context; small weights stand in."""
    monkeypatch.setattr(config, "PIXTRAL_12B_DECODER", CONFIG.decoder)
    stated = 8 * CONFIG.decoder.context
    alter_json(
        source / "config.json", lambda data: data["text_config"].update(max_position_embeddings=stated)
    )
    told: list[str] = []

    def report(event: Event) -> None:
        if event.phase == "context":
            told.append(event.detail)

    out = import_folder(source, tmp_path / "out", threads=1, device="cpu", report=report)
    assert len(told) == 1 and "states a context of 4,800 tokens" in told[0] and "is 600:" in told[0]
    for file in ("params.json", "config.json"):
        written = json.loads((out / file).read_text(encoding="utf-8"))
        assert written.get("text_config", written)["max_position_embeddings"] == 600


def test_no_gptq_folder(source: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(PixedgeError) as raised:
            open_gptq_folder(source)
        return str(raised.value)

    with pytest.raises(CheckpointError, match="none is not a folder; give the folder that GPTQModel"):
        open_gptq_folder(tmp_path / "none")
    alter_json(source / "config.json", lambda data: data.update(model_type="llama"))
    assert 'this looks like Llama (text only) (model_type "llama")' in refusal()
    alter_json(source / "config.json", lambda data: data.update(model_type="llava"))
    alter_json(source / "config.json", lambda data: data.pop("quantization_config"))
    assert refusal().endswith(f"so its weights are not quantised; make 4-bit ones: pixedge export {source}")
    alter_json(
        source / "config.json", lambda data: data.update(quantization_config={"bits": 4, "group_size": 32})
    )
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "has no weights in safetensors files" in refusal()
    (source / "config.json").unlink()
    assert refusal() == f"{source} has no config.json; give the folder that GPTQModel or AutoGPTQ wrote"
