"""Whether something will fit and how fast it will be: a plan, what else would fit, and the time it takes.

Everything is known from the geometry and from the limits of a machine; nothing is loaded.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from pixedge.byte_size import write_bytes
from pixedge.config import ModelConfig
from pixedge.plan import Plan, Setup, Workload, largest_batch, largest_context, make_plan
from pixedge.prediction import Machine, Prediction, predict
from pixedge.scratch import picture_tokens

TEXT = 64
"""Tokens that a question and its answer need at least, beside pictures."""


@dataclass(frozen=True)
class Question:
    """What somebody wants to know before anything is loaded.

    context: tokens of an answer with its prompt; None is as many as fit. pictures: in each prompt, of
    ``picture`` pixels, brought down to ``max_image_size`` where that is given. batch: answers at a time.
    """

    context: int | None
    pictures: int
    picture: tuple[int, int]
    max_image_size: int | None = None
    batch: int = 1


@dataclass(frozen=True)
class Outlook:
    """The answer.

    model_context: the most tokens that the model was trained for. problems: sentences, none where it fits.
    picture_tokens: of one picture. prompt_tokens: of the pictures and 64 tokens of text. largest_context:
    that memory and model allow with this batch; most_pictures: that the context (asked for, or the largest)
    holds of this size; largest_batch: answers of this context, 16 at most; largest_image_size: the
    --max-image-size at which all pictures fit the context, None where none does or they fit as they are.
    """

    plan: Plan
    model_context: int
    problems: tuple[str, ...]
    picture_tokens: int
    prompt_tokens: int
    largest_context: int
    most_pictures: int
    largest_batch: int
    largest_image_size: int | None
    prediction: Prediction | None

    @property
    def timed_pictures(self) -> int:
        """Pictures of the prompt whose time is predicted: those asked for, or as many as fit."""
        return min(self.plan.workload.pictures, self.most_pictures)

    @property
    def timed_tokens(self) -> int:
        """Tokens of that prompt."""
        room = min(self.plan.workload.context, self.prompt_tokens)
        return min(room, self.timed_pictures * self.picture_tokens + TEXT)

    @property
    def fits(self) -> bool:
        """Whether it can be done as asked."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the keys are part of the interface (docs/plan.md)."""
        largest = {
            "context": self.largest_context,
            "pictures": self.most_pictures,
            "batch": self.largest_batch,
            "image_size": self.largest_image_size,
        }
        return self.plan.to_json() | {
            "fits": self.fits,
            "problems": list(self.problems),
            "picture_tokens": self.picture_tokens,
            "prompt_tokens": self.prompt_tokens,
            "largest": largest,
            "predicted": None if self.prediction is None else _prediction_json(self, self.prediction),
        }


def look_ahead(
    config: ModelConfig, setup: Setup, asked: Question, limit: int | None, machine: Machine | None
) -> Outlook:
    """Answer a question for a device of ``limit`` bytes and a machine's limits; None where unknown.

    A context that is asked for beyond the model's own is planned as asked.
    """
    own, config = config.decoder.context, config.reaching(asked.context or 0)
    size = _brought_down(asked.picture, asked.max_image_size)
    each = picture_tokens(config, *size)
    needed = asked.pictures * each + TEXT
    work = Workload(
        context=asked.context or config.decoder.context,
        batch=asked.batch,
        picture=size if asked.pictures else None,
        pictures=asked.pictures,
    )
    most = largest_context(config, setup, work, limit)
    context = asked.context or most or min(needed, config.decoder.context)
    work = replace(work, context=context)
    plan = make_plan(config, setup, work, limit)
    room = min(context, config.decoder.context)
    fitting = None
    if needed > room:
        fitting = _largest_image_size(config, asked, room)
    most_pictures = max(0, (room - TEXT) // each)
    timed = min(asked.pictures, most_pictures)
    prediction = None
    if machine is not None:
        prediction = predict(
            config,
            machine,
            prompt=min(timed * each + TEXT, room),
            context=room,
            pictures=timed,
            picture=size,
            batch=asked.batch,
            kv_bits=setup.kv_bits,
            group_size=setup.group_size,
            layout=plan.layout,
            itemsize=setup.itemsize,
        )
    return Outlook(
        plan=plan,
        model_context=own,
        problems=tuple(_problems(config, asked, plan, each, most)),
        picture_tokens=each if asked.pictures else 0,
        prompt_tokens=needed,
        largest_context=most,
        most_pictures=most_pictures,
        largest_batch=largest_batch(config, setup, work, limit),
        largest_image_size=fitting,
        prediction=prediction,
    )


def _problems(config: ModelConfig, asked: Question, plan: Plan, each: int, most: int) -> list[str]:
    """Say what does not fit, the model's own bounds before the machine's."""
    found, own, context = [], config.decoder.context, plan.workload.context
    pictures = asked.pictures * each
    count = "1 picture" if asked.pictures == 1 else f"{asked.pictures:,} pictures"
    if pictures + TEXT > own:
        found.append(
            f"{count} of {each:,} tokens are {pictures:,} tokens, and the model's context holds {own:,}"
        )
    elif pictures + TEXT > context:
        found.append(
            f"{count} of {each:,} tokens and {TEXT} tokens of text are {pictures + TEXT:,} tokens, and the "
            f"context is {context:,}"
        )
    if not plan.fits:
        found.append(
            f"{write_bytes(plan.total)} are needed, and {write_bytes(plan.limit or 0)} may be taken"
            + ("" if most else ": too few for any context")
        )
    return found


def _largest_image_size(config: ModelConfig, asked: Question, room: int) -> int | None:
    """Return the greatest --max-image-size in whole patches at which all pictures fit ``room`` tokens."""
    patch = config.vision.patch_size
    top = min(max(asked.picture), config.vision.image_size)
    for side in range(top // patch * patch, 0, -patch):
        if asked.pictures * picture_tokens(config, *_brought_down(asked.picture, side)) + TEXT <= room:
            return side
    return None


def _brought_down(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """Return width and height with the longer side brought down to ``longest``, as pictures are resized."""
    ratio = max(size) / longest if longest else 1.0
    if ratio <= 1:
        return size
    return max(round(size[0] / ratio), 1), max(round(size[1] / ratio), 1)


def _prediction_json(outlook: Outlook, prediction: Prediction) -> dict[str, Any]:
    machine = prediction.machine
    return {
        "pictures": outlook.timed_pictures,
        "prompt_tokens": outlook.timed_tokens,
        "machine": machine.name,
        "measured_shares": machine.measured,
        "bandwidth": machine.bandwidth,
        "operations": machine.operations,
        "encode": None if prediction.encode is None else asdict(prediction.encode),
        "prefill": asdict(prediction.prefill),
        "first_token": asdict(prediction.first_token),
        "decode": asdict(prediction.decode),
        "tokens_per_second": prediction.tokens_per_second,
        "limit_tokens_per_second": prediction.limit_tokens_per_second,
    }
