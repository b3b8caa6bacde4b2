"""Ids, pictures and text against mistral_common, and every way in which a conversation can be wrong."""

import base64
import io
import json
import socket
import textwrap
from pathlib import Path
from urllib.parse import quote

import mistral_common
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from PIL import Image

from pixedge.config import VisionConfig
from pixedge.errors import CheckpointError, ImageError, MessageError, UsageError
from pixedge.image import ImageLimits, to_pixels
from pixedge.messages import decode_data_url
from pixedge.tokenizer import TextStream, Tokenizer
from pixedge_export.tekken import cut_tekken

TEKKEN = f"{mistral_common.__path__[0]}/data/tekken_240911.json"
N_SPECIAL, N_RANKS = 1000, 2072
BOS, EOS, INST, END_INST, IMG, BREAK, END = 1, 2, 3, 4, 10, 12, 13


def vision(**changes) -> VisionConfig:
    values = {
        "dim": 64,
        "n_layers": 1,
        "n_heads": 4,
        "ffn_dim": 128,
        "n_channels": 3,
        "patch_size": 16,
        "image_size": 128,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "image_token_id": IMG,
        "image_break_token_id": BREAK,
        "image_end_token_id": END,
    }
    return VisionConfig(**values | changes)


@pytest.fixture(scope="session")
def tekken_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("cut") / "tekken.json"
    cut_tekken(Path(TEKKEN), N_RANKS, file, image_patch_size=16, max_image_size=128)
    return file


@pytest.fixture(scope="session")
def tokenizer(tekken_file):
    return Tokenizer(tekken_file, vision(), vocab_size=N_SPECIAL + N_RANKS)


@pytest.fixture(scope="session")
def judge(tekken_file):
    """mistral_common alone, straight from the file."""
    return MistralTokenizer.from_file(tekken_file)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def user(*parts, **fields) -> dict:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": content, **fields}


def text_ids(judge, text: str) -> list[int]:
    return judge.instruct_tokenizer.tokenizer.encode(text, bos=False, eos=False)


# --- prompts


def test_the_file_cut_to_2072_ranks_has_3072_ids(tokenizer):
    assert tokenizer.vocab_size == 3072
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (EOS, {EOS})
    ids = tokenizer.encode([user("What is left of the star?")]).ids
    assert max(ids) < 3072
    assert tokenizer.decode(ids) == "What is left of the star?"


def test_one_picture_in_full(tokenizer, judge):
    # 40 x 20 pixels are 3 x 2 patches of 16.
    prompt = tokenizer.encode([user(picture(40, 20), "hi")])
    grid = [IMG] * 3 + [BREAK] + [IMG] * 3 + [END]
    assert list(prompt.ids) == [BOS, INST, *grid, *text_ids(judge, "hi"), END_INST]
    assert prompt.n_image_tokens == 6
    assert [image.shape for image in prompt.images] == [(3, 32, 48)]
    assert prompt.images[0].dtype == np.float32
    assert prompt.images[0].flags.c_contiguous


sides = st.one_of(st.integers(1, 40), st.integers(120, 300), st.just(2000))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), st.booleans())
def test_odd_sizes_equal_mistral_common(tokenizer, judge, sizes, text_between):
    images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    parts = [part for image in images for part in ((image, "and") if text_between else (image,))]
    prompt = tokenizer.encode([user(*parts)])
    chunks = [TextChunk(text=p) if isinstance(p, str) else ImageChunk(image=p) for p in parts]
    expected = judge.encode_chat_completion(ChatCompletionRequest(messages=[UserMessage(content=chunks)]))
    assert list(prompt.ids) == expected.tokens
    assert prompt.n_image_tokens == expected.tokens.count(IMG)
    for ours, theirs, image in zip(prompt.images, expected.images, images, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, to_pixels(image, tokenizer.vision))


def test_the_grid_is_the_models_not_the_files(tekken_file, judge):
    # The file says patches of 16 and 128 pixels at most; this model has patches of 8 and 64 pixels at most.
    small = Tokenizer(tekken_file, vision(patch_size=8, image_size=64))
    prompt = small.encode([user(picture(128, 64))])
    assert prompt.images[0].shape == (3, 32, 64)
    assert prompt.n_image_tokens == 4 * 8


def test_max_image_size_lowers_the_models_limit_and_never_raises_it(tokenizer):
    message = [user(picture(200, 100))]
    assert tokenizer.encode(message).images[0].shape == (3, 64, 128)
    assert tokenizer.encode(message, max_image_size=64).images[0].shape == (3, 32, 64)
    assert tokenizer.encode(message, max_image_size=4096).images[0].shape == (3, 64, 128)
    assert tokenizer.encode(message).images[0].shape == (3, 64, 128)
    with pytest.raises(UsageError, match="max_image_size is 0; give at least 1 pixel"):
        tokenizer.encode(message, max_image_size=0)


def test_order_of_pictures_and_text_is_kept(tokenizer, judge):
    one, two = picture(16, 16, 1), picture(32, 16, 2)
    prompt = tokenizer.encode([user("first", one, "second", two, "which?")])
    words = [text_ids(judge, word) for word in ("first", "second", "which?")]
    grid_one, grid_two = [IMG, END], [IMG, IMG, END]
    assert list(prompt.ids) == [BOS, INST, *words[0], *grid_one, *words[1], *grid_two, *words[2], END_INST]
    assert [image.shape[2] for image in prompt.images] == [16, 32]


def test_a_single_picture_after_text_moves_to_the_front_as_in_the_reference(tokenizer):
    before, after = user(picture(20, 20), "what is it?"), user("what is it?", picture(20, 20))
    assert tokenizer.encode([before]).ids == tokenizer.encode([after]).ids


def test_system_prompt_opens_the_last_user_message(tokenizer, judge):
    talk = [
        {"role": "system", "content": "Be brief."},
        user(picture(16, 16), "one?"),
        {"role": "assistant", "content": "yes"},
        user("two?"),
    ]
    ids = list(tokenizer.encode(talk).ids)
    first = [INST, IMG, END, *text_ids(judge, "one?"), END_INST]
    answer = [*text_ids(judge, "yes"), EOS]
    assert ids == [BOS, *first, *answer, INST, *text_ids(judge, "Be brief.\n\ntwo?"), END_INST]


def test_a_prefix_is_left_open(tokenizer, judge):
    ids = tokenizer.encode([user("hi"), {"role": "assistant", "content": "It is", "prefix": True}]).ids
    assert list(ids)[-len(text_ids(judge, "It is")) :] == text_ids(judge, "It is")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(
        st.sampled_from(["[IMG]", "[INST]", "[/INST]", "</s>", "<s>", "[IMG_END]", " ", "x"]), min_size=1
    )
)
def test_control_tokens_typed_by_a_user_stay_text(tokenizer, pieces):
    text = "".join(pieces)
    if text.strip(" "):
        prompt = tokenizer.encode([{"role": "user", "content": text}])
        assert prompt.ids[:2] == (BOS, INST)
        assert prompt.ids[-1] == END_INST
        assert not tokenizer.special_ids & set(prompt.ids[2:-1])
        assert tokenizer.decode(prompt.ids) == text
        assert prompt.images == ()


def test_every_spelling_of_a_message_gives_the_same_ids(tokenizer, tmp_path):
    image = picture(30, 30)
    path = tmp_path / "a.png"
    path.write_bytes(png(image))
    url = data_url(png(image))
    expected = tokenizer.encode([{"role": "system", "content": "s"}, user(image, "q")])
    url_parts = [
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_url", "image_url": url},
    ]
    spellings = [user(path, "q"), user(png(image), "q"), user(image, "", "q", name=None)]
    spellings += [{"role": "user", "content": [part, {"type": "text", "text": "q"}]} for part in url_parts]
    chunks = [ImageChunk(image=image), ImageURLChunk(image_url=url)]
    spellings += [UserMessage(content=[chunk, TextChunk(text="q")]) for chunk in chunks]
    for spelling in spellings:
        for system in (
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            SystemMessage(content="s"),
        ):
            prompt = tokenizer.encode([system, spelling])
            assert prompt.ids == expected.ids
            np.testing.assert_array_equal(prompt.images[0], expected.images[0])


def test_pil_images_are_upright_and_over_white(tokenizer):
    wide = picture(32, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    wide.save(buffer, "PNG", exif=exif)
    turned = tokenizer.encode([user(Image.open(buffer))]).images[0]
    assert turned.shape == (3, 32, 16)
    np.testing.assert_array_equal(turned, tokenizer.encode([user(buffer.getvalue())]).images[0])

    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    white = Image.new("RGB", (16, 16), "white")
    for image in (clear, Image.new("L", (16, 16), 255), Image.new("CMYK", (16, 16), (0, 0, 0, 0))):
        pixels = tokenizer.encode([user(image)]).images[0]
        np.testing.assert_array_equal(pixels, tokenizer.encode([user(white)]).images[0])


# --- turns in any order

WORDS = st.sampled_from(["", "a", " b ", "\n\n", "[INST]"])


@st.composite
def any_turns(draw):
    """Messages as dicts, and the same as mistral_common's objects."""
    dicts, objects = [], []
    for at in range(length := draw(st.integers(1, 6))):
        role = draw(st.sampled_from(["user", "user", "assistant", "system"]))
        part = WORDS | st.integers(0, 3) if role == "user" else WORDS
        content = draw(WORDS | st.lists(part, max_size=3))
        parts = [picture(16, 16, each) if isinstance(each, int) else each for each in content]
        chunks = [TextChunk(text=each) if isinstance(each, str) else ImageChunk(image=each) for each in parts]
        # mostly as it must be, or hardly any conversation would end with the assistant
        prefix = role == "assistant" and (at == length - 1) is (draw(st.integers(0, 9)) > 0)
        message = user(*parts, role=role, **{"prefix": True} if prefix else {})
        kind = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}[role]
        more = {"prefix": True} if prefix else {}
        dicts.append(message | {"content": content} if isinstance(content, str) else message)
        objects.append(kind(content=content if isinstance(content, str) else chunks, **more))
    return dicts, objects


@pytest.mark.parametrize("version", ["v3", "v7", "v13"])
def test_turns_in_any_order_are_those_of_mistral_common(tekken_file, tmp_path, version):
    """Messages of one role in a row, an assistant that begins, empty ones: joined or refused alike."""
    file = tekken_file if version == "v3" else other_version(tekken_file, tmp_path, version)
    ours, judge = Tokenizer(file, vision()), MistralTokenizer.from_file(file)
    judged = {True: 0, False: 0}

    @settings(deadline=None, max_examples=150, database=None, derandomize=True)
    @given(any_turns())
    def each(turns):
        _, objects = turns
        try:
            expected = judge.encode_chat_completion(ChatCompletionRequest(messages=objects))
        except MistralCommonException:
            judged[False] += 1
            for spelling in turns:
                with pytest.raises(MessageError):
                    ours.encode(spelling)
            return
        judged[True] += 1
        for spelling in turns:
            prompt = ours.encode(spelling)
            assert list(prompt.ids) == expected.tokens
            for found, wanted in zip(prompt.images, expected.images, strict=True):
                np.testing.assert_array_equal(found, wanted)

    each()
    assert min(judged.values()) > 20


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        # the conversation of Pixtral's model card: an afterthought, then its picture
        ([user("a"), {"role": "assistant", "content": "b"}, user("More."), user("c")], "a" "b" "More.\n\nc"),
        ([{"role": "assistant", "content": "Hello!"}, user("a")], "Hello!" "a"),
        ([user("a"), *[{"role": "assistant", "content": each} for each in "bc"], user("d")], "ab\n\ncd"),
        ([user("a"), {"role": "developer", "content": "Be brief."}, user("b")], "a" "Be brief.\n\nb"),
        ([user("a"), {"role": "assistant", "content": None, "refusal": "No."}, user("b")], "aNo.b"),
        (
            [user("a"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, user("b")],
            "aNo.b",
        ),
    ],
)  # fmt: skip
def test_turns_that_people_send(tokenizer, messages, text):
    assert tokenizer.decode(tokenizer.encode(messages).ids) == text


MORE = [
    {"name": "ann"}, {"id": "m1"}, {"id": 1947269257}, {"timestamp": 1}, {"timestamp": 10**400},
    {"opts": {"visible": False}}, {"annotations": [{"type": "url_citation"}]}, {"tool_calls": []},
    {"tool_calls": None, "function_call": None, "audio": None, "refusal": None}, {"reasoning_content": ""},
    {"reasoning_details": []}, {"partial": False}, {"anything": {}},
]  # fmt: skip


@pytest.mark.parametrize("more", MORE, ids=map(str, MORE))
def test_fields_that_say_nothing_to_the_model(tokenizer, more):
    """Clients send back messages as they keep them, and what an answer brought beside its text."""
    plain = [HI, OK, HI]
    assert tokenizer.encode([message | more for message in plain]).ids == tokenizer.encode(plain).ids


# --- conversations that are refused

HI = {"role": "user", "content": "hi"}
OK = {"role": "assistant", "content": "ok"}
BE = {"role": "system", "content": "be"}
PICTURE = {"type": "image", "image": b"x"}


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages is empty; give at least one user message"),
        ("hi", "messages is a str; give a list"),
        (HI, "messages is a dict; give a list"),
        ([OK], "message 0 is the last and the assistant's; add a user message, or set 'prefix': True"),
        ([OK | {"prefix": True}], "message 0 is the assistant's and the only one; put a user message before"),
        ([HI, OK, BE, HI], "message 2 is a system message after the assistant's; put it before a user messa"),
        ([HI, OK], "message 1 is the last and the assistant's; add a user message, or set 'prefix': True"),
        ([HI, OK | {"prefix": True}, HI], "message 1 has prefix set but is not the last"),
        ([HI | {"prefix": True}], "message 0 has prefix set, but only an assistant message"),
        ([HI, OK | {"prefix": "yes"}], "message 1 has prefix 'yes'; use True or False"),
        ([{"role": "tool", "content": "x"}], "message 0 has the role 'tool'; use system, user or assistant"),
        ([{"content": "x"}], "message 0 has the role None"),
        ([{"role": "user"}], "message 0 has content of type NoneType; give a string or a list of parts"),
        ([{"role": "user", "content": {}}], "message 0 has content of type dict"),
        ([HI, {"role": "assistant", "content": ""}, HI], r"message 1 \(assistant\) is empty"),
        ([HI, {"role": "assistant", "content": None}, HI], r"message 1 \(assistant\) is empty"),
        ([{"role": "assistant", "content": [{"type": "text", "text": ""}]}, HI], "message 0 .* is empty"),
        ([HI, OK | {"tool_calls": [{}]}, HI], "message 1 has the field 'tool_calls', which pixedge does not"),
        ([HI, OK | {"reasoning_content": "hm"}, HI], "message 1 has the field 'reasoning_content', which"),
        ([HI | {"weigth": 0.5}], "message 0 has the field 'weigth', which pixedge does not support"),
        ([HI, OK, {"role": "function", "content": "x"}], "message 2 has the role 'function'; use system"),
        (["hi"], "message 0 is a str; use a dict with role and content"),
        ([{"role": "user", "content": [3]}], "message 0, part 0 is a int; use"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "part 0 has the type 'audio'; use text, image"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 0 has text of type NoneType; give"),
        ([HI | {"content": "a\ud800"}], r"part 0 has the unpaired surrogate U\+D800 at character 1"),
        ([user("a", b"")], "the picture of message 0, part 1 is empty"),
        ([user("a", "b"), OK | {"content": [PICTURE]}], "message 1, part 0 is a picture in a message"),
        ([BE | {"content": [PICTURE]}, HI], "message 0, part 0 is a picture in a message of the system"),
        ([HI | {"content": [{"type": "image", "image": "/etc/hosts"}]}], "an image of type str; give"),
        ([{"role": "user", "content": [{"type": "image"}]}], "an image of type NoneType; give a PIL image"),
        ([HI | {"content": [{"type": "image_url"}]}], "an image_url of type NoneType; give a data: URL"),
    ],
)  # fmt: skip
def test_wrong_conversations_are_one_sentence(tokenizer, messages, sentence):
    with pytest.raises((MessageError, ImageError), match=sentence) as caught:
        tokenizer.encode(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (
            "http://127.0.0.1:9/a.png",
            "points to 'http://127.0.0.1:9/a.png', which pixedge does not open; fetch",
        ),
        ("https://example.com/" + "a" * 100, "which pixedge does not open"),
        ("file:///etc/hosts", "points to 'file:///etc/hosts', which pixedge does not open"),
        ("FILE:///etc/hosts", "which pixedge does not open"),
        ("/etc/hosts", "which pixedge does not open"),
        ("iVBORw0KGgo", "in front of base64 put data:image/png;base64,"),
        ("data:image/png,abc", "a data: URL without ;base64,"),
        ("data:image/png;base64", "a data: URL without ;base64,"),
        ("data:image/png;base64,a*b=", "a data: URL that is not valid base64"),
        ("data:image/png;base64,aGVs=bG8", "a data: URL that is not valid base64"),
        ("data:image/png;base64,aGVsb", "a data: URL that is not valid base64"),
        ("data:image/png;base64,%ZZGVs", "a data: URL that is not valid base64"),
        ("data:image/png;base64,é", "a data: URL that is not valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,aGVsbG8=", "is not a picture"),
    ],
)
def test_addresses_are_never_opened(tokenizer, url, sentence, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    for message in (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
        UserMessage(content=[ImageURLChunk(image_url=url)]),
    ):
        with pytest.raises((MessageError, ImageError), match=sentence):
            tokenizer.encode([message])


SPELLINGS = {
    "white space around": lambda url: f" \n{url}\r\n",
    "white space after the comma": lambda url: url.replace(",", ", "),
    "lines of 76 characters": lambda url: url[:22] + "\n".join(textwrap.wrap(url[22:], 76)),
    "lines as in mail": lambda url: url[:22] + "\r\n".join(textwrap.wrap(url[22:], 76)) + "\r\n",
    "no padding": lambda url: url.rstrip("="),
    "percent-encoded": lambda url: url[:22] + quote(url[22:], safe=""),
    "percent-encoded in small letters": lambda url: url[:22] + quote(url[22:], safe="").replace("%2B", "%2b"),
    "percent-encoded lines": lambda url: url[:22] + quote("\r\n".join(textwrap.wrap(url[22:], 76)), safe=""),
    "every character percent-encoded": lambda url: url[:22] + "".join(f"%{ord(c):02x}" for c in url[22:]),
    "one letter percent-encoded": lambda url: url[:30] + f"%{ord(url[30]):02X}" + url[31:],
    "the alphabet for addresses": lambda url: url[:22] + url[22:].translate(str.maketrans("+/", "-_")),
    "capitals and blanks in front": lambda url: "DATA:image/png;charset=x; BASE64" + url[21:],
    "no type": lambda url: "data:;base64" + url[21:],
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_base64(tokenizer, spell):
    """What browsers, mail programs and other servers write and read."""
    for seed in range(3):
        image = picture(16, 16, seed)
        data = png(image)
        data += b"\0" * (seed - len(data) % 3)  # each length of padding
        url = spell(data_url(data))
        part = {"type": "image_url", "image_url": {"url": url}}
        prompt = tokenizer.encode([{"role": "user", "content": [part]}])
        np.testing.assert_array_equal(prompt.images[0], tokenizer.encode([user(image)]).images[0])
        assert decode_data_url("it", url.strip(), len(data)) == data
        with pytest.raises(ImageError, match=f"has {len(data):,} bytes and the limit is {len(data) - 1:,}"):
            decode_data_url("it", url.strip(), len(data) - 1)


def test_pictures_are_counted_before_they_are_decoded(tokenizer):
    limits = ImageLimits(max_images=2)
    tokenizer.encode([user(picture(16, 16), picture(16, 16))], limits=limits)
    with pytest.raises(ImageError, match="limit is 2"):
        tokenizer.encode([user(picture(16, 16), picture(16, 16), b"not a picture")], limits=limits)


def test_pil_images_obey_the_limits(tokenizer):
    with pytest.raises(ImageError, match="has 10,000 pixels and the limit is 9,999"):
        tokenizer.encode([user(picture(100, 100))], limits=ImageLimits(max_pixels=9999))
    with pytest.raises(ImageError, match="is 0 x 5 pixels"):
        tokenizer.encode([user(Image.new("RGB", (0, 5)))])
    with pytest.raises(ImageError, match="has the mode I;16, whose range is not known"):
        tokenizer.encode([user(Image.new("I;16", (16, 16)))])


# --- text


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.lists(st.integers(0, N_SPECIAL + N_RANKS - 1) | st.integers(1120, 1260) | st.sampled_from([1, 2, 10]))
)
def test_streamed_text_equals_decoded_text(tokenizer, judge, ids):
    # Ids 1128 to 1255 are the single bytes from 0x80: together they make and break UTF-8.
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids) == judge.decode(list(ids))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.text())
def test_text_streams_in_whole_characters(tokenizer, judge, text):
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in text_ids(judge, text)]
    assert "".join(pieces) == text
    assert stream.flush() == ""


def test_half_a_character_waits(tokenizer):
    stream = TextStream(tokenizer)
    assert [stream.push(N_SPECIAL + byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert stream.push(N_SPECIAL + 0xC3) == ""
    assert stream.flush() == "\ufffd"


# --- files


def other_version(source, folder, version: str):
    """Give the cut file another version; from 7 on the special tokens stand in the file."""
    names = [token["token_str"] for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    names += ["[ARGS]", "[CALL_ID]"]
    data = json.loads(source.read_text())
    data["config"]["version"] = version
    data["special_tokens"] = [
        {"rank": rank, "token_str": str(name), "is_control": True} for rank, name in enumerate(names)
    ]
    file = folder / "tekken.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize("version", ["v7", "v11", "v13"])
def test_later_versions_keep_the_system_prompt_apart(tekken_file, tmp_path, judge, version):
    tokenizer = Tokenizer(other_version(tekken_file, tmp_path, version), vision())
    ids = list(tokenizer.encode([BE, user(picture(16, 16), "hi")]).ids)
    system = [17, *text_ids(judge, "be"), 18]
    assert ids == [BOS, *system, INST, IMG, END, *text_ids(judge, "hi"), END_INST]


def test_missing_and_misnamed_files(tmp_path, tekken_file):
    with pytest.raises(CheckpointError, match=r"tekken.json is missing; copy the tekken.json"):
        Tokenizer(tmp_path / "tekken.json", vision())
    with pytest.raises(CheckpointError, match="is missing"):
        Tokenizer(tmp_path, vision())
    (tmp_path / "tokenizer.json").write_bytes(tekken_file.read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not named like a Tekken file"):
        Tokenizer(tmp_path / "tokenizer.json", vision())


def without(data: dict, *path: str) -> dict:
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: {},
        lambda data: [],
        lambda data: without(data, "config", "pattern"),
        lambda data: without(data, "vocab"),
        lambda data: data | {"vocab": data["vocab"][:-1]},
        lambda data: data | {"vocab": data["vocab"][::-1]},
        lambda data: data | {"vocab": [entry | {"token_bytes": "%"} for entry in data["vocab"]]},
        lambda data: data | {"config": data["config"] | {"version": "v99"}},
        lambda data: data | {"config": data["config"] | {"pattern": "("}},
        lambda data: data | {"config": data["config"] | {"default_vocab_size": "many"}},
    ],
)
def test_damaged_files_are_one_short_sentence(tekken_file, tmp_path, damage):
    file = tmp_path / "tekken.json"
    file.write_text(json.dumps(damage(json.loads(tekken_file.read_text()))))
    with pytest.raises(CheckpointError, match=r"is not (a complete Tekken file|valid JSON)") as caught:
        Tokenizer(file, vision())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"config": {'])
def test_files_that_are_not_json(tmp_path, content):
    file = tmp_path / "tekken.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not (a complete Tekken file|valid JSON)"):
        Tokenizer(file, vision())


def test_truncated_file(tekken_file, tmp_path):
    file = tmp_path / "tekken.json"
    file.write_bytes(tekken_file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is not (a complete Tekken file|valid JSON)"):
        Tokenizer(file, vision())


def test_ids_must_be_the_models(tekken_file):
    with pytest.raises(CheckpointError, match="vocabulary of 3072 tokens, but the model has 131072"):
        Tokenizer(tekken_file, vision(), vocab_size=131072)
    with pytest.raises(CheckpointError, match=r"has the id 12 for \[IMG_BREAK\], but the model expects 14"):
        Tokenizer(tekken_file, vision(image_break_token_id=14))


def test_merged_patches_are_refused(tekken_file, tmp_path):
    data = json.loads(tekken_file.read_text())
    data["image"]["spatial_merge_size"] = 2
    file = tmp_path / "tekken.json"
    file.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="merges patches 2 by 2; pixedge supports spatial_merge_size 1"):
        Tokenizer(file, vision())


def test_a_run_of_blanks_that_the_tokenizer_gives_up_on(tokenizer):
    with pytest.raises(MessageError, match="a run of blanks that is too long"):
        tokenizer.encode([{"role": "user", "content": " " * 2_000_000}])
