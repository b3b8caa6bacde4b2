"""The converted tokenizer and chat template against mistral_common, through transformers' own reader."""

import json
import re
from pathlib import Path

import mistral_common
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from PIL import Image

from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.errors import CheckpointError, ExportError
from pixedge.tokenizer import Tokenizer
from pixedge_export.tekken import cut_tekken, to_hf_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is the judge of the converted files")

TEKKEN = Path(mistral_common.__path__[0]) / "data" / "tekken_240911.json"
IMG, BREAK, END = 10, 12, 13


def config(vocab_size: int) -> ModelConfig:
    decoder = DecoderConfig(
        dim=64,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=32,
        ffn_dim=128,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=1e6,
        context=4096,
    )
    vision = VisionConfig(
        dim=64,
        n_layers=1,
        n_heads=4,
        ffn_dim=128,
        n_channels=3,
        patch_size=16,
        image_size=256,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=IMG,
        image_break_token_id=BREAK,
        image_end_token_id=END,
    )
    return ModelConfig(decoder, vision)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the file cut to 2,072 ranks and all that is made of it."""
    folder = tmp_path_factory.mktemp("hf")
    cut_tekken(TEKKEN, 2072, folder / "tekken.json", image_patch_size=16, max_image_size=256)
    to_hf_tokenizer(folder / "tekken.json", folder, config(3072))
    return folder


@pytest.fixture(scope="session")
def converted(folder):
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def tekken(folder):
    return Tekkenizer.from_file(folder / "tekken.json")


# Lone surrogates are not text, and unassigned code points differ between Unicode versions.
characters = st.characters(exclude_categories=("Cs", "Cn"))
snippets = st.one_of(
    st.text(characters),
    st.text(st.sampled_from(" \t\n\r\u00a0\u3000\u2028")),
    st.text(st.sampled_from("0123456789.,٣½")),
    st.text(st.sampled_from("=-_/*#<>(){}[];:\"'\\|&^~`!?")),
    st.sampled_from(
        [
            "def f(x):\n\treturn x ** 2  # squared\n\n\n",
            '{"key": [1, 2.5e-3], "b": null}',
            "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪",
            "don't WE'LL iPhone McDonald's",
            "नमस्ते привет 東京 مرحبا",
            "https://a.example/b?c=d#e",
            "aaaaaaaaaaaaaaaaaaaaa",
        ]
    ),
    st.builds(lambda unit, count: unit * count, st.text(characters, max_size=2), st.integers(1, 40)),
)
# Control tokens in a string are control tokens to the converted tokenizer, and text to Tekken.
control = re.compile("|".join(re.escape(t["token_str"]) for t in Tekkenizer.DEPRECATED_SPECIAL_TOKENS))
texts = st.lists(snippets, max_size=6).map("".join).filter(lambda text: not control.search(text))


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(texts)
def test_text_becomes_the_same_ids(converted, tekken, text):
    ids = tekken.encode(text, bos=False, eos=False)
    assert converted.encode(text, add_special_tokens=False) == ids
    assert converted.decode(ids, clean_up_tokenization_spaces=False) == text


def test_plain_text_starts_with_bos(converted, tekken):
    assert converted.encode("hello") == tekken.encode("hello", bos=True, eos=False)


@pytest.mark.slow
def test_the_full_vocabulary_becomes_the_same_ids(tmp_path):
    """All 131,072 ids: written, read by transformers, and compared on random and on ordinary text."""
    (tmp_path / "tekken.json").write_bytes(TEKKEN.read_bytes())
    to_hf_tokenizer(tmp_path / "tekken.json", tmp_path, config(131072))
    full = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    tekken = Tekkenizer.from_file(tmp_path / "tekken.json")
    assert len(full) == tekken.n_words == 131072

    @settings(deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
    @given(texts)
    def same(text):
        assert full.encode(text, add_special_tokens=False) == tekken.encode(text, bos=False, eos=False)

    same()
    prose = (Path(mistral_common.__path__[0]) / "tokens" / "tokenizers" / "image.py").read_text()
    assert not control.search(prose)
    assert full.encode(prose, add_special_tokens=False) == tekken.encode(prose, bos=False, eos=False)


# --- chats


def image(width: int, height: int) -> dict:
    return {"type": "image", "image": Image.new("RGB", (width, height), "red")}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


SYSTEM = {"role": "system", "content": "Be brief.  "}
CHATS = {
    "text": [{"role": "user", "content": "What is 2 + 2?"}],
    "picture first": [{"role": "user", "content": [image(40, 20), text("What is it?")]}],
    "picture last": [{"role": "user", "content": [text("What is it?"), image(40, 20)]}],
    "picture alone": [{"role": "user", "content": [image(16, 16)]}],
    "system": [SYSTEM, {"role": "user", "content": "hi"}],
    "system and picture": [SYSTEM, {"role": "user", "content": [image(30, 50), text("\n and?")]}],
    "system and text before a picture": [
        SYSTEM,
        {"role": "user", "content": [text("one"), image(16, 16), text("two")]},
    ],
    "two systems": [
        SYSTEM,
        {"role": "system", "content": [text("a"), text("b")]},
        {"role": "user", "content": "x"},
    ],
    "several pictures": [
        {
            "role": "user",
            "content": [text("A "), image(16, 16), image(33, 17), text(" B"), image(300, 200), text("?")],
        }
    ],
    "texts in a row": [
        {
            "role": "user",
            "content": [text("one"), text(""), text("two"), image(16, 16), text(" "), text("three")],
        }
    ],
    "only texts": [{"role": "user", "content": [text("one"), text("two")]}],
    "turns": [
        SYSTEM,
        {"role": "user", "content": [image(20, 20), text("colour?")]},
        {"role": "assistant", "content": " It is red.   "},
        {"role": "user", "content": [image(64, 16), text("and this?")]},
        {"role": "assistant", "content": [text("red"), text("too ")]},
        {"role": "user", "content": "Sure?"},
    ],
}


def by_template(tokenizer, prompt, chat, **options) -> list[int]:
    """Render with transformers, and grow each [IMG] as its processor would, which needs torchvision."""
    template = (Path(tokenizer) / "chat_template.jinja").read_text()
    fast = transformers.AutoTokenizer.from_pretrained(tokenizer, mistral_format=False)
    rendered = fast.apply_chat_template(chat, chat_template=template, tokenize=False, **options)
    pieces = rendered.split("[IMG]")
    assert len(pieces) == len(prompt.images) + 1
    for at, pixels in enumerate(prompt.images):
        down, across = pixels.shape[1] // 16, pixels.shape[2] // 16
        pieces[at] += "[IMG_BREAK]".join(["[IMG]" * across] * down) + "[IMG_END]"
    return fast.encode("".join(pieces), add_special_tokens=False)


@pytest.mark.parametrize("name", CHATS)
def test_the_chat_template_gives_mistral_commons_ids(folder, name):
    prompt = Tokenizer(folder / "tekken.json", config(3072).vision).encode(CHATS[name])
    assert by_template(folder, prompt, CHATS[name]) == list(prompt.ids)


def test_image_url_parts_are_pictures_too(folder):
    prompt = Tokenizer(folder / "tekken.json", config(3072).vision).encode(CHATS["picture first"])
    chat = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, text("What is it?")]}
    ]
    assert by_template(folder, prompt, chat) == list(prompt.ids)


def test_a_prefix_is_continued(folder):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is", "prefix": True}]
    prompt = Tokenizer(folder / "tekken.json", config(3072).vision).encode(chat)
    assert by_template(folder, prompt, chat, continue_final_message=True) == list(prompt.ids)


def test_later_versions_convert_too(folder, tmp_path):
    names = [str(token["token_str"]) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS] + [
        "[ARGS]",
        "[CALL_ID]",
    ]
    data = json.loads((folder / "tekken.json").read_text())
    data["config"]["version"] = "v11"
    data["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
    ]
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    to_hf_tokenizer(tmp_path / "tekken.json", tmp_path, config(3072))
    tokenizer = Tokenizer(tmp_path / "tekken.json", config(3072).vision)
    for chat in CHATS.values():
        prompt = tokenizer.encode(chat)
        assert by_template(tmp_path, prompt, chat) == list(prompt.ids)


# --- files


def test_files_are_what_transformers_expects(folder):
    names = to_hf_tokenizer(folder / "tekken.json", folder, config(3072))
    assert all((folder / name).is_file() for name in names)
    fast = transformers.AutoTokenizer.from_pretrained(folder, mistral_format=False)
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id, fast.unk_token_id) == (1, 2, 11, 0)
    assert fast.model_max_length == 4096
    assert len(fast) == 3072
    assert set(fast("hi")) == {"input_ids", "attention_mask"}
    assert fast.chat_template == (folder / "chat_template.jinja").read_text()
    assert fast.convert_tokens_to_ids(["[IMG]", "[IMG_BREAK]", "[IMG_END]"]) == [IMG, BREAK, END]


def test_the_image_processor_cuts_the_same_grid(folder):
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    processor = PixtralImageProcessorPil.from_pretrained(folder)
    tokenizer = Tokenizer(folder / "tekken.json", config(3072).vision)
    for size in [(16, 16), (40, 20), (256, 256), (512, 300), (17, 255)]:
        red = Image.new("RGB", size, "red")
        ours = tokenizer.encode([{"role": "user", "content": [{"type": "image", "image": red}]}]).images[0]
        theirs = processor(red, return_tensors="np")["pixel_values"][0]
        assert theirs.shape == ours.shape
        # A picture of one colour is the same under any resizing: what is compared is the normalisation.
        assert abs(theirs - ours).max() < 1e-5


def test_the_processor_loads_where_torchvision_is_installed(folder):
    pytest.importorskip("torchvision", reason="transformers' PixtralProcessor needs torchvision")
    chat = CHATS["several pictures"]
    processor = transformers.AutoProcessor.from_pretrained(folder, mistral_format=False)
    ids = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    prompt = Tokenizer(folder / "tekken.json", config(3072).vision).encode(chat)
    assert list(ids) == list(prompt.ids)


def test_cut_file_is_read_by_mistral_common(folder):
    judge = MistralTokenizer.from_file(folder / "tekken.json")
    tekken = judge.instruct_tokenizer.tokenizer
    assert tekken.n_words == 3072
    assert (tekken.image.image_patch_size, tekken.image.max_image_size) == (16, 256)
    assert tekken.decode(tekken.encode("naïve 東京", bos=False, eos=False)) == "naïve 東京"


def test_only_bytes_still_spell_everything(tmp_path):
    cut_tekken(TEKKEN, 256, tmp_path / "tekken.json")
    tekken = Tekkenizer.from_file(tmp_path / "tekken.json")
    assert tekken.encode("é", bos=False, eos=False) == [1000 + byte for byte in "é".encode()]


@pytest.mark.parametrize("n_ranks", [0, 255, 130073])
def test_impossible_cuts_are_refused(tmp_path, n_ranks):
    with pytest.raises(ExportError, match=rf"cut to {n_ranks} ranks; choose from 256 .the bytes. to 130072"):
        cut_tekken(TEKKEN, n_ranks, tmp_path / "tekken.json")
    assert not (tmp_path / "tekken.json").exists()


def test_wrong_files_are_one_sentence(folder, tmp_path):
    broken = tmp_path / "tekken.json"
    for content in (
        b"{}",
        b"{",
        b"\xff",
        b'{"config": {"pattern": "", "default_vocab_size": 1}, "vocab": []}',
    ):
        broken.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a complete Tekken file"):
            cut_tekken(broken, 256, tmp_path / "out.json")
        with pytest.raises(CheckpointError, match="is not a complete Tekken file"):
            to_hf_tokenizer(broken, tmp_path, config(3072))
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        cut_tekken(tmp_path / "missing.json", 256, tmp_path / "out.json")
    with pytest.raises(ExportError, match="vocabulary of 3072 tokens, but the model has 3073"):
        to_hf_tokenizer(folder / "tekken.json", tmp_path, config(3073))

    data = json.loads((folder / "tekken.json").read_text())
    broken.write_text(json.dumps(data | {"vocab": data["vocab"][::-1]}))
    with pytest.raises(CheckpointError, match="is not a Tekken file that mistral_common reads"):
        to_hf_tokenizer(broken, tmp_path, config(3072))
    del data["image"]
    broken.write_text(json.dumps(data))
    with pytest.raises(ExportError, match="has no image section"):
        to_hf_tokenizer(broken, tmp_path, config(3072))
