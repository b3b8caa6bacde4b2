"""Messages to token ids and pictures, in order, and ids back to text.

The ids are built by mistral_common, never by pasting strings together, so no text that a user types can
become a control token. As Mistral's reference does, a Tekken file of version 3 (Pixtral-12B-2409) gets the
system prompt at the start of the last user message, later versions as a block of its own; text parts that
follow each other are joined by an empty line, and so are messages of one role; an assistant that begins gets
an empty user message before it; a picture that ends a message, after nothing but text, moves to its front;
and spaces at the end of an assistant's turn are dropped.
"""

import codecs
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ContentChunk, ImageChunk, ImageURLChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.image import (
    ImageConfig,
    ImageEncoder,
    ImageEncoding,
    SpecialImageIDs,
)
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from pixedge.answer_format import AnswerFormat
from pixedge.config import VisionConfig
from pixedge.constraint import Constraint, Vocabulary
from pixedge.errors import CheckpointError, MessageError, UsageError
from pixedge.image import FittedPicture, ImageLimits, fit_pixels
from pixedge.messages import Messages, Turn, read_messages
from pixedge.prompt import Prompt as Prompt
from pixedge.section import read_json

MAX_VOCABULARY = 1 << 20
"""Tokens, eight times Pixtral-12B's."""

MAX_SPECIAL = 1 << 14
"""Control tokens, of which Pixtral-12B has 1,000."""

_Mistral: TypeAlias = "MistralTokenizer[Any, Any, Any, Any, Any]"


class Tokenizer:
    """Tekken, with the grid of image tokens taken from the model's own geometry."""

    def __init__(self, tekken_file: Path, vision: VisionConfig, vocab_size: int | None = None) -> None:
        """Read a Tekken file and check it against the model.

        vocab_size is the decoder's; None skips that check. Raises CheckpointError when the file is missing,
        is not a Tekken file, or its ids are not the model's.
        """
        self.file = Path(tekken_file)
        self.vision = vision
        self._base = _load(self.file)
        tekken = self._base.instruct_tokenizer.tokenizer
        assert isinstance(tekken, Tekkenizer)
        self._tekken = tekken
        if vocab_size is not None and tekken.n_words != vocab_size:
            raise CheckpointError(
                f"{self.file} has a vocabulary of {tekken.n_words} tokens, but the model has {vocab_size};"
                " use the tokenizer file that came with the checkpoint"
            )
        self._image_ids = _image_ids(self.file, tekken, vision)
        self._vocabulary = Vocabulary(tekken)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return self._tekken.n_words

    @property
    def eos_id(self) -> int:
        """The id that ends an answer."""
        return self._tekken.eos_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids after which nothing more is generated."""
        return frozenset({self.eos_id})

    @property
    def special_ids(self) -> frozenset[int]:
        """All control tokens: they come from the template alone and decode to nothing."""
        return frozenset(self._tekken.special_ids)

    def encode(
        self, messages: Messages, max_image_size: int | None = None, limits: ImageLimits | None = None
    ) -> Prompt:
        """Build the prompt for a conversation; see pixedge.messages for what messages may hold.

        max_image_size caps the longer side of every picture, in pixels; it can only lower the model's own.
        Raises MessageError, ImageError, or UsageError for a max_image_size below 1.
        """
        patch = self.vision.patch_size
        if max_image_size is not None and max_image_size < 1:
            raise UsageError(f"max_image_size is {max_image_size}; give at least 1 pixel")
        longest = min(max_image_size or self.vision.image_size, self.vision.image_size)
        turns = read_messages(messages, limits)
        try:
            encoded = self._mistral(longest).encode_chat_completion(_request(turns))
        except MistralCommonException as error:
            raise MessageError(
                f"the conversation does not fit the template of {self.file.name}: {error}"
            ) from error
        except ValueError as error:
            if "Regex error" not in str(error):
                raise
            # tiktoken's splitter gives up at about a million blanks in a row
            raise MessageError(
                "a text has a run of blanks that is too long for the tokenizer; shorten it"
            ) from None
        ids = tuple(encoded.tokens)
        images = tuple(np.ascontiguousarray(image, dtype=np.float32) for image in encoded.images)

        n_image_tokens = ids.count(self.vision.image_token_id)
        patches = sum((image.shape[1] // patch) * (image.shape[2] // patch) for image in images)
        assert n_image_tokens == patches, f"{n_image_tokens} [IMG] ids stand for {patches} patches"
        assert len(images) == sum(len(turn.images) for turn in turns)
        return Prompt(ids, images, n_image_tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of ids; control tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._tekken.decode(list(ids))

    def token_bytes(self, token: int) -> bytes:
        """Give the bytes that a token adds to the text; none for a control token."""
        assert 0 <= token < self.vocab_size, f"id {token} outside the vocabulary of {self.vocab_size}"
        return self._tekken.id_to_byte_piece(token)

    def constraint(self, answer_format: AnswerFormat | None) -> Constraint | None:
        """Begin an answer that matches a format; None without one. Takes up to a second the first time.

        Raises UsageError for a format that cannot be used.
        """
        return None if answer_format is None else self._vocabulary.constraint(answer_format)

    def _mistral(self, max_image_size: int) -> _Mistral:
        """Give mistral_common's tokenizer with the model's grid; cheap, and no state is shared by callers."""
        instruct = copy.copy(self._base.instruct_tokenizer)
        config = ImageConfig(self.vision.patch_size, max_image_size)
        instruct.image_encoder = _PictureEncoder(config, self._image_ids)
        version = self._tekken.version
        return MistralTokenizer(
            instruct,
            validator=get_validator(version, mode=ValidationMode.test),
            request_normalizer=get_normalizer(version, self._tekken.model_settings_builder),
        )


class TextStream:
    """Turns ids into text as they come, in whole characters; what was pushed adds up to Tokenizer.decode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start an empty text."""
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take the next id and give the text that it completes, perhaps none."""
        if token in self._special:
            return self.flush()
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """End the text: an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _load(file: Path) -> _Mistral:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy the tekken.json that belongs to the checkpoint there")
    if "tekken" not in file.name or file.suffix != ".json":
        raise CheckpointError(f"{file} is not named like a Tekken file; pixedge reads tekken.json only")
    _check_size(file)
    try:
        return MistralTokenizer.from_file(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # The library's own checks are bare asserts that may print the whole vocabulary.
        reason = str(error).partition("\n")[0][:160]
        raise CheckpointError(
            f"{file} is not a complete Tekken file ({type(error).__name__}: {reason}); copy the tekken.json"
            " that belongs to the checkpoint again"
        ) from error


def _check_size(file: Path) -> None:
    """Refuse a vocabulary that the library would count up to without end."""
    data = read_json(file)
    config = data.get("config") if isinstance(data, dict) else None
    for key, most in (("default_vocab_size", MAX_VOCABULARY), ("default_num_special_tokens", MAX_SPECIAL)):
        value = config.get(key) if isinstance(config, dict) else None
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise CheckpointError(
                f"{file}: config.{key} is {value:,}, expected up to {most:,}; copy the tekken.json"
                " that belongs to the checkpoint again"
            )


class _PictureEncoder(ImageEncoder):
    """mistral_common's, but for the resizing, which is in bands or was done where the picture was decoded."""

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        """Return the tokens and the pixels of a decoded picture."""
        assert isinstance(content, ImageChunk), "pictures are opened before"
        image, config, ids = content.image, self.image_config, self.special_ids
        if isinstance(image, FittedPicture):
            pixels = image.pixels
        else:
            pixels = fit_pixels(image, config.max_image_size, config.image_patch_size)
        down, across = (side // config.image_patch_size for side in pixels.shape[1:])
        assert (across, down) == self._image_to_num_tokens(image), "fitted for another size"
        tokens = ([ids.img] * across + [ids.img_break]) * down
        return ImageEncoding([*tokens[:-1], ids.img_end], pixels)


def _image_ids(file: Path, tekken: Tekkenizer, vision: VisionConfig) -> SpecialImageIDs:
    """Take the three image ids from the tokenizer and compare them with the model's."""
    merge = tekken.image.spatial_merge_size if tekken.image is not None else 1
    if merge != 1:
        raise CheckpointError(
            f"{file} merges patches {merge} by {merge}; pixedge supports spatial_merge_size 1"
        )
    expected = {
        "[IMG]": vision.image_token_id,
        "[IMG_BREAK]": vision.image_break_token_id,
        "[IMG_END]": vision.image_end_token_id,
    }
    for name, wanted in expected.items():
        found = tekken.get_special_token(name) if tekken.is_special(name) else None
        if found != wanted:
            raise CheckpointError(
                f"{file} has the id {found} for {name}, but the model expects {wanted}; use the tokenizer"
                " file that came with the checkpoint"
            )
    return SpecialImageIDs(*expected.values())


def _request(turns: tuple[Turn, ...]) -> "ChatCompletionRequest[Any]":
    """Bring turns to mistral_common's messages; pictures go in decoded, so that it opens nothing."""
    messages: list[SystemMessage | UserMessage | AssistantMessage] = []
    for turn in turns:
        chunks: list[ContentChunk] = [
            TextChunk(text=part) if isinstance(part, str) else ImageChunk(image=part) for part in turn.parts
        ]
        if turn.role == "system":
            messages.append(SystemMessage(content=chunks))
        elif turn.role == "user":
            messages.append(UserMessage(content=chunks))
        else:
            messages.append(AssistantMessage(content=chunks, prefix=turn.prefix))
    return ChatCompletionRequest(messages=messages)
