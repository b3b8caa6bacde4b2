"""Whole questions about pictures through the engine, with the times at which their tokens came."""

import io
import time
from dataclasses import dataclass, field

from pixedge.image import ImageLimits, read_image
from pixedge.profile.spans import Recorder
from pixedge.profile.trials import Trials, endless
from pixedge.prompt import Prompt
from pixedge.request import Request

QUESTION = "What is in this picture? Name what stands in front, what is behind it, and the colours."


@dataclass(frozen=True)
class Asking:
    """What is asked: the files of its pictures, the cap on their longer side, the tokens of the answer."""

    pictures: tuple[bytes, ...]
    answer_tokens: int
    max_image_size: int | None = None


@dataclass
class Asked:
    """A question under way: when it came, and when each of its tokens did, in time.perf_counter's seconds."""

    arrived: float
    request: Request
    slot: str
    times: list[float] = field(default_factory=list)

    @property
    def first_token(self) -> float:
        """Seconds from the question to the first token."""
        return self.times[0] - self.arrived

    @property
    def end_to_end(self) -> float:
        """Seconds from the question to the last token."""
        return self.times[-1] - self.arrived

    @property
    def between(self) -> list[float]:
        """Seconds from each token to the next."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def ask(
    trials: Trials, asking: Asking, recorder: Recorder, requests: int = 1, concurrency: int = 1
) -> list[Asked]:
    """Ask ``requests`` times, ``concurrency`` at a time: when one is answered the next one comes.

    Nobody has seen the pictures before, and every answer has its full length. A question comes when its turn
    is there; that others' pictures are read first counts for it.
    """
    engine = trials.engine
    free = [f"question {slot + 1}" for slot in range(min(concurrency, requests))][::-1]
    asked: list[Asked] = []
    active: list[Asked] = []
    try:
        with endless(engine):
            while len(asked) < requests or active:
                arrived = time.perf_counter()
                while free and len(asked) < requests:
                    slot = free.pop()
                    prompt = build_prompt(trials, asking, recorder, slot)
                    request = trials.submit(trials.changed(prompt), asking.answer_tokens)
                    asked.append(Asked(arrived, request, slot))
                    active.append(asked[-1])
                engine.step()
                now = engine.runner.now()
                for one in list(active):
                    _take(one, now)
                    if one.request.finished:
                        active.remove(one)
                        free.append(one.slot)
                        _record(one, recorder)
    finally:
        for one in active:
            engine.cancel(one.request)
    return asked


def build_prompt(trials: Trials, asking: Asking, recorder: Recorder, track: str) -> Prompt:
    """Read and resize the pictures' files and build the ids."""
    with recorder.span(track, "read", pictures=len(asking.pictures)):
        limits = ImageLimits()
        images = [read_image(io.BytesIO(data), "the picture", limits) for data in asking.pictures]
    content: list[dict[str, object]] = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": QUESTION})
    with recorder.span(track, "resize and tokenise"):
        messages = [{"role": "user", "content": content}]
        return trials.model.tokenizer.encode(messages, asking.max_image_size)


def _take(asked: Asked, now: float) -> None:
    """Note the tokens that have come; raise the error that ended the answer."""
    while asked.request.ready:
        asked.request.ready.popleft()
        asked.times.append(now)
    if asked.request.error is not None:
        raise asked.request.error


def _record(asked: Asked, recorder: Recorder) -> None:
    tokens = len(asked.request.prompt.ids)
    recorder.add(asked.slot, "question", asked.arrived, asked.times[-1], tokens=tokens)
    recorder.add(asked.slot, "answer", asked.times[0], asked.times[-1], tokens=len(asked.times))
