"""What a model will take of a machine's memory, by component, from its geometry alone.

The same numbers decide whether something fits before anything is loaded (``pixedge plan``), how large the
cache becomes, and how much torch and ONNX Runtime may take. No torch is needed here.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pixedge.config import ModelConfig
from pixedge.kernels.cuda.layout import PAGE
from pixedge.kernels.cuda.tuning import of_capability
from pixedge.scratch import (
    CUDA_CONTEXT,
    MIB,
    cpu_scratch,
    encoder_activations,
    gpu_scratch,
    picture_patches,
    process_bytes,
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

ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

MOST_KEPT = 64
"""Pictures of the largest size that are kept for later questions, where ``Setup.picture_bytes`` allows it."""

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
    multiprocessors, capability: of the GPU, by which kernels cut up their work.
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
    multiprocessors: int = 128
    capability: tuple[int, int] = (8, 9)

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Workload:
    """What is asked at a time.

    context: tokens that one answer under way may hold, its prompt and pictures included. batch: answers under
    way. picture: width and height of the largest picture in pixels, None for none. pictures: in each prompt.
    cache: places for tokens of all answers together; None is ``context`` for each.
    """

    context: int
    batch: int = 1
    picture: tuple[int, int] | None = (1024, 1024)
    pictures: int = 1
    cache: int | None = None

    @property
    def cache_tokens(self) -> int:
        """Places in the cache, in whole pages for each answer."""
        if self.cache is not None:
            return -(-self.cache // PAGE) * PAGE
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

    device: of the decoder's device, whose memory ``limit`` bounds (None: unknown). host: of the other memory,
    the host's beside a GPU; where only the encoder is on a GPU, what it takes of that.
    """

    setup: Setup
    workload: Workload
    device: Components
    host: Components
    limit: int | None
    one_picture: int = 0
    """Bytes of the embeddings of the largest picture."""

    @property
    def total(self) -> int:
        """Bytes of the device that are taken."""
        return self.device.total

    @property
    def left(self) -> int | None:
        """Bytes of the limit that are not taken, negative where it does not fit; None without a limit."""
        return None if self.limit is None else self.limit - self.total

    @property
    def layout(self) -> Layout:
        """How the 4-bit linears lie in memory."""
        return self.setup.layout or _usual_layout(self.setup)

    @property
    def fits(self) -> bool:
        """Whether the limit holds it all."""
        return self.left is None or self.left >= 0

    @property
    def arena(self) -> int:
        """Bytes that ONNX Runtime's arena may take of the encoder's device."""
        return sum(each.encoder_weights + each.encoder_activations for each in (self.device, self.host))

    @property
    def kept_pictures(self) -> int:
        """Bytes of embeddings of pictures that are kept for later questions."""
        return _kept_bytes(self.setup, self.one_picture)

    @property
    def torch_limit(self) -> int | None:
        """Bytes of a GPU for torch's allocator, beside CUDA and the encoder; None without a limit."""
        if self.limit is None:
            return None
        others = self.device.cuda_context + self.device.encoder_weights + self.device.encoder_activations
        return max(0, self.limit - others)

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


def largest_cache(config: ModelConfig, setup: Setup, workload: Workload, limit: int | None) -> int:
    """Return the most places for tokens that fit, in whole pages, ``workload.cache_tokens`` at most, or 0."""
    return PAGE * _largest(
        workload.cache_tokens // PAGE,
        lambda pages: make_plan(config, setup, replace(workload, cache=PAGE * pages), limit).fits,
    )


def _largest(most: int, fits: Callable[[int], bool]) -> int:
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
    one = patches * decoder.dim * item
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
    if layout == "cuda":
        prefill, decode = gpu_scratch(
            decoder,
            chunk=setup.prefill_chunk,
            batch=workload.batch,
            max_tokens=min(decoder.context, workload.cache_tokens),
            facts=of_capability(setup.multiprocessors, setup.capability),
        )
    else:
        prefill, decode = cpu_scratch(
            decoder, layout, chunk=setup.prefill_chunk, batch=workload.batch, itemsize=item
        )
    rest = Components(
        kv_cache=workload.cache_tokens * token_bytes(decoder, setup.kv_bits, item),
        # kept, being encoded, and held by an answer whose picture is kept no more
        pictures=_kept_bytes(setup, one) + 2 * one,
        prefill_scratch=prefill,
        decode_scratch=decode,
        cuda_context=CUDA_CONTEXT if cuda else 0,
        process=0 if cuda else process_bytes(decoder),
    )
    device = _add(weights, rest)
    host = Components()
    if cuda:
        host = Components(
            process=process_bytes(decoder), embeddings=embeddings if setup.host_embeddings else 0
        )
    if setup.vision_device != setup.device:
        host = _add(host, encoder)
    else:
        device = _add(device, encoder)
    # blocks of torch's allocator are rounded up, to 2 MiB where they are large
    margin = device.total // 100 + 128 * MIB if cuda else device.total // 100
    return Plan(setup, workload, replace(device, margin=margin), host, limit, one)


def _kept_bytes(setup: Setup, one: int) -> int:
    """Return the bytes of embeddings kept for later, of pictures of which the largest takes ``one``."""
    return min(setup.picture_bytes, MOST_KEPT * one)


def _usual_layout(setup: Setup) -> Layout:
    if setup.itemsize == 4 or (setup.device == "cpu" and setup.dtype != "bfloat16"):
        return "reference"
    return "cuda" if setup.device == "cuda" else "cpu"


def _add(one: Components, other: Components) -> Components:
    both = {field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(Components)}
    return Components(**both)
