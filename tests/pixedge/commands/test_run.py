"""`pixedge run` on a stand-in for the model: arguments, pictures, output, interruption."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

import pixedge
from pixedge import fetch
from pixedge.cli import main
from pixedge.errors import ArtifactError, CapacityError, ImageError
from pixedge.last_export import write_last_export
from pixedge.model import Answer, Timings
from pixedge.sampling import SampledToken

ROOT = Path(__file__).resolve().parents[3]


def answer(text="It is a red square.", **changes):
    values = {
        "text": text,
        "finish_reason": "stop",
        "prompt_tokens": 30,
        "image_tokens": 16,
        "cached_tokens": 0,
        "completion_tokens": 3,
        "tokens": (SampledToken(65, -0.5, ((65, -0.5), (66, -1.5))), SampledToken(200, -0.25)),
        "seed": 7,
        "timings": Timings(image_decode=0.5, encode=0.25, prefill=0.125, first_token=1.0, decode=0.5),
    }
    return Answer(**(values | changes))


class StandIn:
    """Takes the place of pixedge.load and of the model that it gives."""

    load_seconds = 2.0
    engine = SimpleNamespace(kv_bits=8, cache=SimpleNamespace(tokens=4096))

    def __init__(self):
        self.loads, self.calls = [], []
        self.pieces, self.answer, self.error = ["It is ", "a red ", "square."], answer(), None
        self.tokenizer = SimpleNamespace(token_bytes=lambda token: bytes([token]))

    def load(self, path, **options):
        self.loads.append((path, options))
        options["progress"]("weights", 1, 2)
        options["progress"]("vision", 1, 1)
        return self

    def stream(self, messages, params, *, max_image_size=None, limits=None, on_stage=None):
        self.calls.append(SimpleNamespace(messages=messages, params=params, max_image_size=max_image_size))
        return self

    def __iter__(self):
        yield from self.pieces
        if self.error is not None:
            raise self.error


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))
    monkeypatch.delenv("PIXEDGE_MODEL", raising=False)
    stand_in = StandIn()
    # not setattr, which would first import the real one
    monkeypatch.setitem(vars(pixedge), "load", stand_in.load)
    return stand_in


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "exported"
    path.mkdir()
    return path


@pytest.fixture
def ask(model, folder):
    def invoke(*arguments, input=None, with_model=True):
        named = ["--model", str(folder)] if with_model else []
        return CliRunner().invoke(main, ["run", *named, *map(str, arguments)], input=input)

    return invoke


@pytest.fixture
def picture(tmp_path):
    """Make a picture file of one colour."""

    def make(name="red.png", colour=(255, 0, 0)):
        file = tmp_path / name
        Image.new("RGB", (32, 16), colour).save(file)
        return file

    return make


def colours(call):
    return [
        part["image"].getpixel((0, 0)) for part in call.messages[-1]["content"] if part["type"] == "image"
    ]


# --- the answer --------------------------------------------------------------------------------------------


def test_the_answer_goes_to_stdout_and_figures_to_stderr(ask, picture):
    result = ask("--image", picture(), "What is this?")
    assert result.exit_code == 0
    assert result.stdout == "It is a red square.\n"
    assert result.stderr == (
        "prompt 30 tokens (16 from 1 picture), answer 3 tokens at 4.0 tokens/s,"
        " first token after 1.00 s, load 2.00 s\n"
    )


def test_figures_of_a_single_token_without_pictures(ask, model):
    model.answer = answer(completion_tokens=1, image_tokens=0)
    assert ask("hello").stderr.startswith("prompt 30 tokens, answer 1 tokens, first token")


def test_quiet_leaves_only_the_answer(ask):
    result = ask("--quiet", "hello")
    assert (result.stdout, result.stderr) == ("It is a red square.\n", "")


def test_pictures_come_first_in_the_order_given_then_the_text(ask, model, picture):
    red, blue = picture("red.png"), picture("blue.png", (0, 0, 255))
    assert ask("--image", blue, "--image", red, "--image", blue, "Which?").exit_code == 0
    (call,) = model.calls
    assert [message["role"] for message in call.messages] == ["user"]
    content = call.messages[0]["content"]
    assert [part["type"] for part in content] == ["image", "image", "image", "text"]
    assert content[-1] == {"type": "text", "text": "Which?"}
    assert colours(call) == [(0, 0, 255), (255, 0, 0), (0, 0, 255)]


def test_a_system_prompt_comes_before(ask, model):
    ask("--system", "Answer in French.", "hello")
    assert model.calls[0].messages == [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]


def test_every_option_arrives(ask, model, folder):
    sampling = (
        *("--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "40", "--min-p", "0.05"),
        *("--repetition-penalty", "1.1", "--presence-penalty", "0.2", "--frequency-penalty", "-0.3"),
        *("--seed", "11", "--stop", "END", "--stop", "."),
    )
    placing = ("--device", "CUDA:1", "--vision-device", "cpu", "--dtype", "float32", "--threads", "3")
    cache = ("--kv-cache", "16bit", "--context", "2048", "--vram-limit", "24GiB")
    assert ask(*sampling, *placing, *cache, "--max-image-size", "512", "hello").exit_code == 0
    path, options = model.loads[0]
    options.pop("progress")
    assert path == folder
    assert options == {
        "device": "cuda:1",
        "vision_device": "cpu",
        "dtype": "float32",
        "threads": 3,
        "kv_cache": "16bit",
        "context": 2048,
        "max_image_size": 512,
        "vram_limit": 24 << 30,
        "max_requests": 1,
    }
    call = model.calls[0]
    assert call.max_image_size == 512
    assert call.params == pixedge.SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        seed=11,
        stop=("END", "."),
    )


def test_defaults_are_the_library_s(ask, model):
    ask("hello")
    assert model.calls[0].params == pixedge.SamplingParams()
    assert model.calls[0].max_image_size is None
    assert {**model.loads[0][1], "progress": None} == {
        "device": "auto",
        "vision_device": "auto",
        "dtype": "auto",
        "threads": None,
        "kv_cache": "auto",
        "context": None,
        "max_image_size": None,
        "vram_limit": None,
        "max_requests": 1,  # one answer at a time
        "progress": None,
    }


@pytest.mark.parametrize(
    ("completion_tokens", "expected"),
    [
        (8, "cut after 8 tokens; a greater --max-tokens"),
        (5, "cut after 5 tokens because the model's context is full"),
    ],
)
def test_a_cut_answer_is_pointed_out_even_when_quiet(ask, model, completion_tokens, expected):
    model.answer = answer(finish_reason="length", completion_tokens=completion_tokens)
    result = ask("--quiet", "--max-tokens", "8", "hello")
    assert result.exit_code == 0
    assert expected in result.stderr


def test_what_the_answer_must_match_arrives(ask, model, tmp_path):
    schema = tmp_path / "s.json"
    schema.write_text('\ufeff{"type": "string"}', encoding="utf-8")
    (tmp_path / "g.lark").write_text('start: "a"')
    for option, value, kind in [
        ("--schema", schema, "schema"),
        ("--regex", "a+", "regex"),
        ("--grammar", tmp_path / "g.lark", "lark"),
    ]:
        assert ask(option, value, "q").exit_code == 0
        assert model.calls[-1].params.answer_format.kind == kind


def test_a_cut_answer_does_not_match_and_says_so(ask, model, tmp_path):
    model.answer = answer(finish_reason="length", completion_tokens=3)
    result = ask("--regex", "a+", "--max-tokens", 3, "q")
    assert "cut after 3 tokens; it does not match the regular expression" in result.stderr


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--schema", "none.json"], "--schema none.json cannot be read"),
        (["--schema", "bad.json"], "the schema is not JSON at line 1"),
        (["--schema", "latin.json"], "--schema latin.json is not UTF-8 at byte 0"),
        (["--schema", "not.json"], "the keyword 'not' at #/items"),
        (["--regex", "("], "regular expression cannot be used: unclosed group"),
        (["--grammar", "bad.json"], "the grammar cannot be used"),
        (["--regex", "a", "--schema", "not.json"], "--schema and --regex are given"),
    ],
)
def test_a_format_that_cannot_be_used_is_found_before_anything_is_loaded(
    ask, model, tmp_path, monkeypatch, arguments, named
):
    monkeypatch.chdir(tmp_path)
    for name, content in [
        ("bad.json", b"{"),
        ("latin.json", b"\xff"),
        ("not.json", b'{"items": {"not": {"type": "null"}}}'),
    ]:
        (tmp_path / name).write_bytes(content)
    result = ask(*arguments, "q")
    assert result.exit_code == 2 and named in result.stderr and result.stderr.count("\n") == 1
    assert not model.loads


def test_control_characters_are_kept_in_a_file(ask, model):
    model.pieces = ["a\x1b[31mb\r\n"]
    assert ask("hello").stdout_bytes == b"a\x1b[31mb\r\n\n"


# --- JSON --------------------------------------------------------------------------------------------------


def test_json_is_one_object_with_stable_keys(ask, folder, picture, model):
    model.answer = answer("Grün.\n")
    result = ask("--json", "--image", picture(), "What is this?")
    assert result.exit_code == 0
    assert result.stdout.isascii() and result.stdout.count("\n") == 1
    record = json.loads(result.stdout)
    seconds = record.pop("seconds")
    memory = record.pop("peak_memory_bytes")
    assert record == {
        "text": "Grün.\n",
        "finish_reason": "stop",
        "model": str(folder),
        "prompt_tokens": 30,
        "image_tokens": 16,
        "cached_tokens": 0,
        "completion_tokens": 3,
        "kv_cache": {"bits": 8, "tokens": 4096},
        "seed": 7,
        "tokens_per_second": 4.0,
    }
    assert seconds.pop("image_decode") > 0.5  # the model's own, and decoding the file
    assert seconds.pop("total") > 0
    assert seconds == {"load": 2.0, "encode": 0.25, "prefill": 0.125, "first_token": 1.0, "decode": 0.5}
    assert list(memory) == ["rss", "cuda"]
    assert memory["rss"] > 10_000_000 or sys.platform == "win32"


def test_json_with_logprobs(ask, model):
    result = ask("--json", "--logprobs", "2", "hello")
    assert model.calls[0].params.logprobs == 2
    assert json.loads(result.stdout)["logprobs"] == [
        {
            "id": 65,
            "text": "A",
            "logprob": -0.5,
            "top": [{"id": 65, "text": "A", "logprob": -0.5}, {"id": 66, "text": "B", "logprob": -1.5}],
        },
        {"id": 200, "text": "\ufffd", "logprob": -0.25, "top": []},
    ]


def test_the_page_of_commands_names_every_key(ask, picture):
    record = json.loads(ask("--json", "--logprobs", "1", "--image", picture(), "hello").stdout)
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted([*record, *record["seconds"]])


# --- the question ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piped", "expected"),
    [
        (b"What is this?\n", "What is this?"),
        (b"two\nlines\r\n\r\n", "two\nlines"),
        (b"  kept  ", "  kept  "),
        ("\ufeffGrün?".encode(), "Grün?"),
    ],
)
def test_the_question_is_read_from_a_pipe(ask, model, piped, expected):
    assert ask(input=piped).exit_code == 0
    assert model.calls[0].messages[0]["content"][0]["text"] == expected


def test_an_argument_leaves_the_pipe_alone(ask, model):
    ask("from the argument", input="from the pipe")
    assert model.calls[0].messages[0]["content"][0]["text"] == "from the argument"


def refused(result, expected, model, exit_code=2):
    """Assert that one sentence came, and that nothing was loaded or answered."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert re.fullmatch(rf"pixedge: .*{expected}.*\n", result.stderr), result.stderr
    assert model.loads == []


@pytest.mark.parametrize(
    ("arguments", "piped", "expected"),
    [
        ([], b"", "the question is empty"),
        ([], b" \n", "the question is empty"),
        ([" "], None, "the question is empty"),
        ([], b"ab\xff", "not UTF-8 at byte 2"),
        (["\udcff"], None, "the question is not valid text"),
        (["--system", "", "q"], None, "--system is empty"),
        (["--system", "a\udc80", "q"], None, "--system is not valid text"),
        (["--temperature", "-1", "q"], None, "temperature is -1.0"),
        (["--top-p", "2", "q"], None, "top_p is 2.0"),
        (["--stop", "", "q"], None, "stop contains ''"),
        (["--max-tokens", "0", "q"], None, "max_tokens is 0"),
        (["--max-image-size", "0", "q"], None, "0 is too small"),
        (["--logprobs", "2", "q"], None, "add --json"),
        (["--json", "--logprobs", "99", "q"], None, "logprobs is 99"),
        (["--image", "", "q"], None, "--image is empty"),
        (["--image", "-"], b"bytes", "--image - takes standard input"),
        (["--image", "-", "--image", "-", "q"], b"bytes", "given twice"),
        (["--image", "https://example.com/a.png", "q"], None, "add --allow-url"),
        (["--image", "HTTP://example.com/a.png", "q"], None, "add --allow-url"),
    ],
)
def test_wrong_arguments_are_found_before_anything_is_read(ask, model, arguments, piped, expected):
    # the picture is missing too, but arguments come first
    refused(ask("--image", "missing.png", *arguments, input=piped), expected, model)


class Keyboard(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("stdin", [Keyboard(io.BytesIO(b"typed")), None])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "the question is missing"), (["--image", "-", "q"], "nothing is piped into it")],
)
def test_nothing_is_read_from_a_keyboard(model, folder, monkeypatch, capsys, stdin, arguments, expected):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as exit_:
        main(["run", "--model", str(folder), *arguments])
    assert exit_.value.code == 2
    assert expected in capsys.readouterr().err


# --- pictures ----------------------------------------------------------------------------------------------


def test_a_pattern_stands_for_its_files_in_natural_order(ask, model, picture, tmp_path):
    for number in (10, 2, 1):
        picture(f"page{number}.png", (number, 0, 0))
    last = picture("last.png", (99, 0, 0))
    assert ask("--image", tmp_path / "page*.png", "--image", last, "Which?").exit_code == 0
    assert colours(model.calls[0]) == [(1, 0, 0), (2, 0, 0), (10, 0, 0), (99, 0, 0)]


def test_a_picture_from_standard_input(ask, model, picture):
    red, blue = picture(), picture("blue.png", (0, 0, 255))
    assert ask("--image", red, "--image", "-", "What?", input=blue.read_bytes()).exit_code == 0
    assert colours(model.calls[0]) == [(255, 0, 0), (0, 0, 255)]


def test_a_picture_from_the_network(ask, model, picture, monkeypatch):
    body = picture().read_bytes()
    asked = []
    monkeypatch.setattr(fetch, "fetch_image", lambda url, limits: asked.append(url) or body)
    assert ask("--allow-url", "--image", "https://example.com/a.png?size=*", "What?").exit_code == 0
    assert asked == ["https://example.com/a.png?size=*"]
    assert colours(model.calls[0]) == [(255, 0, 0)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.png", None, r"missing\.png"),
        ("empty.png", b"", r"empty\.png is empty"),
        ("text.png", b"hello, I am text", r"text\.png is not a picture"),
        ("none*.png", None, r"none\*\.png matches no file"),
        (".", None, "."),
    ],
)
def test_a_bad_picture_is_found_before_the_model_is_loaded(
    ask, model, picture, tmp_path, name, content, expected
):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    refused(ask("--image", picture(), "--image", file, "What?"), expected, model, exit_code=1)


def test_a_truncated_picture_is_not_answered(ask, model, picture):
    file = picture()
    file.write_bytes(file.read_bytes()[:-30])
    refused(ask("--image", file, "What?"), r"red\.png is truncated", model, exit_code=1)


def test_bad_bytes_on_standard_input_are_named_so(ask, model):
    refused(
        ask("--image", "-", "What?", input=b"hello"), "standard input is not a picture", model, exit_code=1
    )


def test_too_many_pictures(ask, model, picture):
    file = picture()
    arguments = [part for _ in range(65) for part in ("--image", file)]
    refused(ask(*arguments, "What?"), "65 pictures were given and the limit is 64", model, exit_code=1)


# --- the model ---------------------------------------------------------------------------------------------


def test_without_a_model_the_last_export_is_used_and_named(ask, model, folder):
    write_last_export(folder)
    result = ask("hello", with_model=False)
    assert result.exit_code == 0
    assert model.loads[0][0] == folder
    assert result.stderr.startswith(f"model: {folder} (the last export)\n")


def test_the_environment_goes_before_the_last_export(ask, model, folder, tmp_path, monkeypatch):
    write_last_export(tmp_path / "other")
    monkeypatch.setenv("PIXEDGE_MODEL", str(folder))
    result = ask("hello", with_model=False)
    assert model.loads[0][0] == folder
    assert result.stderr.startswith(f"model: {folder} ($PIXEDGE_MODEL)\n")


def test_the_option_goes_before_the_environment(ask, model, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PIXEDGE_MODEL", str(tmp_path / "other"))
    result = ask("hello")
    assert model.loads[0][0] == folder
    assert "model:" not in result.stderr


def test_no_model_at_all_says_how_to_export(ask, model):
    refused(ask("hello", with_model=False), "run 'pixedge export CHECKPOINT' once", model)


def test_a_last_export_that_is_gone_is_named(ask, model, tmp_path):
    write_last_export(tmp_path / "gone")
    refused(ask("hello", with_model=False), r"gone \(the last export\) is not a folder", model, exit_code=1)


@pytest.mark.parametrize(
    "error", [ArtifactError("x is no export; export again"), CapacityError("9 does not fit")]
)
def test_errors_of_loading_are_sentences(ask, model, error, monkeypatch):
    def load(path, **_):
        raise error

    monkeypatch.setitem(vars(pixedge), "load", load)
    result = ask("hello")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"pixedge: {error}\n")


# --- interruption ------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_line_and_exits_130(ask, model):
    model.error = KeyboardInterrupt()
    result = ask("hello")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "It is a red square.\n", "")


def test_ctrl_c_with_json_prints_nothing(ask, model):
    model.error = KeyboardInterrupt()
    result = ask("--json", "hello")
    assert (result.exit_code, result.stdout) == (130, "")


def test_an_error_within_the_answer_is_on_its_own_line(ask, model):
    model.error = ImageError("it broke; repair it")
    result = ask("hello")
    assert result.exit_code == 1
    assert result.output.endswith("It is a red square.\npixedge: it broke; repair it\n")


ENDLESS = """
import sys, time, types
import pixedge
from pixedge.cli import main

class Model:
    load_seconds = 0.0
    def stream(self, *_, **__):
        yield from iter(lambda: time.sleep(0.01) or {piece!r}, None)

vars(pixedge)["load"] = lambda *_, **__: Model()
main(["run", "--model", {folder!r}, "hello"])
"""


def endless(folder, piece="words ", **options):
    code = ENDLESS.format(folder=str(folder), piece=piece)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **options)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_ctrl_c_leaves_no_traceback(folder):
    with endless(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(6) == b"words "
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.endswith(b"words \n") or out == b"\n"
    assert err == b""


def test_a_closed_pipe_ends_the_answer_quietly(folder):
    with endless(folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(6) == b"words "
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_a_terminal_is_not_sent_control_characters_by_the_model(folder):
    import pty

    parent, child = pty.openpty()
    with endless(folder, piece="a\x1b]0;title\x07\tb\n", stdout=child, stderr=subprocess.PIPE) as process:
        os.close(child)
        text = b""
        while text.count(b"\n") < 2:
            text += os.read(parent, 1000)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    os.close(parent)
    assert text.startswith(b"a\\x1b]0;title\\x07\tb\r\n")
