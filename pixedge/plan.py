"""What a model will take of a machine's memory, by component, from its geometry alone.

The same numbers decide whether something fits before anything is loaded (``pixedge plan``), how large the
cache becomes, and how much torch and ONNX Runtime may take. No torch is needed here.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pixedge.config import ModelConfig
from pixedge.scratch import (
    CUDA_CONTEXT,
    MIB,
    PROCESS,
    decode_scratch,
    encoder_activations,
    picture_patches,
    prefill_scratch,
)
from pixedge.stored_weights import (
    Layout,
    VisionForm,
    embeddings_bytes,
    encoder_bytes,
    head_bytes,
    linears_bytes,
    norms_bytes,
    token_bytes,
)

PAGE = 16
"""Tokens of a page of the cache."""

ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Setup:
    """How a model is held: where, and in what.

    device, vision_device: where decoder and encoder run. dtype: of activations. kv_bits: of a stored key or
    value. group_size, zeros: of the 4-bit linears (see ``stored_weights.linears_bytes``). layout: of them in
    memory; None is the usual one of the device. vision_form: of the encoder; None likewise. prefill_chunk:
    tokens of prompts in a step. picture_bytes: embeddings of pictures kept for later questions.
    host_embeddings: token embeddings stay in host memory, from where a step fetches its rows; None puts them
    there where the rest would not fit otherwise. On a CPU 16-bit ones always stay in their file.
    """

    device: Kind = "cuda"
    vision_device: Kind = "cuda"
    dtype: str = "bfloat16"
    kv_bits: Literal[8, 16] = 8
    group_size: int = 128
    zeros: bool = False
    layout: Layout | None = None
    vision_form: VisionForm | None = None
    prefill_chunk: int = 512
    picture_bytes: int = 256 * MIB
    host_embeddings: bool | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Workload:
    """What is asked at a time.

    context: tokens that one answer under way may hold, its prompt and pictures included. batch: answers under
    way. picture: width and height of the largest picture in pixels, None for none. pictures: in each prompt.
    """

    context: int
    batch: int = 1
    picture: tuple[int, int] | None = (1024, 1024)
    pictures: int = 1

    @property
    def cache_tokens(self) -> int:
        """Places in the cache, in whole pages for each answer."""
        return self.batch * -(-self.context // PAGE) * PAGE


@dataclass(frozen=True)
class Components:
    """Bytes of one memory, by what takes them; the sum is ``total``."""

    linears: int = 0
    head: int = 0
    norms: int = 0
    embeddings: int = 0
    encoder_weights: int = 0
    encoder_activations: int = 0
    kv_cache: int = 0
    pictures: int = 0
    prefill_scratch: int = 0
    decode_scratch: int = 0
    cuda_context: int = 0
    process: int = 0
    margin: int = 0

    @property
    def total(self) -> int:
        """Return the sum of all components."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Plan:
    """Bytes by component for a workload.

    device: of the device's memory, which ``limit`` bounds (None: unknown). host: what a GPU's plan takes of
    the host's memory besides; nothing of it on a CPU, where device is the host.
    """

    setup: Setup
    workload: Workload
    device: Components
    host: Components
    limit: int | None

    @property
    def total(self) -> int:
        """Bytes of the device that are taken."""
        return self.device.total

    @property
    def left(self) -> int | None:
        """Bytes of the limit that are not taken, negative where it does not fit; None without a limit."""
        return None if self.limit is None else self.limit - self.total

    @property
    def fits(self) -> bool:
        """Whether the limit holds it all."""
        return self.left is None or self.left >= 0

    @property
    def arena(self) -> int:
        """Bytes that ONNX Runtime's arena may take of the device."""
        return self.device.encoder_weights + self.device.encoder_activations

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values; the keys are part of the interface (docs/plan.md)."""
        return {
            "setup": asdict(self.setup),
            "workload": asdict(self.workload) | {"cache_tokens": self.workload.cache_tokens},
            "device": asdict(self.device) | {"total": self.device.total},
            "host": asdict(self.host) | {"total": self.host.total},
            "total": self.total,
            "limit": self.limit,
            "left": self.left,
            "fits": self.fits,
        }


def make_plan(config: ModelConfig, setup: Setup, workload: Workload, limit: int | None = None) -> Plan:
    """Plan a workload; ``limit`` bounds the bytes of the device's memory, None is unknown.

    Where ``setup.host_embeddings`` is None, the plan's own setup tells where the embeddings went.
    """
    if setup.device == "cpu" or setup.host_embeddings is not None:
        return _plan(config, setup, workload, limit)
    on_device = _plan(config, replace(setup, host_embeddings=False), workload, limit)
    return (
        on_device if on_device.fits else _plan(config, replace(setup, host_embeddings=True), workload, limit)
    )


def largest_context(config: ModelConfig, setup: Setup, workload: Workload, limit: int | None) -> int:
    """Return the most tokens of each answer that fit, in whole pages; the model's context at most, or 0."""
    most = config.decoder.context // PAGE
    return PAGE * _largest(
        most, lambda pages: make_plan(config, setup, replace(workload, context=PAGE * pages), limit).fits
    )


def largest_batch(
    config: ModelConfig, setup: Setup, workload: Workload, limit: int | None, most: int = 16
) -> int:
    """Return how many answers of the workload's context fit at a time, ``most`` at most, or 0."""
    return _largest(most, lambda batch: make_plan(config, setup, replace(workload, batch=batch), limit).fits)


def _largest(most: int, fits: Any) -> int:
    """Return the greatest n of 0 to ``most`` that fits, where all below one that fits do; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _plan(config: ModelConfig, setup: Setup, workload: Workload, limit: int | None) -> Plan:
    decoder, item, cuda = config.decoder, setup.itemsize, setup.device == "cuda"
    layout = setup.layout or _usual_layout(setup)
    form = setup.vision_form or ("float16" if setup.vision_device == "cuda" else "float32")
    patches = 0 if workload.picture is None else picture_patches(config, *workload.picture)
    embeddings = embeddings_bytes(decoder, item)
    in_file = not cuda and item == 2  # mapped, and read row by row
    weights = Components(
        linears=linears_bytes(decoder, setup.group_size, layout, zeros=setup.zeros, itemsize=item),
        head=head_bytes(decoder, layout),
        norms=norms_bytes(decoder, layout, item),
        embeddings=0 if setup.host_embeddings or in_file else embeddings,
    )
    encoder = Components(
        encoder_weights=encoder_bytes(config, form),
        encoder_activations=encoder_activations(config, patches, form),
    )
    rest = Components(
        kv_cache=workload.cache_tokens * token_bytes(decoder, setup.kv_bits, item),
        pictures=_kept_pictures(config, setup, workload, patches),
        prefill_scratch=prefill_scratch(decoder, layout, setup.prefill_chunk, item),
        decode_scratch=decode_scratch(decoder, layout, workload.batch, workload.context, item),
        cuda_context=CUDA_CONTEXT if cuda else 0,
        process=0 if cuda else PROCESS,
    )
    device = _add(weights, rest)
    host = Components()
    if cuda:
        host = Components(process=PROCESS, embeddings=embeddings if setup.host_embeddings else 0)
    if cuda and setup.vision_device == "cpu":
        host = _add(host, encoder)
    else:
        device = _add(device, encoder)
    # blocks of torch's allocator are rounded up, to 2 MiB where they are large
    margin = device.total // 100 + 128 * MIB if cuda else device.total // 100
    return Plan(setup, workload, replace(device, margin=margin), host, limit)


def _kept_pictures(config: ModelConfig, setup: Setup, workload: Workload, patches: int) -> int:
    """Return the bytes of embeddings held: what is kept for later, and the picture that is being encoded."""
    one = patches * config.decoder.dim * setup.itemsize
    return setup.picture_bytes + 2 * one if patches else 0


def _usual_layout(setup: Setup) -> Layout:
    if setup.itemsize == 4 or (setup.device == "cpu" and setup.dtype != "bfloat16"):
        return "reference"
    return "cuda" if setup.device == "cuda" else "cpu"


def _add(one: Components, other: Components) -> Components:
    both = {field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(Components)}
    return Components(**both)
