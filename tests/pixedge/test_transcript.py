"""Conversations written and read again."""

import dataclasses
import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixedge.answer_format import AnswerFormat
from pixedge.conversation import Attachment, Conversation, Exchange
from pixedge.errors import ImageError, MessageError, PixedgeError, UsageError
from pixedge.sampling import SamplingParams
from pixedge.transcript import is_transcript, read_transcript, write_transcript

PICTURE = Image.new("RGB", (4, 4))
PARAMS = SamplingParams(temperature=0.2, stop=("END",), seed=3, answer_format=AnswerFormat.from_regex("a+"))


def attach(source: str) -> Attachment:
    return Attachment(source, f"hash of {source.rpartition('/')[2]}", (PICTURE,))


def content(conversation: Conversation) -> list:
    rows = [
        (each.question, each.answer, [(one.source, one.hash) for one in each.attachments])
        for each in conversation.exchanges
    ]
    return [conversation.system, rows]


def talk(folder) -> Conversation:
    pictures = (attach(str(folder / "a b.png")), attach("https://example.com/é.png"), attach("/else/c.png"))
    return Conversation(
        "Be brief.", [Exchange("What is it?\nSay!", pictures, "É \u2028 😀"), Exchange("And?", (), "No.")]
    )


def test_what_is_written_is_read_again(tmp_path):
    file = tmp_path / "talk.json"
    write_transcript(file, talk(tmp_path), PARAMS, "models/x")
    found, params = read_transcript(file, attach)
    assert content(found) == content(talk(tmp_path))
    assert params == PARAMS
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]  # nothing is left beside it
    write_transcript(file, Conversation(), SamplingParams(), "models/x")  # its own kind is replaced
    found, params = read_transcript(file, attach)
    assert content(found) == [None, []] and params == SamplingParams()


def test_the_file_is_readable_and_moves_with_its_pictures(tmp_path):
    file = tmp_path / "old" / "talk.json"
    file.parent.mkdir()
    write_transcript(file, talk(file.parent), PARAMS, "models/x")
    text = file.read_text(encoding="utf-8")
    assert '"É \u2028 😀"' in text
    record = json.loads(text)
    assert list(record) == ["pixedge_chat", "model", "system", "settings", "turns"]
    assert record["turns"][0] == {
        "role": "user",
        "pictures": [
            {"source": "a b.png", "hash": "hash of a b.png"},
            {"source": "https://example.com/é.png", "hash": "hash of é.png"},
            {"source": "/else/c.png", "hash": "hash of c.png"},
        ],
        "text": "What is it?\nSay!",
    }
    assert "pictures" not in record["turns"][2]
    file.parent.rename(tmp_path / "new")
    found, _ = read_transcript(tmp_path / "new" / "talk.json", attach)
    assert found.exchanges[0].attachments[0].source == str(tmp_path / "new" / "a b.png")


def test_a_picture_that_changed_is_an_error(tmp_path):
    file = tmp_path / "talk.json"
    write_transcript(file, talk(tmp_path), PARAMS, "models/x")
    changed = lambda source: dataclasses.replace(attach(source), hash="another")  # noqa: E731
    with pytest.raises(ImageError, match=r"a b\.png is not what it was"):
        read_transcript(file, changed)


def test_another_file_is_not_overwritten(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text('{"mine": 1}')
    with pytest.raises(UsageError, match=r"notes\.json exists"):
        write_transcript(file, Conversation(), SamplingParams(), "m")
    assert file.read_text() == '{"mine": 1}' and not is_transcript(file)


def whole(**changes) -> dict:
    turns = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}]
    return {"pixedge_chat": 1, "model": "m", "system": None, "settings": {}, "turns": turns} | changes


def turns(asked: object, answered: object = None) -> dict:
    return whole(turns=[asked, answered or {"role": "assistant", "text": "b"}])


@pytest.mark.parametrize(
    "record, named",
    [
        ("", "not JSON"),
        ([], "not a conversation"),
        ({"messages": []}, "not a conversation"),
        (whole(pixedge_chat=2), "version 2"),
        (whole(turns=None), "list of turns"),
        (turns({"role": "system", "text": "a"}), "a turn 0 that is not the user's"),
        (turns({"role": "user", "text": "a"}, {"role": ["user"]}), "a turn 1 that is not the user's"),
        (turns("a"), "the user's"),
        (turns({"role": "user"}), "no text in turn 0"),
        (turns({"role": "user", "text": "a"}, {"role": "assistant", "text": ""}), "no text in turn 1"),
        (turns({"role": "user", "text": "a", "pictures": {}}), "no list"),
        (turns({"role": "user", "text": "a", "pictures": ["x.png"]}), "source and hash"),
        (turns({"role": "user", "text": "a", "pictures": [{"source": "x.png"}]}), "source and hash"),
        (whole(system=3), "system"),
        (whole(settings={"heat": 3}), "settings"),
        (whole(settings=[]), "settings"),
        (whole(settings={"temperature": -1}), "temperature"),
        (whole(settings={"answer_format": {"kind": "schema", "text": "{"}}), "schema"),
        (whole(settings={"answer_format": {"kind": "poem", "text": "{"}}), "poem"),
        (whole(settings={"answer_format": 3}), "setting"),
    ],
)
def test_a_file_that_is_no_conversation_is_a_sentence(tmp_path, record, named):
    file = tmp_path / "talk.json"
    file.write_text(record if isinstance(record, str) else json.dumps(record))
    with pytest.raises(MessageError) as refusal:
        read_transcript(file, attach)
    assert named in str(refusal.value) and "\n" not in str(refusal.value)


def test_turns_need_not_alternate(tmp_path):
    """As in a request: mistral_common joins messages of one role, so each is given to it in its place."""
    pictures = [{"source": "a.png", "hash": "hash of a.png"}]
    given = [
        {"role": "assistant", "text": "Hello!"},
        {"role": "user", "text": "This."},
        {"role": "user", "pictures": pictures, "text": "What is it?"},
        {"role": "assistant", "text": "A cat."},
        {"role": "assistant", "text": "Or a dog."},
        {"role": "user", "text": "Which?"},
    ]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(whole(turns=given)))
    found, params = read_transcript(file, attach)
    asked = found.ask("Well?")
    assert [message["role"] for message in asked] == [turn["role"] for turn in given] + ["user"]
    texts = [
        message["content"] if isinstance(message["content"], str) else message["content"][-1]["text"]
        for message in asked
    ]
    assert texts == [*(turn["text"] for turn in given), "Well?"]
    assert [len(message["content"]) for message in asked[1:3]] == [1, 2]
    assert found.n_pictures == 1
    write_transcript(file, found, params, "m")
    assert json.loads(file.read_text())["turns"] == given


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from([*whole(), "role", "text", "pictures", "source"]), inner, max_size=5),
                    max_leaves=15))  # fmt: skip
def test_any_json_is_a_conversation_or_a_sentence(tmp_path_factory, record):
    file = tmp_path_factory.getbasetemp() / "any.json"
    for each in (record, whole(turns=record), whole(settings=record)):
        file.write_text(json.dumps(each))
        try:
            read_transcript(file, attach)
        except PixedgeError as refusal:
            assert "\n" not in str(refusal)


def test_a_missing_file(tmp_path):
    with pytest.raises(MessageError, match="No such file"):
        read_transcript(tmp_path / "none.json", attach)
