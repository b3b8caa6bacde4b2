"""A conversation from outside, checked and brought to one form: turns of text and RGB pictures.

Three spellings are read: dicts as in OpenAI's chat API, the same with {"type": "image", "image": …} parts
that hold a PIL image, the bytes of a file or a pathlib.Path, and mistral_common's message objects. No address
is ever opened here: a picture behind http(s): or file: is refused, and a plain string is never a path.

Messages of one role may follow each other, an assistant may begin, and a message may be empty: mistral_common
joins them in the tokenizer, and what it refuses is refused here, with the message's index.
"""

import base64
import binascii
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk, TextChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    Roles,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from PIL import Image, ImageOps

from pixedge.errors import ImageError, MessageError
from pixedge.image import ImageLimits, read_image

Role: TypeAlias = Literal["system", "user", "assistant"]
Part: TypeAlias = str | Image.Image
Messages: TypeAlias = Sequence[Mapping[str, Any] | SystemMessage | UserMessage | AssistantMessage]

IGNORED = (
    *("name", "id", "timestamp", "created", "created_at", "createdAt", "updated_at", "updatedAt", "date"),
    *("uuid", "message_id", "messageId", "parent_id", "parentId", "childrenIds", "trace_id", "traceId"),
    *("chat_id", "session_id", "conversation_id", "model", "models", "agent", "author", "sender"),
    *("status", "metadata", "opts", "usage", "annotations", "weight", "cache_control", "finish_reason"),
    *("object", "type", "index", "done", "done_reason", "user", "username", "provider", "modelName"),
    *("ts", "time", "tokens", "token_count", "version", "order", "rating", "feedback", "conversationId"),
)
"""Fields of a message that may hold anything: OpenAI's own, and what clients keep beside their messages."""

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_KEYS = {"role", "content", "prefix", "refusal", *IGNORED}
_EXIF_ORIENTATION = 0x0112

# Each is looked at in Python; a text needs one part, and a picture one more.
_MOST_PARTS = 1024

# What may stand around and within base64, and what it may be written with.
_BASE64_HEADER = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_BLANKS = " \t\r\n\f"
_ALPHABET = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class Turn:
    """One message: text and pictures in the order given; without parts it is empty.

    prefix marks a last assistant turn that the model is to continue.
    """

    role: Role
    parts: tuple[Part, ...]
    prefix: bool = False

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures of the turn, in order."""
        return tuple(part for part in self.parts if not isinstance(part, str))


def read_messages(messages: Messages, limits: ImageLimits | None = None) -> tuple[Turn, ...]:
    """Check a conversation and decode its pictures under limits.

    Any order that mistral_common takes: only a system message cannot follow an assistant's, and an assistant
    message at the end needs "prefix": True and one before it. Pictures belong to user messages.

    Raises MessageError, which names the message by its index from 0, and ImageError for an unusable picture.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise MessageError(
            f"messages is a {type(messages).__name__}; give a list of {{'role': …, 'content': …}} messages"
        )
    if not messages:
        raise MessageError("messages is empty; give at least one user message")
    pictures = _Pictures(ImageLimits() if limits is None else limits)
    turns = tuple(_turn(index, message, pictures) for index, message in enumerate(messages))
    _check_order(turns)
    return turns


def shown(value: object) -> str:
    """Write a value for an error's sentence, at most about 80 characters of it."""
    if isinstance(value, str) and len(value) > 80:
        value = value[:77] + "…"  # before repr, which would first write all of it
    text = repr(value)
    return text if len(text) <= 90 else text[:86] + "…"


def _turn(index: int, message: object, pictures: "_Pictures") -> Turn:
    where = f"message {index}"
    fields = _fields(where, message)
    role = fields.get("role")
    if role == "developer":  # OpenAI's newer name
        role = "system"
    if role not in _ROLES:
        raise MessageError(f"{where} has the role {shown(role)}; use system, user or assistant")
    for key, value in fields.items():
        empty = value is None or value is False or value in ("", [], {}, ())
        if key not in _KEYS and not empty:
            raise MessageError(
                f"{where} has the field {shown(key)}, which pixedge does not support; leave it out"
            )
    prefix = fields.get("prefix") or False
    if prefix is True and role != "assistant":
        raise MessageError(f"{where} has prefix set, but only an assistant message can be continued")
    if not isinstance(prefix, bool):
        raise MessageError(f"{where} has prefix {shown(prefix)}; use True or False")

    content = fields.get("content")
    if content is None and role == "assistant":
        content = fields.get("refusal") or ""  # OpenAI's place for an answer that declines
    if isinstance(content, str):
        content = [content] if content else []
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise MessageError(
            f"{where} has content of type {type(content).__name__}; give a string or a list of parts"
        )
    check_parts(where, content)
    parts = [_part(f"{where}, part {at}", part, role, pictures) for at, part in enumerate(content)]
    return Turn(role, tuple(parts), prefix)


def check_parts(where: str, content: Sequence[object]) -> None:
    """Raise MessageError where a message has too many parts."""
    if len(content) > _MOST_PARTS:
        raise MessageError(
            f"{where} has {len(content):,} parts and the limit is {_MOST_PARTS:,}; join its texts"
        )


def _fields(where: str, message: object) -> Mapping[str, Any]:
    """Bring a message to a mapping; the objects' contents stay objects."""
    if isinstance(message, Mapping):
        return message
    if isinstance(message, (SystemMessage, UserMessage, AssistantMessage)):
        fields: dict[str, Any] = {"role": Roles(message.role).value, "content": message.content}
        if isinstance(message, AssistantMessage):
            fields |= {"prefix": message.prefix, "tool_calls": message.tool_calls or None}
        return fields
    kind = "tool message" if isinstance(message, ToolMessage) else type(message).__name__
    raise MessageError(f"{where} is a {kind}; use a dict with role and content, or a mistral_common message")


def _part(where: str, part: object, role: Role, pictures: "_Pictures") -> Part:
    if isinstance(part, str):
        return _text(where, part)
    if isinstance(part, TextChunk):
        return _text(where, part.text)
    if isinstance(part, ImageChunk):
        part = {"type": "image", "image": part.image}
    elif isinstance(part, ImageURLChunk):
        part = {"type": "image_url", "image_url": part.get_url()}
    if not isinstance(part, Mapping):
        raise MessageError(
            f"{where} is a {type(part).__name__}; use {{'type': 'text' | 'image' | 'image_url', …}}"
        )
    kind = part.get("type")
    if kind == "text" or (kind == "refusal" and role == "assistant"):
        return _text(where, part.get(kind))
    if kind not in ("image", "image_url"):
        raise MessageError(f"{where} has the type {shown(kind)}; use text, image or image_url")
    if role != "user":
        raise MessageError(f"{where} is a picture in a message of the {role}; put pictures in user messages")
    if kind == "image":
        return pictures.read(where, part.get("image"))
    url = part.get("image_url")
    if isinstance(url, Mapping):
        url = url.get("url")
    return pictures.read(where, _data_url_bytes(where, url))


def _text(where: str, text: object) -> str:
    if not isinstance(text, str):
        raise MessageError(f"{where} has text of type {type(text).__name__}; give a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise MessageError(
            f"{where} has the unpaired surrogate U+{code:04X} at character {error.start}, which no text can"
            " hold; decode the text as UTF-8"
        ) from None
    return text


class _Pictures:
    """Decodes the pictures of one conversation, and refuses the first one too many before decoding it."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._count = 0

    def read(self, where: str, source: object) -> Image.Image:
        self._count += 1
        self._limits.check_count(self._count)
        if isinstance(source, Path):
            return read_image(source, str(source), self._limits)
        if isinstance(source, bytes):
            return read_image(source, f"the picture of {where}", self._limits)
        if isinstance(source, Image.Image):
            return self._opaque_rgb(where, source)
        raise MessageError(
            f"{where} has an image of type {type(source).__name__};"
            " give a PIL image, the bytes of a picture file or a pathlib.Path"
        )

    def _opaque_rgb(self, where: str, image: Image.Image) -> Image.Image:
        """Bring a PIL image to what read_image gives: upright, over white, RGB."""
        width, height = image.size
        if width * height > self._limits.max_pixels:
            raise ImageError(
                f"the picture of {where} has {width * height:,} pixels and the limit is"
                f" {self._limits.max_pixels:,}; make the picture smaller"
            )
        if width * height == 0:
            raise ImageError(
                f"the picture of {where} is {width} x {height} pixels; give a picture with pixels"
            )
        if image.mode[0] in "IF":
            raise ImageError(
                f"the picture of {where} has the mode {image.mode}, whose range is not known; convert it to"
                " RGB, or give the bytes of its file"
            )
        try:
            image.load()
        except OSError as error:
            raise ImageError(f"the picture of {where} cannot be decoded ({error}); open it again") from error
        if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            return white
        return image if image.mode == "RGB" else image.convert("RGB")


def _data_url_bytes(where: str, url: object) -> bytes:
    """Give the bytes inside data:…;base64,…; anything that would have to be opened is refused."""
    if not isinstance(url, str):
        raise MessageError(f"{where} has an image_url of type {type(url).__name__}; give a data: URL")
    url = url.strip()
    scheme, colon, _ = url[:10].partition(":")
    if not colon or scheme.lower() != "data":
        raise MessageError(
            f"{where} points to {shown(url)}, which pixedge does not open; fetch the picture first and pass"
            f" its bytes, or a data: URL{hint_for_base64(url)}"
        )
    return decode_data_url(where, url)


def hint_for_base64(url: str) -> str:
    """Say what belongs in front of base64 where an address has no scheme; nothing where it has one."""
    return "" if ":" in url[:20] else "; in front of base64 put data:image/png;base64,"


def decode_data_url(where: str, url: str, most: int | None = None) -> bytes:
    """Give the bytes inside data:…;base64,… of the message part ``where``, at most ``most`` of them.

    White space, missing padding, percent-encoding and the alphabet with - and _ are read, as browsers do.

    Raises MessageError for what is not base64, ImageError for more bytes, before they are decoded.
    """
    header, comma, payload = url.partition(",")
    if not comma or _BASE64_HEADER.search(header[-40:]) is None:
        raise MessageError(f"{where} has a data: URL without ;base64,; encode the picture's bytes in base64")
    if "%" in payload:
        payload = _unquote(where, payload)
    size = (len(payload) - sum(map(payload.count, _BLANKS)) - payload[-4:].count("=")) * 3 // 4
    if most is not None and size > most:
        raise ImageError(
            f"the picture of {where} has {size:,} bytes and the limit is {most:,}; make the picture smaller"
        )
    try:
        data = payload.encode("ascii")
        del payload  # a picture's worth of memory
        data = data.translate(_ALPHABET, _BLANKS.encode()).rstrip(b"=")
        data += b"=" * (-len(data) % 4)
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _not_base64(where) from None


def _unquote(where: str, payload: str) -> str:
    """Decode percent-encoding, without the list of pieces that urllib.parse.unquote makes of it.

    Quoted-printable writes the same escapes with another mark, and = stands only for padding here.
    """
    try:
        data = payload.encode("ascii").translate(None, _BLANKS.encode()).rstrip(b"=")
        if b"=" not in data:
            return binascii.a2b_qp(data.replace(b"%", b"=")).decode("ascii")
    except UnicodeError:
        pass
    raise _not_base64(where)


def _not_base64(where: str) -> MessageError:
    return MessageError(f"{where} has a data: URL that is not valid base64; encode the picture's bytes again")


def _check_order(turns: tuple[Turn, ...]) -> None:
    """Refuse what mistral_common refuses in every version of its templates."""
    for index, (turn, after) in enumerate(zip(turns, (*turns[1:], None), strict=True)):
        if turn.prefix and after is not None:
            raise MessageError(
                f"message {index} has prefix set but is not the last; only the last is continued"
            )
        if turn.role != "assistant":
            continue
        if after is not None and after.role == "system":
            raise MessageError(
                f"message {index + 1} is a system message after the assistant's; put it before a user message"
            )
        if after is None and not turn.prefix:
            raise MessageError(
                f"message {index} is the last and the assistant's; add a user message, or set"
                " 'prefix': True to have it continued"
            )
        if after is None and index == 0:
            raise MessageError("message 0 is the assistant's and the only one; put a user message before it")
    at = 0
    for role, group in itertools.groupby(turns, lambda turn: turn.role):
        run = list(group)
        if role == "assistant" and not any(part for turn in run for part in turn.parts):
            raise MessageError(f"message {at} (assistant) is empty; give it text, or leave it out")
        at += len(run)
