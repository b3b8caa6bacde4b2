"""`pixedge chat`: a session with the demo, from a pipe, and its commands."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import pixedge
from pixedge.cli import main
from pixedge.commands.chat_session import COMMANDS, ChatSession
from pixedge.errors import ImageError, MessageError, PixedgeError, UsageError
from pixedge.sampling import SamplingParams
from tests.engines import again, check_books
from tests.exported_demo import PICTURES, ROOT, environment, exported_demo
from tests.pdf_files import coloured, write

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = PICTURES / "shapes.png"
LONG = "(red|green|blue)( red| green| blue){2000}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return exported_demo(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def model(folder):
    return pixedge.load(folder)


class Chat(ChatSession):
    """A session whose answers and notes are read from what was printed."""

    def __init__(self, capsys, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._capsys = capsys

    def __call__(self, line: str) -> tuple[str, str]:
        """Give what a line wrote to standard output and to standard error."""
        assert self.take(line)
        return tuple(self._capsys.readouterr())


@pytest.fixture
def chat(model, capsys, tmp_path, monkeypatch):
    engine = model.engine

    def start(**options) -> Chat:
        model.engine = again(engine, **options.pop("engine", {}))
        params = options.pop("params", SamplingParams(max_tokens=60))
        return Chat(capsys, model, params, **options)

    monkeypatch.chdir(tmp_path)
    yield start
    model.engine = engine


def said(out: str) -> str:
    return out.removesuffix("\n")


# Turns


def test_a_picture_and_two_questions(chat):
    session = chat()
    out, err = session(f"/image {SHAPES}")
    assert (out, err) == ("", f"attached {SHAPES} (176 x 128)\n")
    out, err = session("What colour is the star?")
    assert out == "The star is yellow.\n"
    first = re.fullmatch(
        r"(\d+) of 4,096 tokens used, ([\d,]+) left, 0 of the prompt's (\d+) known .+\n", err
    )
    assert int(first[1]) + int(first[2].replace(",", "")) == 4096
    out, err = session("Describe the star as JSON.")
    assert json.loads(out) == {"shape": "star", "colour": "yellow"}
    second = re.match(r"(\d+) of 4,096 .+ left, (\d+) of the prompt's (\d+) known", err)
    assert int(second[1]) > int(first[1])
    # all whole pages of the first turn, picture and answer included, are in the cache still
    assert int(second[2]) >= int(first[3]) - 16
    check_books(session.model.engine)


def test_answers_are_those_of_run(chat, model):
    session = chat(system="You are helpful.")
    session(f"'{SHAPES}' What colour is the star?")
    out, _ = session("What shape is green?")
    content = [{"type": "image", "image": SHAPES}, {"type": "text", "text": "What colour is the star?"}]
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": content}]
    params = SamplingParams(max_tokens=60)
    messages.append({"role": "assistant", "content": model.generate(messages, params).text})
    messages.append({"role": "user", "content": "What shape is green?"})
    assert said(out) == model.generate(messages, params).text


def test_a_path_in_a_message_is_attached_and_said_so(chat, tmp_path):
    (tmp_path / "my shapes.png").write_bytes(SHAPES.read_bytes())
    session = chat()
    out, err = session("'my shapes.png'")
    assert (out, err) == ("", "attached my shapes.png (176 x 128)\nask about it\n")
    out, err = session(r"What colour is the star in my\ shapes.png?")
    assert out.endswith(".\n") and "already" in err
    assert session.conversation.exchanges[0].question == "What colour is the star in my shapes.png?"
    assert session.conversation.n_pictures == 1
    session(f"/image {tmp_path / 'my shapes.png'}")  # asked for once more, it is there once more
    assert session.conversation.n_pictures == 2


def test_a_schema_holds_every_answer(chat, tmp_path):
    schema = {"type": "object", "properties": {"colour": {"enum": ["yellow", "green"]}},
              "required": ["colour"], "additionalProperties": False}  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(schema))
    session = chat()
    session(f"/image {SHAPES}")
    assert session("/set schema s.json") == ("", "answer held to a schema\n")
    out, _ = session("What colour is the star?")
    assert json.loads(out) == {"colour": "yellow"}
    session("/set schema off")
    assert session("What colour is the star?")[0] == "The star is yellow.\n"


def test_an_answer_that_is_cut_says_why(chat):
    session = chat(params=SamplingParams(max_tokens=3))
    out, err = session(f"{SHAPES} What colour is the star?")
    assert len(out) < 20 and "cut after 3 tokens; /set max_tokens" in err


def test_an_answer_ends_where_the_room_does(chat):
    """A conversation that grows is answered as long as there is room, and then refused with what to do."""
    session = chat(params=SamplingParams(max_tokens=1000), engine={"cache_tokens": 160})
    session("/set regex " + LONG)
    _, err = session(f"{SHAPES} What colour is the star?")
    assert "no room is left; /undo or /clear makes some" in err and "0 left" in err
    with pytest.raises(PixedgeError, match="do not fit"):
        session.take("And now?")
        session.take("And now?")
    assert len(session.conversation.exchanges) <= 2
    while len(session.conversation.exchanges) > 1:
        session("/undo")
    session("/undo")
    session("/set regex off")
    assert session("What colour is the star?")[0] != "\n"


# Commands


def test_retry_and_undo(chat):
    session = chat(params=SamplingParams(max_tokens=20, temperature=3.0))
    session(f"{SHAPES} What colour is the star?")
    answers = {session("/retry")[0] for _ in range(4)}
    assert len(answers) > 1
    assert len(session.conversation.exchanges) == 1 and session.conversation.n_pictures == 1
    session("/set temperature 0")
    assert "stays the same" in session("/retry")[1]
    session(f"/image {PICTURES / 'first.png'}")
    session("/retry")
    assert [len(session.conversation.exchanges[0].attachments), len(session.conversation.waiting)] == [1, 1]
    assert session("/undo")[1] == "taken back: What colour is the star?\n"
    assert not session.conversation.exchanges
    for command in ("/undo", "/retry"):
        with pytest.raises(UsageError, match="nothing has been asked"):
            session.take(command)


def test_images_system_clear_stats_help(chat):
    session = chat()
    assert "no pictures yet" in session("/images")[1]
    session(f"/image {PICTURES}/[fs]*.png")
    listed = session("/images")[1].splitlines()
    assert [line.rpartition("/")[2] for line in listed] == [
        "first.png",
        "second.png",
        "shapes.png",
        "sign.png",
    ]
    assert all("next message" in line for line in listed)
    assert session("/system")[1] == "instruction: none\n"
    assert session("/system Be brief.")[1] == "instruction: Be brief.\n"
    session("How many pictures?")
    assert all("message 1" in line for line in session("/images")[1].splitlines())
    stats = session("/stats")[1]
    assert "turns 1, pictures 4" in stats and "last answer: prompt" in stats and "cache 4,096 tokens" in stats
    session("/system off")
    assert session.conversation.system is None
    session("/clear")
    assert session.status().startswith("0 of") and not session.conversation.attachments
    for name in COMMANDS:
        assert name in session("/help")[1]
    assert not session.take("/quit")


def test_settings(chat):
    session = chat(params=SamplingParams())
    assert "temperature 0.0" in session("/set")[1] and "seed none" in session("/set")[1]
    assert session("/set temperature 0.2")[1] == "temperature 0.2\n"
    session("/set top-k 5")
    session("/set stop the end")
    session("/set seed 7")
    expected = SamplingParams(temperature=0.2, top_k=5, stop=("the end",), seed=7)
    assert session.params == expected
    assert session("/set seed")[1] == "seed 7\n"
    session("/set seed off")
    assert session.params.seed is None
    for bad in [
        "temperature x",
        "heat 3",
        "heat",
        "top_p 2",
        "max_tokens 1.5",
        "regex (",
        "schema none.json",
    ]:
        with pytest.raises(UsageError):
            session.take(f"/set {bad}")


def test_save_and_load(chat, tmp_path):
    (tmp_path / "s.png").write_bytes(SHAPES.read_bytes())
    session = chat(system="Be brief.", params=SamplingParams(temperature=0.5, seed=1, max_tokens=60))
    session("s.png What colour is the star?")
    out, err = session("/save talk.json")
    assert (out, err) == ("", "saved 1 turn to talk.json\n")
    other = chat()
    assert (
        "loaded 1 turn about 1 picture; max_tokens 60, temperature 0.5, seed 1" in other("/load talk.json")[1]
    )
    assert other.params == session.params and other.conversation.system == "Be brief."
    assert "counted with the next answer" in other.status()
    assert other("What shape is green?")[0] == session("What shape is green?")[0]

    Image.new("RGB", (176, 128)).save(tmp_path / "s.png")
    third = chat()
    third("What?")
    with pytest.raises(ImageError, match=r"s\.png is not what it was"):
        third.take("/load talk.json")
    assert third.conversation.exchanges[0].question == "What?"  # nothing of it was taken
    (tmp_path / "s.png").unlink()
    with pytest.raises(ImageError, match=r"s\.png"):
        third.take("/load talk.json")
    for line, error in [("/save", UsageError), ("/load", UsageError), ("/load s.png", MessageError),
                        ("/save none/talk.json", PixedgeError)]:  # fmt: skip
        with pytest.raises(error):
            third.take(line)


def test_an_address_needs_leave_everywhere(chat, tmp_path):
    record = {"pixedge_chat": 1, "model": "m", "turns": [
        {"role": "user", "text": "a", "pictures": [{"source": "http://127.0.0.1:9/a.png", "hash": "x"}]},
        {"role": "assistant", "text": "b"}]}  # fmt: skip
    (tmp_path / "talk.json").write_text(json.dumps(record))
    session = chat()
    for line in ("/image http://127.0.0.1:9/a.png", "/load talk.json"):
        with pytest.raises(UsageError, match="allow-url"):
            session.take(line)


def test_pages_of_a_document_and_a_picture_from_an_address(chat, tmp_path, monkeypatch):
    pytest.importorskip("pypdfium2")
    write(tmp_path / "r.pdf", coloured((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    monkeypatch.setattr("pixedge.fetch.fetch_image", lambda url, limits: SHAPES.read_bytes())
    session = chat(allow_url=True)
    assert session("/image r.pdf[2-3]")[1] == "attached r.pdf[2-3] (2 pages)\n"
    session("/image https://example.com/a.png")
    sizes = [each.size for one in session.conversation.attachments for each in one.pictures]
    assert len(sizes) == 3 and sizes[2] == (176, 128)
    red, green, blue = session.conversation.waiting[0].pictures[1].getpixel((5, 5))
    assert blue > 200 > red + green
    session("What is this?")
    session("/save talk.json")
    session("/load talk.json")
    assert session.conversation.n_pictures == 3
    monkeypatch.setattr("pixedge.fetch.fetch_image", lambda url, limits: (PICTURES / "sign.png").read_bytes())
    with pytest.raises(ImageError, match=r"a\.png is not what it was"):
        session.take("/load talk.json")


@pytest.mark.parametrize("line", ["/foo", "/foo bar", "/image", "/image none.png", "/image none*.png"])
def test_what_cannot_be_done_leaves_the_conversation_alone(chat, line):
    session = chat()
    with pytest.raises(PixedgeError) as refusal:
        session.take(line)
    assert "\n" not in str(refusal.value) and not session.conversation.attachments


def test_all_of_several_pictures_or_none(chat, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    session = chat()
    with pytest.raises(ImageError, match=r"bad\.png"):
        session.take(f"{SHAPES} bad.png What is this?")
    assert not session.conversation.attachments and not session.conversation.exchanges


def test_a_conversation_has_a_limit_of_pictures(chat, tmp_path):
    for at in range(65):
        Image.new("RGB", (8, 8), (at, 0, 0)).save(tmp_path / f"{at}.png")
    session = chat(quiet=True)
    with pytest.raises(ImageError, match="64"):
        session.take("/image *.png")
    session("/image [0-5]*.png")
    with pytest.raises(ImageError, match="64"):
        session.take("/image *.png")


# Ctrl-C


def test_ctrl_c_ends_the_answer_and_what_was_said_stays(chat, monkeypatch):
    session = chat(params=SamplingParams(max_tokens=3000))
    session(f"/image {SHAPES}")
    session("/set regex " + LONG)
    pieces = []

    def press(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 10:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("pixedge.commands.chat_session.say", press)
    before = signal.getsignal(signal.SIGINT)
    _, err = session("What colour is the star?")
    assert "stopped; what was said so far stays" in err
    assert signal.getsignal(signal.SIGINT) is before
    (exchange,) = session.conversation.exchanges
    assert exchange.answer == "".join(pieces).rstrip("\n") and 10 <= len(pieces) <= 12
    check_books(session.model.engine)
    assert not session.model.engine._active
    monkeypatch.undo()
    session("/set regex off")
    assert session("What colour is the star?")[0] != "\n"


def test_ctrl_c_before_anything_is_said_forgets_the_question(chat, monkeypatch):
    """As while a large picture is looked at: the pictures wait for the next question."""
    session = chat()
    session(f"/image {SHAPES}")
    engine = session.model.engine
    encode = engine.runner.pictures.encode

    def press(picture):
        os.kill(os.getpid(), signal.SIGINT)
        return encode(picture)

    monkeypatch.setattr(engine.runner.pictures, "encode", press)
    out, err = session("What colour is the star?")
    assert out == "\n" and "forgotten" in err
    assert not session.conversation.exchanges and session.conversation.n_pictures == 1
    monkeypatch.undo()
    assert session("What colour is the star?")[0] == "The star is yellow.\n"
    check_books(engine)


# The command


@pytest.fixture
def pipe(folder, tmp_path, monkeypatch):
    def ask(lines: bytes, *options: str):
        return CliRunner().invoke(main, ["chat", "--model", str(folder), *options], input=lines)

    for name in ("XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    return ask


def test_turns_from_a_pipe(pipe):
    lines = f"\ufeff{SHAPES} What colour\\\nis the star?\r\n\n/nonsense\n\n"
    lines += "Describe the star as JSON.\n/quit\nNo\n"
    done = pipe(lines.encode(), "--quiet")
    assert done.stdout.splitlines() == [
        "The star is yellow.",
        '{"shape": "star", "colour": "yellow"}',
    ]
    assert done.stderr == "pixedge: there is no command /nonsense; /help lists them\n"
    assert done.exit_code == 1


def test_options_of_the_command(pipe, tmp_path):
    options = ["--image", str(SHAPES), "--regex", r"The star is (yellow|green)\.", "--max-tokens", "20"]
    done = pipe(b"What colour is the star?\n/save " + bytes(tmp_path / "t.json"), *options)
    assert (done.stdout, done.exit_code) == ("The star is yellow.\n", 0)
    done = pipe(b"/retry", "--load", str(tmp_path / "t.json"))
    assert (done.stdout, done.exit_code) == ("The star is yellow.\n", 0)
    assert not list(tmp_path.rglob("chat_history"))


@pytest.mark.parametrize(
    "options, lines, code, named",
    [
        (["--image", "-"], b"", 2, "--image -"),
        (["--image", "none.png"], b"", 1, "none.png"),
        (["--system", " "], b"", 2, "--system is empty"),
        (["--system", "a", "--load", "b"], b"", 2, "--load"),
        (["--load", "none.json"], b"", 1, "none.json"),
        (["--image", "http://localhost/a.png"], b"", 2, "--allow-url"),
        (["--regex", "("], b"", 2, "unclosed"),
        ([], b"\xff\nWhat?\n", 1, "line 1 is not UTF-8"),
    ],
)
def test_wrong_arguments_are_sentences(pipe, options, lines, code, named):
    done = pipe(lines, *options)
    assert done.exit_code == code
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("pixedge: ")]
    assert named in sentence


def test_a_closed_pipe_ends_the_chat_quietly(tmp_path, folder):
    command = [sys.executable, "-m", "pixedge", "chat", "--model", str(folder), "--quiet", "--regex", LONG]
    with subprocess.Popen(
        [*command, "--max-tokens", "3000"], cwd=ROOT, env=environment(tmp_path), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"What colour?\n")
        process.stdin.close()
        process.stdout.read(20)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_ctrl_c_in_a_pipe_ends_the_answer_and_goes_on(tmp_path, folder):
    command = [sys.executable, "-m", "pixedge", "chat", "--model", str(folder), "--quiet", "--regex", LONG]
    with subprocess.Popen(
        [*command, "--max-tokens", "3000"], cwd=ROOT, env=environment(tmp_path), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"What colour?\n")
        process.stdin.flush()
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        assert b"stopped" in process.stderr.readline()
        process.stdin.write(b"/set regex green\nWhat colour?\n")
        process.stdin.close()
        assert process.stdout.read().splitlines()[-1] == b"green"
        assert process.wait(60) == 0


def test_ctrl_c_while_nothing_is_asked_exits_130(tmp_path, folder):
    command = [sys.executable, "-m", "pixedge", "chat", "--model", str(folder), "--quiet"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"/help\n")
        process.stdin.flush()
        assert process.stderr.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert b"Traceback" not in process.stderr.read()
