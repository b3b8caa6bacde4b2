"""One request on its way through the engine: what is asked, what it holds, what was answered so far."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pixedge.config import VisionConfig
from pixedge.kernels.attention import PAGE
from pixedge.prefix import PageNames, hash_picture
from pixedge.prompt import Prompt
from pixedge.sampling import SampledToken, Sampler
from pixedge.stage import OnStage, Stage


@dataclass
class Stopwatch:
    """Seconds that one answer took, by stage; what several requests share counts for each of them.

    encode: the vision encoder. prefill: the steps that took the prompt. first_token: everything up to the
    choice of the first token, waiting for other requests' steps included. decode: from there to the last
    token. The engine stands still while nobody asks for a token, and that time is not counted.
    """

    encode: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a prompt: pixels float32 [3, H, W], their hash, its [IMG] tokens' places in the ids."""

    pixels: np.ndarray
    hash: bytes
    places: np.ndarray  # ints [patches], ascending


class Request:
    """A prompt and its answer; the engine changes it in its steps, ``Engine.tokens`` reads it.

    ids: the prompt's and then the answer's. held: how many of them have their keys and values in the cache.
    table: the pages that hold them, int32 [pages], of which the first ``pages`` are taken, ``reserved`` more
    are promised and ``kept`` are known by name. cached: tokens found in the cache and not computed. ready:
    tokens of the answer that nobody has read yet. finished: no more will come; ``error`` tells why if it is
    one.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampler: Sampler,
        room: int,
        vision: VisionConfig,
        on_stage: OnStage | None = None,
    ) -> None:
        """Prepare an answer of at most ``room`` tokens."""
        self.prompt = prompt
        self.sampler = sampler
        self.room = room
        self.ids = list(prompt.ids)
        self.pictures = _place_pictures(prompt, vision)
        self.names = PageNames(prompt.ids, [(picture.hash, picture.places) for picture in self.pictures])
        # The last token is chosen but never fed back, so it needs no place.
        self.table = np.zeros(-(-(len(prompt.ids) + room - 1) // PAGE), np.int32)
        self.pages = self.kept = self.reserved = 0
        self.held = self.cached = 0
        self.embeddings: dict[bytes, Tensor] = {}  # of the pictures that the next chunk needs, by their hash
        self.ready: deque[SampledToken] = deque()
        self.finished = False
        self.error: Exception | None = None
        self.watch = Stopwatch()
        self._on_stage = on_stage

    @property
    def prefilling(self) -> bool:
        """Whether a part of the prompt is still to be computed."""
        return self.held < len(self.prompt.ids)

    @property
    def answered(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.ids) - len(self.prompt.ids)

    def clock(self, seconds: float) -> None:
        """Count the time of a step during which this request waited or was worked on."""
        if self.answered:
            self.watch.decode += seconds
        else:
            self.watch.first_token += seconds

    def begin_picture(self, picture: Picture) -> None:
        """Tell whoever watches that a picture goes through the encoder now."""
        if self._on_stage is not None:
            height, width = picture.pixels.shape[1:]
            at = self.pictures.index(picture)
            self._on_stage(Stage("picture", at, len(self.pictures), (width, height)))

    def begin_chunk(self) -> None:
        """Tell whoever watches that the next part of the prompt is computed now."""
        if self._on_stage is not None and self.prefilling:
            self._on_stage(Stage("prompt", self.held, len(self.prompt.ids)))

    def append(self, token: SampledToken) -> None:
        """Add a token to the answer."""
        self.ids.append(token.id)
        self.names.append(token.id)
        self.ready.append(token)

    def pictures_within(self, end: int) -> list[Picture]:
        """Return the pictures that have tokens from ``held`` up to ``end``."""
        return [each for each in self.pictures if each.places[0] < end and each.places[-1] >= self.held]

    def drop_embeddings(self) -> None:
        """Let go of the pictures that lie behind ``held``."""
        if self.embeddings:
            ahead = {each.hash for each in self.pictures_within(len(self.ids))}
            self.embeddings = {key: value for key, value in self.embeddings.items() if key in ahead}


def _place_pictures(prompt: Prompt, vision: VisionConfig) -> tuple[Picture, ...]:
    """Share the prompt's [IMG] tokens out among its pictures, in order."""
    places = np.flatnonzero(np.asarray(prompt.ids) == vision.image_token_id)
    counts = [image.shape[1] * image.shape[2] // vision.patch_size**2 for image in prompt.images]
    assert len(places) == sum(counts), f"{len(places)} [IMG] ids, {sum(counts)} embeddings"
    parts = np.split(places, np.cumsum(counts)[:-1])
    return tuple(
        Picture(image, hash_picture(image), part) for image, part in zip(prompt.images, parts, strict=False)
    )
