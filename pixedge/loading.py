"""``pixedge.load``: an exported folder to a model that answers."""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from pixedge.artifact import load_any_decoder, open_artifact
from pixedge.budget import plan_load
from pixedge.byte_size import parse_bytes
from pixedge.config import ModelConfig
from pixedge.cuda_fit import driver_too_old
from pixedge.engine import Engine, EngineOptions
from pixedge.errors import UsageError
from pixedge.kernels import int4
from pixedge.kernels.cpu.products import Int4Cpu
from pixedge.kernels.cuda import available, launcher
from pixedge.memory import enforce, usable_memory
from pixedge.model import Model
from pixedge.out_of_memory import told
from pixedge.plan import Plan, Setup
from pixedge.stored_weights import Layout
from pixedge.terminal import complain
from pixedge.tokenizer import Tokenizer
from pixedge.vision import VisionSession, vision_form

if TYPE_CHECKING:
    from pixedge.decoder import Decoder
    from pixedge.gpu_decoder import GpuDecoder

TOKENIZER_FILE = "tekken.json"
KV_BITS: dict[str, Literal[8, 16] | None] = {"auto": None, "16bit": 16, "8bit": 8}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MakeDecoder(Protocol):
    """What gives a model its decoder."""

    def __call__(self, *, host_embeddings: bool) -> "Decoder | GpuDecoder":
        """Give a decoder on its device; host_embeddings: with its token embeddings in host memory."""
        ...


@told()
def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    vision_device: str = "auto",
    threads: int | None = None,
    kv_cache: str = "auto",
    context: int | None = None,
    max_image_size: int | None = None,
    max_requests: int = 16,
    vram_limit: int | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Model:
    """Load an exported folder.

    device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N". dtype of activations:
    "auto" is bfloat16; float32 is exact and slow. vision_device: where pictures are encoded, by default
    ``device``. threads: CPU threads, by default all cores. kv_cache: "16bit" keeps keys and values in dtype,
    "8bit" in half of the memory of a 16-bit dtype; "auto" is 8bit where dtype has 16 bits. context: tokens
    that the cache holds, of all answers under way together; by default the model's context or what memory
    allows (see pixedge.memory); one answer at a time (max_requests=1) may go beyond the model's context where
    more is given. max_image_size: cap on the longer side of every picture, in pixels.
    max_requests: answers under way at a time. vram_limit: most memory of ``device`` to take, bytes or text
    such as "24GiB"; by default what is free. progress(phase, done, total) reports loading.
    Raises UsageError for an argument, ArtifactError or CheckpointError for a folder that is incomplete or
    altered, CapacityError for what memory cannot hold, and PixedgeError when the vision session
    cannot start on its device.
    """
    start = time.perf_counter()
    artifact = open_artifact(path)
    place = choose_device(device)
    vision_place = place if vision_device == "auto" else choose_device(vision_device)
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"dtype is {dtype!r}; use auto, {', '.join(DTYPES)}")
    chosen = DTYPES.get(dtype, torch.bfloat16)
    if kv_cache not in KV_BITS:
        raise UsageError(f"kv_cache is {kv_cache!r}; use {', '.join(KV_BITS)}")
    if context is not None and context < 1:
        raise UsageError(f"context is {context}; give 1 or more tokens")
    if max_image_size is not None and max_image_size < 1:
        raise UsageError(f"max_image_size is {max_image_size}; give 1 or more pixels")
    if max_requests < 1:
        raise UsageError(f"max_requests is {max_requests}; give 1 or more")
    limit = parse_bytes(vram_limit, "vram_limit") if isinstance(vram_limit, str) else vram_limit
    if limit is not None and limit < 1:
        raise UsageError(f"vram_limit is {limit}; give 1 or more bytes")
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)
    if context is not None and context > artifact.config.decoder.context and max_requests == 1:
        artifact = replace(artifact, config=artifact.config.reaching(context))
    elif note := artifact.config.decoder.context_note():
        print(f"pixedge: {note}", file=sys.stderr)
    plan = plan_model(
        artifact.config,
        artifact.folder,
        place,
        vision_place,
        chosen,
        bits=KV_BITS[kv_cache],
        group_size=artifact.group_size,
        zeros=artifact.zero_offset is not None,
        limit=limit,
        context=context,
        max_requests=max_requests,
        max_image_size=max_image_size,
    )
    decoder = functools.partial(load_any_decoder, artifact, chosen, place, _phase(progress, "weights"))
    return assemble(
        artifact.config,
        artifact.folder,
        plan,
        decoder,
        place,
        vision_place,
        chosen,
        threads=threads,
        max_image_size=max_image_size,
        start=start,
        progress=progress,
    )


def assemble(
    config: ModelConfig,
    folder: Path,
    plan: Plan,
    make_decoder: MakeDecoder,
    place: torch.device,
    vision_place: torch.device,
    dtype: torch.dtype,
    *,
    threads: int | None,
    max_image_size: int | None,
    start: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> Model:
    """Make a model as the plan has it; the arguments are ``load``'s, resolved.

    folder: holds tokenizer and encoder. make_decoder(host_embeddings=) gives the decoder. start: when loading
    began, by time.perf_counter.
    """
    enforce(plan, place)
    if plan.layout == "cuda":
        launcher.prepare()  # before gigabytes are read
    tokenizer = Tokenizer(folder / TOKENIZER_FILE, config.vision, config.decoder.vocab_size)
    decoder = make_decoder(host_embeddings=bool(plan.setup.host_embeddings))
    if progress:
        progress("vision", 0, 1)
    exact = dtype == torch.float32
    vision = VisionSession(folder, config, vision_place, threads, plan.arena, exact)
    if vision_place.type == "cuda":
        # takes all the memory that a picture will ever need, before anything is answered
        vision.warm_up(max_image_size)
    if progress:
        progress("vision", 1, 1)
    options, kernels = engine_options(plan), _phase(progress, "kernels")
    engine = Engine(config, decoder, vision, place, dtype, tokenizer.stop_ids, options, kernels)
    return Model(config, engine, tokenizer, folder, time.perf_counter() - start, max_image_size, plan)


def _phase(progress: Callable[[str, int, int], None] | None, name: str) -> Callable[[int, int], None] | None:
    """Give what reports one phase of loading."""
    return functools.partial(progress, name) if progress else None


def plan_model(
    config: ModelConfig,
    folder: Path,
    place: torch.device,
    vision_place: torch.device,
    dtype: torch.dtype,
    *,
    bits: Literal[8, 16] | None,
    group_size: int,
    zeros: bool,
    limit: int | None,
    context: int | None,
    max_requests: int,
    max_image_size: int | None,
) -> Plan:
    """Plan a model before it is loaded; the arguments are ``load``'s, resolved.

    folder: holds the encoder's graphs. bits: of the cache. group_size, zeros: of the 4-bit linears. Raises
    CapacityError as ``plan_load`` does.
    """
    multiprocessors, capability = _processors(place)
    setup = Setup(
        device="cuda" if place.type == "cuda" else "cpu",
        vision_device="cuda" if vision_place.type == "cuda" else "cpu",
        dtype=str(dtype).removeprefix("torch."),
        kv_bits=bits or (8 if dtype.itemsize == 2 else 16),
        group_size=group_size,
        zeros=zeros,
        layout=held_layout(dtype, place, group_size),
        vision_form=vision_form(folder, vision_place, exact=dtype == torch.float32),
        multiprocessors=multiprocessors,
        capability=capability,
    )
    return plan_load(
        config,
        setup,
        limit=usable_memory(place) if limit is None else limit,
        tokens=context,
        batch=max_requests,
        picture=max_image_size,
    )


def engine_options(plan: Plan) -> EngineOptions:
    """Give an engine what the plan has for it."""
    return EngineOptions(
        kv_bits=plan.setup.kv_bits,
        cache_tokens=plan.workload.cache_tokens,
        max_requests=plan.workload.batch,
        prefill_chunk=plan.setup.prefill_chunk,
        picture_bytes=plan.kept_pictures,
    )


def _processors(device: torch.device) -> tuple[int, tuple[int, int]]:
    """Return a GPU's number of multiprocessors and its compute capability; a CPU has none."""
    if device.type != "cuda":
        return 1, (0, 0)
    facts = torch.cuda.get_device_properties(device)
    return facts.multi_processor_count, (facts.major, facts.minor)


def held_layout(dtype: torch.dtype, device: torch.device, group_size: int) -> Layout:
    """Tell how 4-bit linears lie in memory, as ``kernels.int4.choose`` has it for whole blocks of outputs."""
    if device.type == "cuda":
        return "cuda" if dtype.itemsize == 2 and available(device) else "reference"
    kernel = int4.choose(dtype, device, 16, group_size if group_size > 0 else 128)
    if isinstance(kernel, Int4Cpu):
        return "cpu"
    return "torch" if isinstance(kernel, int4.TorchCpu) else "reference"


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that exists; UsageError otherwise.

    A CUDA device has its index from here on, which torch's memory limit and ONNX Runtime ask for.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and (reason := driver_too_old(torch.version.cuda)):
            complain(f"the GPU is not used: {reason}; install a newer NVIDIA driver")
    try:
        device = torch.device(name)
    except RuntimeError:  # no device of any kind
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"device is {name!r}; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            if reason := driver_too_old(torch.version.cuda):
                raise UsageError(
                    f"device is {name!r}, but {reason}; install a newer NVIDIA driver, or use the device cpu"
                )
            raise UsageError(
                f"device is {name!r}, but torch {torch.__version__} finds no CUDA device; install a CUDA "
                "build of torch and a driver, or use the device cpu"
            )
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device.index >= (count := torch.cuda.device_count()):
            there = "the only CUDA device is cuda:0; use that"
            if count > 1:
                there = f"the CUDA devices are 0 to {count - 1}; name one"
            raise UsageError(f"device is {name!r}, but {there}")
    return device
