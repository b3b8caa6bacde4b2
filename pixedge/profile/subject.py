"""What is profiled: a loaded model, or one of random weights in a real shape."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pixedge.config import ModelConfig
from pixedge.engine import Engine
from pixedge.errors import CapacityError
from pixedge.loading import DTYPES, KV_BITS, choose_device, engine_options, plan_model
from pixedge.memory import enforce
from pixedge.model import Model
from pixedge.plan import Plan
from pixedge.profile.limits import finish
from pixedge.profile.random_decoder import GROUP_SIZE, random_any_decoder
from pixedge.tokenizer import Tokenizer
from pixedge.vision import VisionSession

TOKENIZER_FILE = "tekken.json"
MAX_REQUESTS = 16
"""Answers that can be under way at a time, as ``pixedge.load`` has it."""


@dataclass(frozen=True)
class Subject:
    """A model that answers, and what it stands for.

    name: of the folder or of the shape. config: the geometry that is asked about; fewer of the decoder's
    layers may have been made. synthetic: the weights are random.
    """

    name: str
    model: Model
    config: ModelConfig
    synthetic: bool = False

    @property
    def made(self) -> int:
        """Decoder layers that there are."""
        return self.model.config.decoder.n_layers

    @property
    def whole(self) -> int:
        """Decoder layers that are asked about."""
        return self.config.decoder.n_layers

    @property
    def device(self) -> torch.device:
        """Where the decoder runs."""
        return self.model.engine.device

    @property
    def plan(self) -> Plan:
        """What was planned of the memory before it was loaded."""
        assert self.model.plan is not None
        return self.model.plan


def random_subject(
    name: str,
    config: ModelConfig,
    layers: int,
    folder: Path,
    *,
    device: str = "auto",
    vision_device: str = "auto",
    dtype: str = "auto",
    kv_cache: str = "auto",
    context: int | None = None,
    max_image_size: int | None = None,
    vram_limit: int | None = None,
    threads: int | None = None,
) -> Subject:
    """Make a model of random weights, ``layers`` of the decoder's; the arguments are those of ``load``.

    folder: holds the encoder's graphs with their random weights, and a tokenizer of the shape's vocabulary.
    The token embeddings are not made: their rows are windows of one small tensor.
    """
    place = choose_device(device)
    start = finish(place)
    seen = place if vision_device == "auto" else choose_device(vision_device)
    chosen = DTYPES.get(dtype, torch.bfloat16)
    if threads is not None:
        torch.set_num_threads(threads)
    made = replace(config, decoder=replace(config.decoder, n_layers=layers))
    try:
        plan = plan_model(
            made,
            folder,
            place,
            seen,
            chosen,
            bits=KV_BITS[kv_cache],
            group_size=GROUP_SIZE,
            zeros=False,
            limit=vram_limit,
            context=context,
            max_requests=MAX_REQUESTS,
            max_image_size=max_image_size,
        )
    except CapacityError as error:
        raise CapacityError(f"{error}, or make fewer layers with --layers") from None
    enforce(plan, place)
    tokenizer = Tokenizer(folder / TOKENIZER_FILE, made.vision, made.decoder.vocab_size)
    with torch.inference_mode():
        decoder = random_any_decoder(made.decoder, chosen, place)
    vision = VisionSession(folder, made, seen, threads, plan.arena, chosen == torch.float32)
    if seen.type == "cuda":
        vision.warm_up(max_image_size)
    engine = Engine(made, decoder, vision, place, chosen, tokenizer.stop_ids, engine_options(plan))
    model = Model(made, engine, tokenizer, folder, finish(place) - start, max_image_size, plan)
    return Subject(name, model, config, synthetic=True)
