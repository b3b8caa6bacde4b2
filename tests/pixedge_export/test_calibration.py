"""Calibration folders line by line, samples to prompts, and the default data."""

import json
import re
import warnings
from pathlib import Path

import mistral_common
import pytest
from PIL import Image

from pixedge.config import VisionConfig
from pixedge.errors import CalibrationError
from pixedge.image import ImageLimits
from pixedge.tokenizer import Tokenizer
from pixedge_export.calibration import (
    Sample,
    default_samples,
    encode_samples,
    load_samples,
    split,
)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
BOS, EOS, INST, INST_END, IMG, IMG_BREAK, IMG_END = 1, 2, 3, 4, 10, 12, 13


def vision(image_size: int) -> VisionConfig:
    return VisionConfig(
        dim=64,
        n_layers=1,
        n_heads=4,
        ffn_dim=128,
        n_channels=3,
        patch_size=16,
        image_size=image_size,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=IMG,
        image_break_token_id=IMG_BREAK,
        image_end_token_id=IMG_END,
    )


@pytest.fixture(scope="session")
def demo_tokenizer():
    return Tokenizer(DEMO / "tekken.json", vision(256), vocab_size=3072)


def user(*parts) -> dict:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def image(name: object) -> dict:
    return {"type": "image", "image": name}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


ANSWERED = [user("What is it?", image("a.png")), assistant("A wall.")]


def write(folder: Path, *lines: object, name: str = "calibration.jsonl") -> Path:
    """Write lines, those that are no strings as messages, beside a picture a.png of 40 x 20 pixels."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (40, 20), "white").save(folder / "a.png")
    texts = [line if isinstance(line, str) else json.dumps({"messages": line}) for line in lines]
    (folder / name).write_text("\n".join(texts), encoding="utf-8")
    return folder


def error_of(folder: Path, limits: ImageLimits | None = None) -> str:
    with pytest.raises(CalibrationError) as caught:
        load_samples(folder, limits)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_conversations_with_paths_in_place_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "sub" / "b c.png")
    talk = [
        {"role": "system", "content": "Be brief."},
        user(image("a.png"), "One?", image("sub/b c.png")),
        assistant("Two."),
        {"role": "user", "content": "Sure?"},
        assistant("Yes: ü, 駅, \u2028."),
    ]
    text_only = [{"role": "user", "content": "Why?"}]
    raw = json.dumps({"messages": talk, "id": 7}, ensure_ascii=False)
    samples = load_samples(write(tmp_path, raw, "", "  \r", text_only))
    assert [sample.name for sample in samples] == ["calibration.jsonl:1", "calibration.jsonl:4"]
    assert [sample.has_picture for sample in samples] == [True, False]
    talk[1]["content"][0]["image"] = tmp_path / "a.png"
    talk[1]["content"][2]["image"] = tmp_path / "sub" / "b c.png"
    assert samples[0].messages == talk
    assert samples[1].messages == text_only


def test_calibration_jsonl_is_read_alone_and_else_all_files_in_order(tmp_path):
    write(tmp_path, ANSWERED, name="b.jsonl")
    write(tmp_path, ANSWERED, name="a.jsonl")
    assert [sample.name for sample in load_samples(tmp_path)] == ["a.jsonl:1", "b.jsonl:1"]
    write(tmp_path, ANSWERED, ANSWERED)
    assert [s.name for s in load_samples(tmp_path)] == ["calibration.jsonl:1", "calibration.jsonl:2"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path):
    write(tmp_path, "")
    line = json.dumps({"messages": ANSWERED}).encode()
    (tmp_path / "calibration.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n")
    assert len(load_samples(tmp_path)) == 2


def test_folders_that_hold_no_samples(tmp_path):
    assert error_of(tmp_path / "no").startswith(f"{tmp_path}/no does not exist; give a folder")
    assert error_of(tmp_path).startswith(f"{tmp_path} holds nothing; put calibration.jsonl there")
    (tmp_path / "a.txt").write_text("")
    assert error_of(tmp_path).startswith(f"{tmp_path} holds no .jsonl file; put")
    assert error_of(tmp_path / "a.txt").startswith(f"{tmp_path}/a.txt is not a folder; give")
    write(tmp_path, "", " ")
    assert error_of(tmp_path) == f"calibration.jsonl in {tmp_path} has no conversation; write one a line"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [}', "the line is not JSON (Expecting value at character 15); write one"),
        ("[" * 200_000, "the line is JSON nested too deeply; give messages as documented"),
        ("[1]", 'the line is not an object but a list; write {"messages": […]}'),
        ("null", 'the line is not an object but null; write {"messages": […]}'),
        ("{}", 'the line has no messages; write {"messages": […]} with a list of messages'),
        ('{"messages": "hi"}', "the line has messages as a string; write"),
        ([], "messages is empty; give at least one user message"),
        (["hi"], 'message 0 is not an object but a string; write {"role": …, "content": …}'),
        ([{"role": "tool", "content": "x"}], "message 0 has the role 'tool'; use system, user or assistant"),
        ([{"role": "user"}], "message 0 has content of type NoneType; give a string or a list of parts"),
        ([assistant("a")], "message 0 is the assistant's and the only one; put a user message before it"),
        ([user("a"), assistant("")], "message 1 (assistant) is empty; give it text, or leave it out"),
        ([user("a"), {"role": "assistant", "content": [image("a.png")]}],
         "message 1, part 0 is a picture in a message of the assistant"),
        ([user(image("a.png"))], "the conversation has no text; ask something about the picture"),
        ([user(image("a.png"), " \n")], "the conversation has no text; ask something about the picture"),
        ([user("a", {"type": "audio"})], "message 0, part 1 has the type 'audio'; use text"),
        ([user("a", {"type": "image_url", "image_url": "http://x/y.png"})],
         "message 0, part 1 is an image_url, which calibration data cannot hold; save the picture"),
        ([user("a", image(3))], "message 0, part 1 is an image with a number in place of a path; give its"),
        ([user("a", image(""))], "message 0, part 1 is an image with an empty path; give its path relative"),
        ([user("a", {"type": "image"})], "message 0, part 1 is an image with null in place of a path"),
        ([user("a", image("b.png"))], "message 0, part 1 names the picture b.png, which does not exist in "),
        ([user("a", image("."))], "message 0, part 1 names the picture ., which is not a file in "),
        ([user("a", image("x\0y"))], "message 0, part 1 has the path 'x\\x00y', which cannot be followed ("),
        ([user("a", image("x" * 9999))], f"message 0, part 1 has the path {'x' * 199}…, which cannot be"),
        ([user("a", image("/etc/passwd"))], "message 0, part 1 has the absolute path /etc/passwd; give"),
        ([user("a", image("C:\\x.png"))], "message 0, part 1 has the absolute path C:\\x.png; give a path"),
        ([user("a", image("../a.png"))], "message 0, part 1 has the path ../a.png, which leaves "),
        ([user("a", image("no/../a.png"))], "message 0, part 1 has the path no/../a.png, which leaves "),
        ([user("a", image("..\\a.png"))], "message 0, part 1 has the path ..\\a.png, which leaves "),
        ([user("a", image("calibration.jsonl"))], "calibration.jsonl is not a picture that pixedge can read"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named_with_the_reason(tmp_path, line, reason):
    message = error_of(write(tmp_path, ANSWERED, "", line))
    assert message.startswith(f"{tmp_path}/calibration.jsonl, line 3: {reason}"), message


def test_a_line_that_is_not_utf_8(tmp_path):
    (write(tmp_path) / "calibration.jsonl").write_bytes(b'\n{"messages": "\xe9t\xe9"}\n')
    message = error_of(tmp_path)
    assert message.startswith(
        f"{tmp_path}/calibration.jsonl, line 2: byte 15 of the line is 0xe9, which is not"
    )


def test_links_may_point_inside_the_folder_and_not_outside(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = write(tmp_path / "data", [user("a", image("link.png"))])
    (folder / "link.png").symlink_to(folder / "a.png")
    assert load_samples(folder)[0].messages[0]["content"][1]["image"] == folder / "a.png"
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert f"has the path link.png, which leaves {folder}" in error_of(folder)
    (folder / "link.png").unlink()
    (folder / "sub").symlink_to(tmp_path)
    write(folder, [user("a", image("sub/secret.png"))])
    assert f"has the path sub/secret.png, which leaves {folder}" in error_of(folder)


def test_pictures_that_cannot_be_read(tmp_path):
    folder = write(tmp_path, [user("a", image("b.png"))])
    where = f"{folder}/calibration.jsonl, line 1: b.png"
    (folder / "b.png").write_bytes(b"")
    assert error_of(folder).startswith(f"{where} is empty (0 bytes); give")
    (folder / "b.png").write_bytes(b"plain text")
    assert error_of(folder).startswith(f"{where} is not a picture that pixedge can read; give")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:20])
    assert error_of(folder).startswith(f"{where} is truncated: the PNG ends after 20 bytes")


def test_limits_hold_at_load(tmp_path):
    folder = write(tmp_path, ANSWERED)
    assert "line 1: a.png has 800 pixels (40 x 20) and the limit is 799" in error_of(
        folder, ImageLimits(max_pixels=799)
    )
    size = (folder / "a.png").stat().st_size
    assert f"a.png has {size} bytes and the limit is 10" in error_of(folder, ImageLimits(max_bytes=10))
    write(folder, [user("a", image("a.png"), image("a.png"))])
    assert "line 1: 2 pictures were given and the limit is 1" in error_of(folder, ImageLimits(max_images=1))


def test_a_large_picture_is_held_against_pixedges_limit_without_pillows_warning(tmp_path):
    folder = write(tmp_path, ANSWERED)
    Image.new("1", (10_000, 9_500)).save(folder / "a.png")  # 95 million pixels; Pillow warns from 89.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_samples(folder)) == 1


# --- prompts ------------------------------------------------------------------------------------------------


def test_an_answer_at_the_end_is_encoded_without_its_end_token(tmp_path, demo_tokenizer):
    talk = [*ANSWERED, {"role": "user", "content": "Really?"}, assistant("Yes.")]
    samples = load_samples(write(tmp_path, talk))
    [encoded] = encode_samples(samples, demo_tokenizer, 1000)
    ids = list(encoded.prompt.ids)
    assert encoded.name == "calibration.jsonl:1"
    assert ids[0] == BOS and ids.count(EOS) == 1 and ids[-1] != EOS
    assert demo_tokenizer.decode(ids[len(ids) - ids[::-1].index(INST_END) :]).strip() == "Yes."
    assert encoded.prompt.n_image_tokens == ids.count(IMG) == 3 * 2
    assert [pixels.shape for pixels in encoded.prompt.images] == [(3, 32, 48)]
    assert samples[0].messages[-1] == assistant("Yes."), "the sample itself is left as it was"


def test_a_question_at_the_end_and_a_prefix_of_its_own_are_fine(demo_tokenizer):
    samples = [
        Sample("question", [user("Why?")]),
        Sample("joined", [user("a"), user("b"), assistant("The star is yellow.")]),
        Sample("prefix", [user("Why?"), assistant("Be", prefix=True)]),
        Sample("answer", [user("Why?"), assistant("Be")]),
    ]
    question, joined, prefix, answer = (e.prompt.ids for e in encode_samples(samples, demo_tokenizer, 99))
    assert question[-1] == INST_END
    assert demo_tokenizer.decode(joined) == "a\n\nbThe star is yellow."
    assert prefix == answer == question + prefix[len(question) :]


def test_text_is_cut_at_the_end_and_pictures_never(demo_tokenizer):
    picture = Image.new("RGB", (64, 64))
    talk = [user(image(picture), "What is it?"), assistant("It is " + "very " * 50 + "dark.")]
    [whole] = encode_samples([Sample("x", talk)], demo_tokenizer, 10_000)
    pictures_end = whole.prompt.ids.index(IMG_END) + 1
    for limit in (pictures_end, pictures_end + 10, len(whole.prompt.ids) - 1, len(whole.prompt.ids)):
        [cut] = encode_samples([Sample("x", talk)], demo_tokenizer, limit)
        assert cut.prompt.ids == whole.prompt.ids[:limit]
        assert cut.prompt.n_image_tokens == 16 and len(cut.prompt.images) == 1
    with pytest.raises(CalibrationError) as caught:
        encode_samples([Sample("x", talk)], demo_tokenizer, pictures_end - 1)
    assert str(caught.value).startswith(
        f"x has {pictures_end} tokens to the end of its last picture and the limit is {pictures_end - 1}; use"
    )
    [text] = encode_samples([Sample("t", [user("word " * 99)])], demo_tokenizer, 7)
    assert len(text.prompt.ids) == 7


def test_samples_that_cannot_be_encoded_are_named(tmp_path, demo_tokenizer):
    with pytest.raises(CalibrationError, match=r"^no calibration samples were given; give"):
        encode_samples([], demo_tokenizer, 99)
    with pytest.raises(CalibrationError, match=r"^x: messages is empty; give at least one user message$"):
        encode_samples([Sample("x", [])], demo_tokenizer, 99)
    folder = write(tmp_path, ANSWERED)
    Image.effect_noise((400, 200), 90).save(folder / "a.jpg")
    write(folder, [user("a", image("a.jpg"))])
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])
    samples = load_samples(folder)  # its header is whole
    with pytest.raises(CalibrationError, match=r"^calibration.jsonl:1: .*a\.jpg is truncated"):
        encode_samples(samples, demo_tokenizer, 999)


# --- division -----------------------------------------------------------------------------------------------


def kinds(pattern: str) -> list[Sample]:
    return [
        Sample(str(i), [user("a", image("x")) if letter == "p" else user("a")])
        for i, letter in enumerate(pattern)
    ]


@pytest.mark.parametrize(
    "pattern", ["pptt", "pt" * 50, "p" * 30 + "t" * 10, "tpp" * 7, "p" * 4, "t" * 9, "pttt"]
)
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_split_gives_both_kinds_to_both_sides(pattern, share):
    samples = kinds(pattern)
    kept, held = split(samples, share)
    assert sorted(kept + held, key=lambda s: int(s.name)) == samples
    assert split(samples, share) == (kept, held)
    for side in (kept, held):
        assert [int(s.name) for s in side] == sorted(int(s.name) for s in side)
    for kind in (True, False):
        total = sum(s.has_picture == kind for s in samples)
        part = sum(s.has_picture == kind for s in held)
        assert sum(s.has_picture == kind for s in kept) >= min(total, 1)
        if total > 1:
            assert 1 <= part < total and abs(part - share * total) <= 1


def test_split_spreads_what_is_held_out():
    _, held = split(kinds("t" * 20))
    assert [int(s.name) for s in held] == [4, 9, 14, 19]


def test_too_few_samples_to_split():
    with pytest.raises(CalibrationError) as caught:
        split(kinds("ptp"))
    assert str(caught.value).startswith("3 calibration samples were given and at least 4 are needed")


# --- default samples ----------------------------------------------------------------------------------------


def comparable(samples: list[Sample]) -> list[str]:
    return [
        repr(json.dumps(sample.messages, default=lambda i: f"{i.mode} {i.size} {hash(i.tobytes())}"))
        for sample in samples
    ]


def test_default_samples_follow_from_the_seed_and_their_place():
    samples = comparable(default_samples(3, 14))
    assert samples == comparable(default_samples(3, 14))
    assert samples[:10] == comparable(default_samples(3, 10))
    other = comparable(default_samples(4, 14))
    assert all(a != b for a, b in zip(samples, other, strict=True))
    assert len(set(samples)) == 14


def test_default_samples_mix_pictures_and_text():
    samples = default_samples(0, 72)
    assert [sample.has_picture for sample in samples] == [True, False] * 36
    pictures = [
        [part["image"] for part in sample.messages[0]["content"] if part["type"] == "image"]
        for sample in samples[::2]
    ]
    assert {len(group) for group in pictures} == {1, 2}
    sizes = [picture.size for group in pictures for picture in group]
    assert {max(size) for size in sizes} >= {64, 1024} and max(map(max, sizes)) == 1024
    assert any(width > height for width, height in sizes) and any(h > w for w, h in sizes)
    assert len({sample.messages[-1]["content"] for sample in samples}) > 60
    assert {len(sample.messages) for sample in samples} >= {2, 4, 6}


def test_default_samples_fit_the_real_tokenizer():
    """Counted with Pixtral-12B's Tekken data and geometry."""
    tekken = Path(mistral_common.__path__[0]) / "data" / "tekken_240911.json"
    samples = default_samples(0, 36)
    encoded = encode_samples(samples, Tokenizer(tekken, vision(1024)), 4096)
    lengths = [len(sample.prompt.ids) for sample in encoded]
    image_tokens = sum(sample.prompt.n_image_tokens for sample in encoded)
    assert max(lengths) < 4096, "nothing was cut"
    assert all(50 <= length <= 1200 for length in lengths[1::2])
    assert 6_000 < image_tokens < 16_000
    assert 3_000 < sum(lengths) - image_tokens < 12_000
    kept, held = split(samples)
    assert {sample.has_picture for sample in kept} == {sample.has_picture for sample in held} == {True, False}


# --- the demo's folder and the documentation ----------------------------------------------------------------


def test_the_demos_folder(demo_tokenizer):
    folder = DEMO / "calibration"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 350_000
    samples = load_samples(folder)
    assert len(samples) == 96
    assert sum(not sample.has_picture for sample in samples) == 12
    encoded = encode_samples(samples, demo_tokenizer, 4096)
    assert {len(sample.prompt.images) for sample in encoded} == {0, 1, 2}
    assert {len(sample.messages) for sample in samples} == {2, 4, 6, 8}
    first = [sample.messages[0]["content"][0]["type"] for sample in samples if sample.has_picture]
    assert set(first) == {"text", "image"}
    used = {
        part["image"]
        for s in samples
        if s.has_picture
        for part in s.messages[0]["content"]
        if "image" in part
    }
    assert used == {file.resolve() for file in files if file.suffix == ".png"}


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_documented_example_loads(tmp_path, monkeypatch, capsys, demo_tokenizer):
    folder = tmp_path / "my-samples"
    (folder / "pictures").mkdir(parents=True)
    [lines] = blocks("jsonl")
    (folder / "calibration.jsonl").write_text(lines, encoding="utf-8")
    for name in re.findall(r'"image": "([^"]+)"', lines):
        Image.new("RGB", (96, 64), "white").save(folder / name)
    monkeypatch.chdir(tmp_path)
    [program] = blocks("python")
    exec(compile(program, "docs/calibration.md", "exec"), {})
    assert capsys.readouterr().out == "3 conversations, 2 with pictures\n"
    encoded = encode_samples(load_samples(folder), demo_tokenizer, 4096)
    assert [len(sample.prompt.images) for sample in encoded] == [1, 2, 0]


def test_the_documented_error_is_what_is_said(tmp_path):
    folder = tmp_path / "my-samples"
    (folder / "pictures").mkdir(parents=True)
    [lines] = blocks("jsonl")
    (folder / "calibration.jsonl").write_text(lines, encoding="utf-8")
    Image.new("RGB", (96, 64), "white").save(folder / "pictures" / "receipt.jpg")
    [shown] = [block.strip() for block in blocks("") if block.startswith("pixedge: ")]
    said = error_of(folder).replace(f"{folder}/calibration", "my-samples/calibration")
    assert f"pixedge: {said}" == shown.replace("/home/ada/my-samples", str(folder))
