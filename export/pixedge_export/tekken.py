"""Tekken files: cut to fewer tokens, and written as the tokenizer and processor files of transformers.

Tekken is a byte-level BPE: a list of byte strings whose rank is their order of birth, behind 1,000 special
tokens. tokenizer.json wants the merges instead. Every way to split a token into two known ones is a merge of
that token's rank, which is how tiktoken, the engine behind Tekken, picks its next pair.
"""

import json
from pathlib import Path
from typing import Any

from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from pixedge.config import ModelConfig
from pixedge.errors import CheckpointError, ExportError

N_BYTES = 256
# The normalisation of CLIP, which Pixtral's encoder was trained with.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3

# mistral_common drops empty text parts, joins the text parts of an assistant turn and strips the spaces at
# its end; the template that it generates expects that to have been done.
_NORMALISE = """\
{%- set ns_in = namespace(messages=[]) %}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if content is not string and content is not none %}
        {%- set ns_part = namespace(blocks=[], texts=[]) %}
        {%- for block in message['content'] %}
            {%- if block['type'] != 'text' or block['text'] != '' %}
                {%- set ns_part.blocks = ns_part.blocks + [block] %}
            {%- endif %}
            {%- if block['type'] == 'text' and block['text'] != '' %}
                {%- set ns_part.texts = ns_part.texts + [block['text']] %}
            {%- endif %}
        {%- endfor %}
        {%- if ns_part.texts | length == ns_part.blocks | length %}
            {%- set content = ns_part.texts | join('\\n\\n') %}
        {%- else %}
            {%- set content = ns_part.blocks %}
        {%- endif %}
    {%- endif %}
    {%- if message['role'] == 'assistant' and content is string %}
        {%- set content = content.rstrip(' ') %}
    {%- endif %}
    {%- set ns_in.messages = ns_in.messages + [dict(message, content=content)] %}
{%- endfor %}
{%- set messages = ns_in.messages %}
"""


def cut_tekken(
    source: Path, n_ranks: int, out: Path, image_patch_size: int = 16, max_image_size: int = 1024
) -> None:
    """Write a Tekken file that knows only the first n_ranks byte strings of source.

    Its vocabulary is n_ranks plus the special tokens, and what it can no longer spell in one token it spells
    in several. The image section is set to image_patch_size and max_image_size, in pixels.

    Raises CheckpointError when source is not a Tekken file, ExportError when n_ranks is not between the 256
    single bytes and what source has.
    """
    data = _read(source)
    config, vocab = data["config"], data["vocab"]
    available = config["default_vocab_size"] - config["default_num_special_tokens"]
    if not N_BYTES <= n_ranks <= available:
        raise ExportError(
            f"{source} cannot be cut to {n_ranks} ranks; choose from {N_BYTES} (the bytes) to {available}"
        )
    cut = data | {
        "config": config
        | {
            "num_vocab_tokens": n_ranks,
            "default_vocab_size": n_ranks + config["default_num_special_tokens"],
        },
        "vocab": vocab[:n_ranks],
    }
    # Files up to version 11 may carry the section under its first name, which would win over the new one.
    cut.pop("multimodal", None)
    cut["image"] = {"image_patch_size": image_patch_size, "max_image_size": max_image_size}
    out.write_text(json.dumps(cut, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def to_hf_tokenizer(tekken: Path, out_folder: Path, config: ModelConfig) -> tuple[str, ...]:
    """Write what transformers and vLLM read in place of tekken.json; give the names of the files.

    tokenizer.json, tokenizer_config.json, special_tokens_map.json, processor_config.json,
    preprocessor_config.json (the image processor again, for transformers 4) and chat_template.jinja. Text
    becomes the same ids as under mistral_common. Two limits come from rendering a chat to one string: control
    tokens typed by a user become control tokens, and a system prompt of a version 3 file may share a token
    with the text that follows it when that text begins with a line break, a space or a symbol and stands in
    front of a picture.

    Raises CheckpointError when the file is not Tekken, ExportError when it is without an image section or
    its vocabulary is not the model's.
    """
    pattern = _read(tekken)["config"]["pattern"]
    tokenizer = _load(tekken)
    if tokenizer.image is None:
        raise ExportError(f"{tekken} has no image section; use the tekken.json of a Pixtral checkpoint")
    if tokenizer.n_words != config.decoder.vocab_size:
        raise ExportError(
            f"{tekken} has a vocabulary of {tokenizer.n_words} tokens, but the model has"
            f" {config.decoder.vocab_size}; use the tokenizer file that came with the checkpoint"
        )
    image_processor = _image_processor(config)
    documents: dict[str, Any] = {
        "tokenizer.json": _tokenizer_json(tokenizer, pattern),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "PixtralProcessor",
            **_named_tokens(),
            "model_max_length": config.decoder.context,
            # Without token_type_ids, which the model does not take.
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
        "special_tokens_map.json": _named_tokens(),
        "processor_config.json": {
            "processor_class": "PixtralProcessor",
            "patch_size": config.vision.patch_size,
            "spatial_merge_size": 1,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
            "image_processor": image_processor,
        },
        "preprocessor_config.json": image_processor,
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2)
        (out_folder / name).write_text(text + "\n", encoding="utf-8")
    template = convert_tokenizer_to_chat_template(tekken, plain_thinking_support=False)
    (out_folder / "chat_template.jinja").write_text(_NORMALISE + template, encoding="utf-8")
    return (*documents, "chat_template.jinja")


def _read(file: Path) -> dict[str, Any]:
    """Read a Tekken file's JSON; the keys used here are there."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        config = data["config"]
        if (
            isinstance(config["pattern"], str)
            and isinstance(data["vocab"], list)
            and config["default_vocab_size"] - config["default_num_special_tokens"] <= len(data["vocab"])
        ):
            return dict(data)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (LookupError, TypeError, ValueError, RecursionError):
        pass
    raise CheckpointError(
        f"{file} is not a complete Tekken file; copy the tekken.json that belongs to the checkpoint again"
    )


def _load(file: Path) -> Tekkenizer:
    try:
        return Tekkenizer.from_file(file)
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a Tekken file that mistral_common reads ({type(error).__name__}); copy the"
            " tekken.json that belongs to the checkpoint again"
        ) from error


def _named_tokens() -> dict[str, str]:
    return {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def _image_processor(config: ModelConfig) -> dict[str, Any]:
    patch = config.vision.patch_size
    return {
        "image_processor_type": "PixtralImageProcessor",
        "processor_class": "PixtralProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": config.vision.image_size},
        "patch_size": {"height": patch, "width": patch},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


def _tokenizer_json(tokenizer: Tekkenizer, pattern: str) -> dict[str, Any]:
    """Describe the tokenizer in the format of Hugging Face's tokenizers library."""
    n_special = tokenizer.num_special_tokens
    special = [tokenizer.id_to_piece(token) for token in range(n_special)]
    ranks = {tokenizer.id_to_byte_piece(token): token for token in range(n_special, tokenizer.n_words)}
    alphabet = _byte_characters()

    def spell(piece: bytes) -> str:
        return "".join(alphabet[byte] for byte in piece)

    vocab = {piece: token for token, piece in enumerate(special)}
    vocab |= {spell(piece): token for piece, token in ranks.items()}
    assert len(vocab) == tokenizer.n_words
    begin = tokenizer.get_special_token("<s>")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": piece, **flags, "special": True} for token, piece in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [begin], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # A word that is itself a token stays whole, as in tiktoken.
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [f"{spell(left)} {spell(right)}" for left, right in _merges(ranks)],
        },
    }


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """List the pairs that join to a token, by the rank of the token, then of the left half."""
    merges: list[tuple[bytes, bytes]] = []
    for piece in sorted(ranks, key=ranks.__getitem__):
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: ranks[pair[0]])
    return merges


def _byte_characters() -> list[str]:
    """Give the character that stands for each byte in byte-level BPE files, as GPT-2 introduced it.

    Visible Latin-1 characters stand for themselves; the others, in order, are the characters from U+0100.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(N_BYTES)]
