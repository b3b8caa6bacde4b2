"""What all rows share: the subject, its trials, the settings, and the work that a run cannot do without."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from pixedge import prediction
from pixedge.config import ModelConfig
from pixedge.image import to_pixels
from pixedge.prediction import Stage
from pixedge.profile.rows import Row
from pixedge.profile.samples import Samples, repeat
from pixedge.profile.settings import Settings
from pixedge.profile.subject import Subject
from pixedge.profile.trials import Trials


@dataclass(frozen=True)
class Job:
    """A row to measure, and the phase whose memory it counts to."""

    name: str
    phase: str
    measure: Callable[[], Row]


@dataclass(frozen=True)
class Bench:
    """A subject and what to measure of it."""

    subject: Subject
    settings: Settings
    trials: Trials

    @property
    def config(self) -> ModelConfig:
        """The geometry as it was made."""
        return self.subject.model.config

    def repeat(self, run: Callable[[int], float], warm_up: Callable[[], object] | None = None) -> Samples:
        """Time runs as often as the settings say."""
        return repeat(run, self.settings.repeats, self.settings.enough, warm_up=warm_up)

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height of a picture once it is resized."""
        pixels = to_pixels(image, self.config.vision, self.settings.max_image_size)
        return pixels.shape[2], pixels.shape[1]

    def rest(self, batch: int) -> float:
        """Return the seconds of a step that do not grow with the layers."""
        return repeat(lambda _: self.trials.rest(batch), 5, 1.0).median

    def encode_work(self, size: tuple[int, int]) -> Stage:
        """Return the work of encoding a picture of that size."""
        return prediction.encode(self.config, *size)

    def prefill_work(self, tokens: int) -> tuple[Stage, ...]:
        """Return the work of a prompt, chunk by chunk."""
        setup = self.subject.plan.setup
        chunks = prediction.prefill_chunks(
            self.config.decoder,
            tokens,
            chunk=self.trials.engine.options.prefill_chunk,
            kv_bits=setup.kv_bits,
            group_size=setup.group_size,
            layout=self.subject.plan.layout,
            itemsize=setup.itemsize,
        )
        return tuple(chunks)

    def decode_work(self, batch: int, context: int) -> Stage:
        """Return the work of a token of each of ``batch`` answers behind ``context`` tokens."""
        setup = self.subject.plan.setup
        return prediction.decode_step(
            self.config.decoder,
            batch=batch,
            context=context,
            kv_bits=setup.kv_bits,
            group_size=setup.group_size,
            layout=self.subject.plan.layout,
            itemsize=setup.itemsize,
        )
