"""Calibration data: conversations with pictures, from a folder or made on the spot, to token ids.

    folder ── load_samples ──┐
                             ├── samples ── split ── encode_samples ── prompts
    seed ── default_samples ─┘

The folder's format is described for its users in docs/calibration.md.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from PIL import Image

from pixedge.errors import CalibrationError, ImageError, MessageError
from pixedge.image import ImageLimits, read_image
from pixedge.messages import read_messages
from pixedge.tokenizer import Prompt, Tokenizer
from pixedge_export.default_pictures import picture_conversation
from pixedge_export.default_texts import text_conversation

Message: TypeAlias = dict[str, Any]

# Fewer cannot be split into two parts that each have something of both kinds.
MIN_SAMPLES = 4

# Longer sides of the default pictures in pixels: most are moderate and cost under 400 tokens.
_SIDES = (64, 96, 128, 160, 192, 224, 256, 256, 288, 320, 320, 384, 384, 448, 512, 640, 768, 1024)
# Longer over shorter side. None is 1 at the largest sides, which keeps a sample under 4,096 tokens.
_RATIOS = (1.34, 1.5, 1.78, 2.5)

_HEADERS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


@dataclass(frozen=True)
class Sample:
    """A conversation in the form that pixedge.messages reads, usually ending with the assistant's answer.

    name says where it came from, for errors; pictures are pathlib.Path or PIL images.
    """

    name: str
    messages: list[Message]

    @property
    def has_picture(self) -> bool:
        """Whether any message holds a picture."""
        return any(
            isinstance(part, Mapping) and part.get("type") == "image"
            for message in self.messages
            if isinstance(message["content"], list)
            for part in message["content"]
        )


@dataclass(frozen=True)
class EncodedSample:
    """A sample as the model takes it."""

    name: str
    prompt: Prompt


def load_samples(folder: Path, limits: ImageLimits | None = None) -> list[Sample]:
    """Read the conversations of calibration.jsonl or, where there is none, of every *.jsonl in order of name.

    Each line is checked on its own. Pictures are found, their headers read and held against limits; they are
    decoded in encode_samples. Raises CalibrationError, which names the file and the line.
    """
    folder = Path(folder)
    limits = ImageLimits() if limits is None else limits
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise CalibrationError(f"{folder} {what}; give a folder with calibration.jsonl and its pictures")
    only = folder / "calibration.jsonl"
    files = [only] if only.is_file() else sorted(file for file in folder.glob("*.jsonl") if file.is_file())
    if not files:
        held = "no .jsonl file" if any(folder.iterdir()) else "nothing"
        raise CalibrationError(f"{folder} holds {held}; put calibration.jsonl there, one conversation a line")
    samples = [sample for file in files for sample in _read_lines(file, folder.resolve(), limits)]
    if not samples:
        names = ", ".join(file.name for file in files)
        raise CalibrationError(f"{names} in {folder} has no conversation; write one a line")
    return samples


def default_samples(seed: int, n: int) -> list[Sample]:
    """Make n conversations without any data at hand, every second one about one or two drawn pictures.

    Sample i depends on the seed and on i alone. Sides run from 64 to 1024 pixels, and no sample exceeds 4,096
    tokens with patches of 16 pixels. Real data, close to what the model will be asked, does better.
    """
    sides = random.Random(f"sides {seed}").sample(_SIDES, len(_SIDES))
    samples = []
    for i in range(n):
        rng = random.Random(f"default sample {seed} {i}")
        if i % 2:
            messages = text_conversation(rng)
        else:
            longer = sides[i // 2 % len(sides)]
            shorter = max(48, round(longer / rng.choice(_RATIOS)))
            if longer <= 512 and rng.random() < 0.25:
                shorter = longer
            upright = rng.random() < 0.4
            size = (shorter, longer) if upright else (longer, shorter)
            messages = picture_conversation(rng, size, n_pictures=2 if longer <= 320 and i % 5 == 0 else 1)
        samples.append(Sample(f"default sample {i}", messages))
    return samples


def split(samples: Sequence[Sample], held_out_share: float = 0.2) -> tuple[list[Sample], list[Sample]]:
    """Divide samples into those to calibrate on and those to measure on, each in their order.

    Samples with and without pictures are divided apart, evenly over their order and at least one of each kind
    to either side; a kind's only sample is calibrated on. Raises CalibrationError below MIN_SAMPLES samples.
    """
    assert 0 < held_out_share < 1, f"a share of {held_out_share} leaves one side empty"
    if len(samples) < MIN_SAMPLES:
        raise CalibrationError(
            f"{len(samples)} calibration samples were given and at least {MIN_SAMPLES} are needed, some of"
            " them to measure the result on; add conversations"
        )
    held: set[int] = set()
    for kind in (True, False):
        places = [place for place, sample in enumerate(samples) if sample.has_picture == kind]
        total = len(places)
        wanted = min(max(1, round(held_out_share * total)), total - 1)
        held |= {p for i, p in enumerate(places) if (i + 1) * wanted // total > i * wanted // total}
    kept = [sample for place, sample in enumerate(samples) if place not in held]
    return kept, [samples[place] for place in sorted(held)]


def encode_samples(
    samples: Sequence[Sample], tokenizer: Tokenizer, max_tokens: int, limits: ImageLimits | None = None
) -> list[EncodedSample]:
    """Bring samples to token ids and decoded pixels; both are held in memory, 3 KiB a patch of 16 pixels.

    A sample of more than max_tokens loses the text at its end. A picture is never cut, for the encoder knows
    whole ones only. Raises CalibrationError, which names the sample, for one whose pictures alone are too
    long, that the template does not allow, or whose picture cannot be decoded.
    """
    assert max_tokens > 0, f"max_tokens is {max_tokens}"
    if not samples:
        raise CalibrationError("no calibration samples were given; give at least one conversation")
    encoded = []
    for sample in samples:
        try:
            prompt = tokenizer.encode(_continued(sample.messages), limits=limits)
        except (MessageError, ImageError) as error:
            raise CalibrationError(f"{sample.name}: {error}") from error
        if not prompt.ids:
            raise CalibrationError(f"{sample.name} has no tokens; give it text")
        encoded.append(EncodedSample(sample.name, _cut(prompt, tokenizer, max_tokens, sample.name)))
    return encoded


def digest_samples(samples: Sequence[EncodedSample]) -> str:
    """Give the sha256, in hexadecimal, of what the model gets to see of the samples, in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.prompt.ids}{[image.shape for image in sample.prompt.images]}".encode())
        for image in sample.prompt.images:
            digest.update(image.tobytes())
    return digest.hexdigest()


def _continued(messages: list[Message]) -> list[Message]:
    """Have the template accept an answer as the last turn, by asking it to be continued.

    It then lacks the closing </s>. That is what runs too: </s> ends an answer and is fed back only with the
    turn that follows, where the template writes it.
    """
    if not messages or messages[-1].get("role") != "assistant":
        return messages
    return [*messages[:-1], messages[-1] | {"prefix": True}]


def _cut(prompt: Prompt, tokenizer: Tokenizer, max_tokens: int, name: str) -> Prompt:
    if len(prompt.ids) <= max_tokens:
        return prompt
    image_end = tokenizer.vision.image_end_token_id
    pictures_end = max((at + 1 for at, token in enumerate(prompt.ids) if token == image_end), default=0)
    if pictures_end > max_tokens:
        raise CalibrationError(
            f"{name} has {pictures_end} tokens to the end of its last picture and the limit is {max_tokens};"
            " use smaller or fewer pictures, or less text before them"
        )
    return replace(prompt, ids=prompt.ids[:max_tokens])


def _read_lines(file: Path, folder: Path, limits: ImageLimits) -> list[Sample]:
    try:
        data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise CalibrationError(f"{file} cannot be read ({error.strerror}); check the file") from error
    samples = []
    # Split at line feeds alone: JSON strings may hold the other characters that end lines in Unicode.
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            samples.append(Sample(f"{file.name}:{number}", _read_line(line, folder, limits)))
        except (CalibrationError, MessageError, ImageError) as error:
            raise CalibrationError(f"{file}, line {number}: {error}") from error
    return samples


def _read_line(line: bytes, folder: Path, limits: ImageLimits) -> list[Message]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"byte {error.start + 1} of the line is 0x{line[error.start]:02x}, which is not UTF-8; save the"
            " file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise CalibrationError(
            f"the line is not JSON ({error.msg} at character {error.pos + 1}); write one JSON object a line"
        ) from None
    except RecursionError:
        raise CalibrationError("the line is JSON nested too deeply; give messages as documented") from None
    if not isinstance(fields, dict):
        raise CalibrationError(f'the line is not an object but {_kind(fields)}; write {{"messages": […]}}')
    if not isinstance(fields.get("messages"), list):
        found = f"messages as {_kind(fields['messages'])}" if "messages" in fields else "no messages"
        raise CalibrationError(f'the line has {found}; write {{"messages": […]}} with a list of messages')

    messages = _with_pictures(fields["messages"], lambda where, name: _find(where, name, folder, limits))
    # The form is checked with a stand-in for every picture, so that none is decoded yet.
    stand_in = Image.new("RGB", (1, 1))
    turns = read_messages(_continued(_with_pictures(messages, lambda *_: stand_in)), limits)
    if not any(isinstance(part, str) and part.strip() for turn in turns for part in turn.parts):
        raise CalibrationError("the conversation has no text; ask something about the picture")
    return messages


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "null")


def _with_pictures(messages: list[Any], picture: Callable[[str, Any], object]) -> list[Message]:
    """Copy messages with picture(where, image) in place of every image; read_messages checks all the rest."""
    copies = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise CalibrationError(
                f'message {index} is not an object but {_kind(message)}; write {{"role": …, "content": …}}'
            )
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for at, part in enumerate(content):
                where = f"message {index}, part {at}"
                if isinstance(part, dict) and part.get("type") == "image_url":
                    raise CalibrationError(
                        f"{where} is an image_url, which calibration data cannot hold; save the picture in"
                        ' the folder and write {"type": "image", "image": "its/path.jpg"}'
                    )
                if isinstance(part, dict) and part.get("type") == "image":
                    part = part | {"image": picture(where, part.get("image"))}
                parts.append(part)
            message = message | {"content": parts}
        copies.append(message)
    return copies


def _find(where: str, name: object, folder: Path, limits: ImageLimits) -> Path:
    """Give the file behind a picture's relative path, which stays inside the folder, links followed."""
    if not isinstance(name, str) or not name:
        found = "an empty path" if name == "" else f"{_kind(name)} in place of a path"
        raise CalibrationError(f"{where} is an image with {found}; give its path relative to the folder")
    shown = name if len(name) <= 200 else name[:199] + "…"
    shown = shown if shown.isprintable() else ascii(shown)
    windows = PureWindowsPath(name)  # it knows both separators
    if PurePosixPath(name).is_absolute() or windows.anchor:
        raise CalibrationError(f"{where} has the absolute path {shown}; give a path relative to {folder}")
    try:
        file = (folder / name).resolve()
        is_file, exists = file.is_file(), file.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null character, a name too long
        reason = getattr(error, "strerror", None) or str(error).partition(":")[0]
        raise CalibrationError(
            f"{where} has the path {shown}, which cannot be followed ({reason}); rename the picture"
        ) from None
    if ".." in windows.parts or not file.is_relative_to(folder):
        raise CalibrationError(f"{where} has the path {shown}, which leaves {folder}; put the picture inside")
    if not is_file:
        what = "is not a file" if exists else "does not exist"
        raise CalibrationError(f"{where} names the picture {shown}, which {what} in {folder}; check the path")
    _check_header(file, shown, limits)
    return file


def _check_header(file: Path, name: str, limits: ImageLimits) -> None:
    """Read the size alone; where anything is unusual, read_image decides and finds the words."""
    try:
        # Pillow's own limit is only a warning, and read_image has ours.
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_HEADERS) as image:
            pixels = image.width * image.height
        if file.stat().st_size <= limits.max_bytes and 0 < pixels <= limits.max_pixels:
            return
    except Exception:  # a parser fed with damaged bytes raises nearly anything
        pass
    read_image(file, name, limits)
