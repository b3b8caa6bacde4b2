"""Batches on the trained demo: folders, documents, requests; what fails, and going on where it stopped."""

import base64
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from PIL import Image

import pixedge
from pixedge.batch import work
from pixedge.batch.answer_file import AnswerFile
from pixedge.batch.picture_files import PictureFiles, Question, find_files, name_pages
from pixedge.batch.request_file import RequestFile
from pixedge.cli import main
from pixedge.errors import ImageError, UsageError
from pixedge.sampling import SamplingParams
from pixedge.serve.media import MediaSettings
from tests import pdf_files
from tests.exported_demo import PICTURES, ROOT, environment, exported_demo

QUESTION = "What colour is the star?"
ANSWERS = {"first": "The star is green.", "second": "The star is purple.", "shapes": "The star is yellow."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported_demo(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def model(folder, one_thread):
    return pixedge.load(folder, device="cpu", context=4096, threads=1)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of three pictures, one of them further down, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name, place in (("first", "page10"), ("second", "page2"), ("shapes", "sub/deep")):
        (tmp_path / "photos" / f"{place}.png").write_bytes((PICTURES / f"{name}.png").read_bytes())
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    return tmp_path / "photos"


@pytest.fixture
def batch(folder, model, monkeypatch):
    """Run the command in this process on the loaded model."""

    def invoke(*arguments, with_model=True):
        monkeypatch.setitem(vars(pixedge), "load", lambda *_, **__: model)
        named = ["--model", str(folder)] if with_model else []
        return CliRunner().invoke(main, ["batch", *named, *map(str, arguments)])

    return invoke


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path):
    return {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in lines(path)
        if line["error"] is None
    }


# --- the same question about many pictures ------------------------------------------------------------------


def test_a_folder_is_answered_in_natural_order(batch, photos, tmp_path):
    done = batch("photos/", "--prompt", QUESTION, "--out", "a.jsonl")
    assert (done.exit_code, done.stdout) == (0, "")
    assert list(texts(tmp_path / "a.jsonl").items()) == [
        ("photos/page2.png", ANSWERS["second"]),
        ("photos/page10.png", ANSWERS["first"]),
        ("photos/sub/deep.png", ANSWERS["shapes"]),
    ]
    assert "left out: 1 other file" in done.stderr
    assert "3 answered" in done.stderr


def test_a_line_has_the_form_of_openais_batches(batch, photos, tmp_path):
    arguments = ("photos/page2.png", "--prompt", QUESTION, "--logprobs", 1, "--seed", 3)
    first = batch(*arguments, "--out", "a.jsonl")
    second = batch(*arguments, "--out", "b.jsonl")
    assert first.exit_code == second.exit_code == 0, first.output
    (line,), (other,) = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl")
    assert set(line) == {"id", "custom_id", "response", "error", "pixedge"}
    body = line["response"]["body"]
    assert line["response"]["status_code"] == 200 and body["object"] == "chat.completion"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert len(body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 1
    assert body["pixedge"]["seeds"] == [3]
    # the same item has the same ids in every run
    assert (line["id"], body["id"]) == (other["id"], other["response"]["body"]["id"])


def test_answers_equal_those_of_single_questions(folder, one_thread, tmp_path):
    """Many at once, of different lengths, read by several threads: each the answer it gets alone.

    In float32: in 16 bits that takes matrix tiles, as other kernels serve few rows than many.
    """
    model = pixedge.load(folder, device="cpu", context=4096, threads=1, dtype="float32")
    sizes = [(64, 48), (96, 64), (48, 96), (128, 128), (176, 128)]
    for index in range(12):
        picture = Image.open(PICTURES / f"{('first', 'second', 'shapes')[index % 3]}.png")
        picture.resize(sizes[index % 5]).save(tmp_path / f"{index}.png")
    names, _ = find_files([str(tmp_path)])
    question = Question("Describe the picture.", None, SamplingParams(max_tokens=24))
    inputs = PictureFiles(names, question)
    # Asked before, and for the second time: two answers are nearly as likely, and which comes first depends
    # on whether the prompt's pages are cached.
    for _ in range(2):
        alone = {
            name: model.generate(question.messages([Image.open(name).convert("RGB")]), question.params).text
            for name in names
        }
    with AnswerFile(tmp_path / "a.jsonl") as file:
        tally = work.answer_all(model, inputs, range(12), file)
    assert (tally.answered, tally.failed) == (12, 0)
    assert texts(tmp_path / "a.jsonl") == alone
    assert model.engine.cache.pages.available * 16 == model.engine.cache.tokens


def test_documents_in_a_folder_and_pages_of_one(batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pdf_files.write(tmp_path / "two.pdf", pdf_files.coloured((1, 0, 0), (0, 1, 0)))
    done = batch(".", "two.pdf[2]", "--dpi", 36, "--prompt", "What is this?", "--out", "a.jsonl", "--json")
    assert done.exit_code == 0, done.output
    one, two = (line["response"]["body"]["usage"] for line in reversed(lines(tmp_path / "a.jsonl")))
    assert list(texts(tmp_path / "a.jsonl")) == ["two.pdf", "two.pdf[2]"]
    images = [each["prompt_tokens_details"]["image_tokens"] for each in (one, two)]
    assert images[1] == 2 * images[0]
    assert json.loads(done.stdout)["image_tokens"] == sum(images)


def test_each_page_may_be_an_item_of_its_own(batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pdf_files.write(tmp_path / "two.pdf", pdf_files.coloured((1, 0, 0), (0, 1, 0)))
    pdf_files.write(tmp_path / "long.pdf", pdf_files.coloured(*[(1, 0, 0)] * 70))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 rubbish")
    names, _ = find_files(["two.pdf", "long.pdf[68-]", "broken.pdf"])
    assert name_pages(names) == [
        "two.pdf[1]",
        "two.pdf[2]",
        *[f"long.pdf[{page}]" for page in (68, 69, 70)],
        "broken.pdf",
    ]
    arguments = ("two.pdf", "broken.pdf", "--each-page", "--dpi", 36, "--prompt", "What is this?")
    done = batch(*arguments, "--out", "a.jsonl")
    assert done.exit_code == 1
    assert list(texts(tmp_path / "a.jsonl")) == ["two.pdf[1]", "two.pdf[2]"]
    assert lines(tmp_path / "a.jsonl")[2]["error"]["message"].startswith("broken.pdf cannot be opened as PDF")


def test_answers_keep_to_a_schema(batch, photos, tmp_path):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema | {"additionalProperties": False}))
    done = batch("photos", "--prompt", "Count.", "--schema", "schema.json", "--out", "a.jsonl")
    assert done.exit_code == 0, done.output
    assert all(isinstance(json.loads(text)["n"], int) for text in texts(tmp_path / "a.jsonl").values())


def test_a_bad_item_is_a_recorded_error_and_not_the_end(batch, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no picture")
    pdf_files.write(photos / "long.pdf", pdf_files.coloured(*[(1, 0, 0)] * 65))
    done = batch("photos", "missing.png", "--prompt", QUESTION, "--out", "a.jsonl", "--json")
    assert done.exit_code == 1
    figures = json.loads(done.stdout)
    assert (figures["items"], figures["answered"], figures["failed"]) == (6, 3, 3)
    failed = {line["custom_id"]: line for line in lines(tmp_path / "a.jsonl") if line["error"]}
    assert set(failed) == {"photos/bad.jpg", "photos/long.pdf", "missing.png"}
    for id, line in failed.items():
        assert line["response"]["status_code"] == 400
        assert line["response"]["body"]["error"]["message"] == line["error"]["message"]
        assert line["error"]["message"].startswith(id)
        assert line["error"]["code"] == "invalid_image"
    assert "failed first: photos/bad.jpg is not a picture" in done.stderr


def test_an_item_that_fails_unexpectedly_is_not_the_end_either(model, photos, tmp_path, monkeypatch):
    inputs = PictureFiles(find_files(["photos"])[0], Question(QUESTION, None, SamplingParams()))
    read = inputs.read

    def broken(index, model):
        if index == 1:
            raise ZeroDivisionError("by chance")
        return read(index, model)

    monkeypatch.setattr(inputs, "read", broken)
    with AnswerFile(tmp_path / "a.jsonl") as file:
        tally = work.answer_all(model, inputs, range(3), file)
    assert (tally.answered, tally.failed) == (2, 1)
    error = next(line["error"] for line in lines(tmp_path / "a.jsonl") if line["error"])
    assert error["code"] == "internal_error" and "ZeroDivisionError: by chance" in error["message"]


def test_what_does_not_fit_is_refused_with_the_numbers_before_its_pixels_are_made(model, photos, monkeypatch):
    Image.new("RGB", (1024, 1024)).save(photos / "large.png")
    question = Question(QUESTION, None, SamplingParams())
    inputs = PictureFiles(["photos/large.png"], question)
    monkeypatch.setattr(type(model.engine.cache), "tokens", property(lambda self: 32))
    monkeypatch.setattr(model.tokenizer, "encode", lambda *_: pytest.fail("pixels were made"))
    with pytest.raises(pixedge.errors.CapacityError, match="do not fit the cache of 32"):
        inputs.read(0, model)


def test_reading_ahead_is_bounded(model, photos, monkeypatch, tmp_path):
    """A slow engine and fast readers: no more waits than was said."""
    inputs = PictureFiles(["photos/page2.png"] * 1, Question(QUESTION, None, SamplingParams(max_tokens=2)))
    inputs.items = tuple(work.Item(f"{index}", "d") for index in range(40))
    asked = PictureFiles(["photos/page2.png"], Question(QUESTION, None, SamplingParams(max_tokens=2))).read(
        0, model
    )
    started = []

    def read(index, model):
        started.append(index)
        return asked

    monkeypatch.setattr(inputs, "read", read)
    monkeypatch.setattr(work, "AHEAD_BYTES", 3 * asked.bytes)
    ahead_most = 0

    def report(tally):
        nonlocal ahead_most
        ahead_most = max(ahead_most, len(started) - tally.done)

    with AnswerFile(tmp_path / "a.jsonl") as file:
        assert work.answer_all(model, inputs, range(40), file, report).answered == 40
    assert sorted(started) == list(range(40))
    most = model.engine.options.max_requests + work._READERS + 1
    assert ahead_most <= most


# --- going on where it stopped ------------------------------------------------------------------------------


def test_finished_items_are_not_asked_again_and_failed_ones_are(batch, photos, tmp_path, monkeypatch):
    (photos / "page3.png").write_bytes(b"half a download")
    first = batch("photos", "--prompt", QUESTION, "--out", "a.jsonl")
    assert first.exit_code == 1
    before = texts(tmp_path / "a.jsonl")
    (photos / "page3.png").write_bytes((PICTURES / "shapes.png").read_bytes())
    second = batch("./photos", "--prompt", QUESTION, "--out", "a.jsonl", "--json")
    assert second.exit_code == 0, second.output
    figures = json.loads(second.stdout)
    assert (figures["finished_before"], figures["answered"], figures["failed"]) == (3, 1, 0)
    assert "3 of 4 have their answer" in second.stderr
    after = texts(tmp_path / "a.jsonl")
    assert after == before | {"photos/page3.png": ANSWERS["shapes"]}
    assert list(after) == [f"photos/{name}.png" for name in ("page2", "page3", "page10", "sub/deep")]


def test_nothing_left_to_do_loads_no_model(batch, photos, tmp_path, monkeypatch):
    assert batch("photos", "--prompt", QUESTION, "--out", "a.jsonl").exit_code == 0
    content = (tmp_path / "a.jsonl").read_bytes()
    monkeypatch.setattr("pixedge.commands.model_options.ModelOptions.load", lambda *_: pytest.fail("loaded"))
    assert batch("photos", "--prompt", QUESTION, "--out", "a.jsonl").exit_code == 0
    assert (tmp_path / "a.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    "change", [["--prompt", "Another?"], ["--temperature", "0.5"], ["--system", "Be brief."]]
)
def test_another_question_does_not_mix_with_the_old_answers(batch, photos, tmp_path, change):
    assert batch("photos", "--prompt", QUESTION, "--out", "a.jsonl").exit_code == 0
    content = (tmp_path / "a.jsonl").read_bytes()
    done = batch("photos", "--prompt", QUESTION, *change, "--out", "a.jsonl")
    assert done.exit_code == 2 and "another question" in done.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == content


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_batch_goes_on_from_its_last_line(folder, tmp_path, sign):
    """However it ends, the file has whole lines, and the second run asks only what the first did not."""
    photos = tmp_path / "photos"
    photos.mkdir()
    names = [f"{index}.png" for index in range(40)]
    for index, name in enumerate(names):
        picture = Image.open(PICTURES / "shapes.png")
        picture.resize((64 + 16 * (index % 5), 64 + 16 * (index % 3))).save(photos / name)
    command = [
        sys.executable,
        "-m",
        "pixedge",
        "batch",
        str(photos),
        "--prompt",
        "Describe.",
        "--max-tokens",
        "16",
        "--threads",
        "1",
    ]
    command += ["--model", str(folder), "--out", str(tmp_path / "a.jsonl"), "--json"]
    with subprocess.Popen(
        command, env=environment(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None:
            if (tmp_path / "a.jsonl").exists() and (tmp_path / "a.jsonl").read_bytes().count(b"\n") >= 5:
                process.send_signal(sign)
                break
            time.sleep(0.02)
        out, err = process.communicate(timeout=60)
    data = (tmp_path / "a.jsonl").read_bytes()
    assert data.endswith(b"\n")
    kept = len(lines(tmp_path / "a.jsonl"))
    assert 5 <= kept < 40
    if sign == signal.SIGINT:
        assert process.returncode == 130 and out == b""
        assert f"stopped with {40 - kept} to go".encode() in err and b"Traceback" not in err
    done = subprocess.run(command, env=environment(tmp_path), cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["finished_before"], figures["answered"]) == (kept, 40 - kept)
    assert [os.path.basename(name) for name in texts(tmp_path / "a.jsonl")] == names


# --- requests in OpenAI's form ------------------------------------------------------------------------------


def request(id, text=QUESTION, picture="shapes", **body):
    data = base64.b64encode((PICTURES / f"{picture}.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": text},
    ]
    body = {"model": "any", "messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_requests(path, *requests):
    path.write_text("".join(json.dumps(each) + "\n" for each in requests))
    return path


def test_requests_are_answered_each_as_its_body_says(batch, tmp_path):
    path = write_requests(
        tmp_path / "in.jsonl",
        request("z", picture="first"),
        request("two", n=2, temperature=1.5, seed=1, max_tokens=5, logprobs=True, top_logprobs=2),
        request("cut", max_tokens=2),
        request("stop", stop=["star"]),
        request("json", "Describe the star as JSON.", response_format={"type": "json_object"}),
    )
    done = batch(path, "--out", tmp_path / "a.jsonl")
    assert done.exit_code == 0, done.output
    found = {line["custom_id"]: line["response"]["body"] for line in lines(tmp_path / "a.jsonl")}
    assert list(found) == ["z", "two", "cut", "stop", "json"]
    assert found["z"]["choices"][0]["message"]["content"] == ANSWERS["first"]
    assert [choice["index"] for choice in found["two"]["choices"]] == [0, 1]
    assert found["two"]["pixedge"]["seeds"] == [1, 2]
    assert found["two"]["choices"][1]["logprobs"]["content"]
    assert found["cut"]["choices"][0]["finish_reason"] == "length"
    assert found["stop"]["choices"][0]["message"]["content"] == "The "
    assert isinstance(json.loads(found["json"]["choices"][0]["message"]["content"]), dict)


def test_bad_requests_are_recorded_with_their_field(batch, tmp_path):
    bad = {
        "method": request("method") | {"method": "GET"},
        "url": request("url") | {"url": "/v1/embeddings"},
        "body": {key: value for key, value in request("body").items() if key != "body"},
        "field": request("field") | {"more": 1},
        "stream": request("stream", stream=True),
        "temperature": request("temperature", temperature="hot"),
        "address": request("address"),
        "file": request("file"),
        "format": request("format", response_format={"type": "regex", "regex": ".*" * 20_000}),
    }
    bad["address"]["body"]["messages"][0]["content"][0]["image_url"]["url"] = "http://127.0.0.1/a.png"
    bad["file"]["body"]["messages"][0]["content"][0]["image_url"]["url"] = "file:///etc/passwd"
    path = write_requests(tmp_path / "in.jsonl", request("good"), *bad.values())
    done = batch(path, "--out", tmp_path / "a.jsonl", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["failed"] == len(bad)
    errors = {line["custom_id"]: line["error"] for line in lines(tmp_path / "a.jsonl")}
    assert errors.pop("good") is None
    words = {"method": "POST", "url": "/v1/chat/completions", "body": "body is missing", "field": "more"}
    words |= {
        "stream": "stream",
        "temperature": "temperature",
        "address": "allowed",
        "file": "file",
        "format": "limit",
    }
    for id, word in words.items():
        assert word in errors[id]["message"], errors[id]


def test_pictures_of_requests_may_lie_in_one_folder(batch, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    (media / "a.png").write_bytes((PICTURES / "second.png").read_bytes())
    asked = request("a")
    asked["body"]["messages"][0]["content"][0]["image_url"]["url"] = (media / "a.png").as_uri()
    path = write_requests(tmp_path / "in.jsonl", asked)
    done = batch(path, "--media-dir", media, "--out", tmp_path / "a.jsonl")
    assert done.exit_code == 0, done.output
    assert texts(tmp_path / "a.jsonl") == {"a": ANSWERS["second"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no requests"),
        ("\n\n", "holds no requests"),
        ("not json\n", "line 1 of .* is not JSON"),
        ('{"custom_id": "a"}\n\n[]\n', "line 3 of .* is not a JSON object"),
        ('{"custom_id": ""}\n', "line 1 of .* has the custom_id ''"),
        ('{"custom_id": 7}\n', "has the custom_id '7'"),
        ('{"custom_id": "a"}\n{"custom_id": "a"}\n', "line 2 of .* has the custom_id 'a' of line 1"),
        ("[" * 100_000 + "\n", "line 1 of .* is not JSON"),
    ],
)
def test_a_file_that_is_no_file_of_requests_is_refused_whole(tmp_path, content, words):
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        RequestFile(path, MediaSettings())


def test_a_byte_order_mark_and_blank_lines_are_no_requests(tmp_path, model):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(request("a")).encode() + b"\r\n \n")
    inputs = RequestFile(path, MediaSettings())
    assert [item.id for item in inputs.items] == ["a"]
    assert inputs.read(0, model).params[0].max_tokens == 1024


# --- wrong usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos"], "--prompt is missing"),
        (["photos", "--prompt", " "], "--prompt is empty"),
        (["photos", "--prompt", "?", "--system", ""], "--system is empty"),
        (["photos", "--prompt", "?", "--allow-host", "a.example"], "--allow-host is for a file of requests"),
        (["photos", "--prompt", "?", "--dpi", "90"], "--dpi is for the pages of a PDF"),
        (["photos", "--prompt", "?", "--each-page"], "--each-page is for the pages of a PDF"),
        (["http://a.example/a.png", "--prompt", "?"], "add --allow-url"),
        (["-", "--prompt", "?"], "standard input"),
        (["in.jsonl", "photos"], "a file of requests is given alone"),
        (["in.jsonl", "--prompt", "?"], "--prompt is given, but each request"),
        (["in.jsonl", "--temperature", "0"], "--temperature is given"),
        (["in.jsonl", "--schema", "s.json"], "--schema is given"),
        (["missing.jsonl"], "missing.jsonl cannot be read"),
        (["photos", "--prompt", "?", "--top-p", "7"], "top_p is 7"),
        (["photos", "--prompt", "?", "--out", "photos"], "is a folder"),
    ],
)
def test_wrong_usage_is_a_sentence(batch, photos, arguments, words):
    done = batch("--out", "a.jsonl", *arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") <= 2


def test_a_missing_out_is_a_sentence(batch, photos):
    done = batch("photos", "--prompt", "?")
    assert done.exit_code == 2 and "--out is missing" in done.stderr


def test_folders_and_patterns_without_pictures(photos):
    (photos / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no pictures"):
        find_files([str(photos / "empty")])
    with pytest.raises(ImageError, match="matches no file"):
        find_files(["photos/*.gif"])
