"""Folders from strangers: nothing in one leads out of it, hangs, fills the memory or gives a traceback.

Each case is run by the real command; among the slow tests in processes of their own, with limits on memory
and on processor time.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from pixedge.artifact import INDEX, MANIFEST, open_artifact
from pixedge.cli import main
from pixedge.errors import ArtifactError
from pixedge.loading import load
from pixedge.plain_name import is_plain_name
from pixedge.self_digest import UNSIGNED, is_as_signed, sign
from pixedge.verify import check_encoder, check_files
from pixedge.vision import CPU_GRAPH, CUDA_GRAPH, FUSED_GRAPH
from pixedge.vision_graph_check import WIRINGS, check_graph, read_graph
from tests.exported_demo import ROOT, environment
from tests.small_exports import CONFIG, alter_json, hash_again, small_export

SHARD = "model-00002-of-00004.safetensors"
MEMORY = 6 << 30  # addresses, of which torch alone reserves much
SECONDS = 60


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes((original / SHARD).read_bytes())
    return shutil.copytree(original, tmp_path / "folder")


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def run(folder: Path, *command: str) -> str:
    """Run a command that must fail with one sentence, and return it."""
    done = subprocess.run(
        [sys.executable, "-m", "pixedge", *command],
        cwd=ROOT,
        env=environment(folder.parent),
        capture_output=True,
        text=True,
        preexec_fn=limits,
        timeout=300,
    )
    words = done.stderr + done.stdout
    assert done.returncode == 1 and "Traceback" not in words, (done.returncode, words[-2000:])
    assert max(map(len, words.splitlines())) < 800
    return words


def name_files(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: alter_json(folder / MANIFEST, change)


def move_shard(to: str) -> Callable[[Path], None]:
    """Let manifest and index agree that a shard has another name."""

    def damage(folder: Path) -> None:
        alter_json(folder / MANIFEST, lambda data: data["files"].update({to: data["files"].pop(SHARD)}))
        alter_json(
            folder / INDEX,
            lambda data: data.update(
                weight_map={k: to if v == SHARD else v for k, v in data["weight_map"].items()}
            ),
        )
        alter_json(
            folder / MANIFEST,
            lambda data: data["files"][INDEX].update(bytes=(folder / INDEX).stat().st_size),
        )

    return damage


def size(value: float) -> Callable[[Path], None]:
    return name_files(lambda data: data["files"][SHARD].update(bytes=value))


def link(name: str, to: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return damage


def write(name: str, text: str | bytes, *, listed: bool = True) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if listed:
            hash_again(folder)

    return damage


def tekken(**config: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        alter_json(folder / "tekken.json", lambda data: data["config"].update(config))
        hash_again(folder)

    return damage


def params(**fields: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        alter_json(folder / "params.json", lambda data: data.update(fields))
        hash_again(folder)

    return damage


def pipe(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in (CPU_GRAPH, CUDA_GRAPH):
            model = onnx.load(folder / name, load_external_data=False)
            change(model)
            (folder / name).write_bytes(model.SerializeToString())
        (folder / FUSED_GRAPH).unlink()  # or CPUs with its kernels would not open the others
        alter_json(folder / MANIFEST, lambda data: data["files"].pop(FUSED_GRAPH))
        hash_again(folder)

    return damage


def loop_without_end(model: onnx.ModelProto) -> None:
    """Loop while true, 2^62 times at most, around the pixels."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    many = helper.make_tensor("many", TensorProto.INT64, [], [1 << 62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    model.graph.initializer.extend([many, yes])
    node = helper.make_node("Loop", ["many", "yes", "pixels"], ["pixels.looped"], body=body)
    model.graph.node.insert(0, node)


def another_shape(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    assert last.output[0] == "embeddings"
    last.output[0] = "flat"
    model.graph.node.append(helper.make_node("Transpose", ["flat"], ["embeddings"], perm=[1, 0]))


def outer_product(model: onnx.ModelProto) -> None:
    """Only operators that exports have, but one reads what it must not: patches times patches."""
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    node.input[1] = node.input[0]


def endless_range(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "zero":
            tensor.raw_data = (-(1 << 40)).to_bytes(8, "little", signed=True)


def weights_outside(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside"


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    opset = helper.make_opsetid("", 23)
    model.functions.append(helper.make_function("mine", "Evil", ["a"], ["b"], [node], [opset]))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, None))


DEEP = "[" * 200_000
CASES = {
    "a file above": (move_shard("../outside"), "is not a file's name"),
    "an absolute file": (move_shard("/etc/passwd"), "is not a file's name"),
    "a file below": (move_shard("sub/x"), "is not a file's name"),
    "a Windows path": (move_shard("..\\outside"), "is not a file's name"),
    "half a surrogate": (move_shard("\ud800"), "is not a file's name"),
    "a name of 5,000 characters": (move_shard("a" * 5000), "is not a file's name"),
    "a name with a zero": (move_shard("a\0b"), "is not a file's name"),
    "an empty name": (move_shard(""), "is not a file's name"),
    "a name with control characters": (move_shard("\x1b[2Ja"), "is missing"),
    "an infinite size": (size(1e999), "is damaged"),
    "a size of 4,000 digits": (size(10**4000), "is not a whole number below 2**63"),
    "an infinite group": (
        name_files(lambda data: data["recipe"].update(group_size=1e999)),
        "is damaged",
    ),
    "a manifest of 2 MB": (
        name_files(lambda data: data.update(more="x" * (2 << 20))),
        "the limit is 1,048,576",
    ),
    "a link out": (link(SHARD, "../outside"), "is a link out of the folder"),
    "an absolute link out": (link("params.json", "/etc/hostname"), "is a link out of the folder"),
    "a manifest that is a link": (link(MANIFEST, "/etc/hostname"), "is a link out of the folder"),
    "a link in a circle": (link(SHARD, SHARD), ""),
    "an unlisted tokenizer": (
        name_files(lambda data: data["files"].pop("tekken.json")),
        "does not list tekken.json",
    ),
    "a named pipe for weights": (pipe(SHARD), "is missing"),
    "a named pipe for the index": (pipe(INDEX), "is missing"),
    "a deep manifest": (write(MANIFEST, DEEP, listed=False), "not valid JSON"),
    "a deep index": (write(INDEX, DEEP), "not valid JSON"),
    "deep parameters": (write("params.json", DEEP), "not valid JSON"),
    "a deep tokenizer": (write("tekken.json", DEEP), "not valid JSON"),
    "a number of 5,000 digits": (write("params.json", '{"dim": ' + "9" * 5000 + "}"), "not valid JSON"),
    "a billion layers": (params(n_layers=10**9), "takes up to 1,024"),
    "a vocabulary of a billion": (params(vocab_size=10**9), "takes up to 16,777,216"),
    "a billion special tokens": (tekken(default_num_special_tokens=10**9), "expected up to 16,384"),
    "a billion tokens": (tekken(default_vocab_size=10**9), "expected up to 1,048,576"),
    "less than no special tokens": (tekken(default_num_special_tokens=-(10**9)), "expected up to"),
    "a loop without end": (graph(loop_without_end), "has a graph within a node"),
    "an output of another shape": (graph(another_shape), "is joined as no graph"),
    "a product of activations": (graph(outer_product), "is joined as no graph"),
    "a range of 2^40": (graph(endless_range), "has a large number"),
    "weights outside": (graph(weights_outside), "has weights in '../outside'"),
    "a second input": (graph(second_input), "has an input or output ['more']"),
    "a second output": (graph(second_output), "has an input or output ['pixels']"),
    "a function": (graph(function), "has a function"),
}


def here(folder: Path, *command: str) -> str:
    """Do what ``run`` does, in this process."""
    result = CliRunner().invoke(main, list(command))
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.mark.parametrize("ask", [here, pytest.param(run, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_a_sentence(folder: Path, name: str, ask: Callable[..., str]) -> None:
    damage, words = CASES[name]
    damage(folder)
    said = ask(folder, "run", "--model", str(folder), "--device", "cpu", "--max-tokens", "1", "Hi")
    assert words in said
    assert words in ask(folder, "verify", str(folder), "--device", "cpu")
    assert "\x1b" not in said


FIGURES = [[10**400], [[1.0], [2.0]], [True], ["1"], "1", {}, [None], [1e999] * 3]


@pytest.mark.parametrize("figures", FIGURES, ids=lambda figures: repr(figures)[:20])
def test_figures_of_a_known_picture_that_are_none_are_a_sentence(folder: Path, figures: object) -> None:
    """Seen: OverflowError for a number of 400 digits, RuntimeError for a list of lists."""
    alter_json(
        folder / MANIFEST, lambda data: data["known_picture"].update(logprobs=figures, embeddings=figures)
    )
    assert "export again" in here(folder, "verify", str(folder), "--device", "cpu")
    check = check_encoder(open_artifact(folder), load(folder, device="cpu"))
    assert figures == FIGURES[-1] or (not check.ok and "export again" in check.detail)


def test_weights_that_no_manifest_lists_are_found(folder: Path) -> None:
    """A graph could read them, and nobody would have compared their hash."""
    (folder / "extra.safetensors").write_bytes(b"")
    found = check_files(open_artifact(folder))
    assert not found.ok and "extra.safetensors" in found.detail


def test_links_within_a_folder_are_followed(folder: Path) -> None:
    """Some tools that fetch folders store one copy of equal files."""
    (folder / SHARD).rename(folder / "blob")
    (folder / SHARD).symlink_to("blob")
    check = subprocess.run(
        [sys.executable, "-m", "pixedge", "verify", str(folder), "--device", "cpu"],
        cwd=ROOT,
        env=environment(folder.parent),
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stderr


def test_the_exporter_s_graphs_are_the_known_ones(original: Path) -> None:
    """Where a graph's form changes on purpose, its wiring joins the list: folders of before stay readable."""
    found = {read_graph(original / name).wiring() for name in (CUDA_GRAPH, CPU_GRAPH, FUSED_GRAPH)}
    assert found == WIRINGS
    with pytest.raises(ArtifactError, match="is joined as no graph"):
        check_graph(original / CPU_GRAPH, CONFIG.vision.n_layers + 1)


@pytest.mark.parametrize("name", [CUDA_GRAPH, CPU_GRAPH, FUSED_GRAPH])
def test_broken_graphs_are_read_to_a_sentence(original: Path, tmp_path: Path, name: str) -> None:
    """Every prefix, and bytes at random places: a graph that is taken is wired as before."""
    clean, file = (original / name).read_bytes(), tmp_path / name
    shutil.copy(original / "model-00001-of-00004.safetensors", tmp_path)
    for place in range(0, len(clean), 41):
        for data in (clean[:place], clean[:place] + b"\xff" + clean[place + 1 :]):
            file.write_bytes(data)
            try:
                check_graph(file, CONFIG.vision.n_layers)
            except ArtifactError as error:
                assert "\n" not in str(error) and len(str(error)) < 400


def test_plain_names() -> None:
    assert all(map(is_plain_name, ["a", "model-00001-of-00002.safetensors", "größe.bin", "..a", "a" * 255]))
    wrong = ["\udfff", "", ".", "..", "a/b", "/a", "a\\b", "c:a", "a\0", "a" * 256, "ä" * 128, 3, None]
    assert not any(map(is_plain_name, wrong))


def test_a_digest_of_itself() -> None:
    text = json.dumps({"a": 'a "digest": "x"', "digest": UNSIGNED}).encode()
    signed = sign(text)
    assert is_as_signed(signed) and not is_as_signed(text) and not is_as_signed(b"{}")
    for place in range(len(signed)):
        changed = bytearray(signed)
        changed[place] ^= 1
        assert not is_as_signed(bytes(changed))
