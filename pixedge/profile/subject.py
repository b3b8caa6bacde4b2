"""What is profiled: a loaded model, or one of random weights in a real shape."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pixedge.budget import plan_load
from pixedge.config import ModelConfig
from pixedge.errors import CapacityError
from pixedge.loading import DTYPES, KV_BITS, assemble, choose_device, held_layout, plan_model
from pixedge.memory import usable_memory
from pixedge.model import Model
from pixedge.plan import Plan, Setup
from pixedge.profile.limits import finish
from pixedge.profile.random_decoder import GROUP_SIZE, random_any_decoder

if TYPE_CHECKING:
    from pixedge.decoder import Decoder
    from pixedge.gpu_decoder import GpuDecoder

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

    def make_decoder(*, host_embeddings: bool) -> "Decoder | GpuDecoder":
        with torch.inference_mode():
            return random_any_decoder(made.decoder, chosen, place)

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
        raise _fewer_layers(error) from None
    model = assemble(
        made,
        folder,
        plan,
        make_decoder,
        place,
        seen,
        chosen,
        threads=threads,
        max_image_size=max_image_size,
        start=start,
    )
    return Subject(name, model, config, synthetic=True)


def refuse_what_cannot_fit(made: ModelConfig, options: Mapping[str, Any]) -> None:
    """Refuse, before minutes of making it, what ``random_subject`` would refuse; options are its arguments.

    The encoder's graphs are not there yet: it is counted in its smallest form.
    """
    place = choose_device(options["device"])
    dtype = DTYPES.get(options["dtype"], torch.bfloat16)
    setup = Setup(
        device="cuda" if place.type == "cuda" else "cpu",
        vision_device="cuda" if place.type == "cuda" else "cpu",
        dtype=str(dtype).removeprefix("torch."),
        kv_bits=KV_BITS[options["kv_cache"]] or (8 if dtype.itemsize == 2 else 16),
        layout=held_layout(dtype, place, GROUP_SIZE),
        vision_form="float16" if place.type == "cuda" else "fused",
    )
    limit = options["vram_limit"] or usable_memory(place)
    try:
        plan_load(made, setup, limit=limit, tokens=options["context"], picture=options["max_image_size"])
    except CapacityError as error:
        raise _fewer_layers(error) from None


def _fewer_layers(error: CapacityError) -> CapacityError:
    return CapacityError(f"{error}, or make fewer layers with --layers")
