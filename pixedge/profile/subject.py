"""What is profiled: a loaded model, or one of random weights in a real shape."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pixedge.config import ModelConfig
from pixedge.decoder import Decoder
from pixedge.engine import Engine, EngineOptions
from pixedge.kernels.cpu.products import Int4Cpu
from pixedge.kernels.int4 import Reference, TorchCpu
from pixedge.kernels.vision.fast import operators_file
from pixedge.linear import Int4Linear
from pixedge.loading import DTYPES, KV_BITS, choose_device
from pixedge.memory import limit_memory
from pixedge.model import Model
from pixedge.plan import Setup
from pixedge.profile.limits import finish
from pixedge.profile.random_decoder import GROUP_SIZE, random_any_decoder
from pixedge.stored_weights import Layout, VisionForm
from pixedge.tokenizer import Tokenizer
from pixedge.vision import FUSED_GRAPH, VisionSession

TOKENIZER_FILE = "tekken.json"
_LAYOUTS: dict[type, Layout] = {Int4Cpu: "cpu", TorchCpu: "torch", Reference: "reference"}


@dataclass(frozen=True)
class Subject:
    """A model that answers, and what it stands for.

    name: of the folder or of the shape. config: the geometry that is asked about; fewer of the decoder's
    layers may have been made. group_size: of the 4-bit linears. synthetic: the weights are random.
    """

    name: str
    model: Model
    config: ModelConfig
    group_size: int
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
    def layout(self) -> Layout:
        """How the 4-bit linears lie in memory."""
        decoder = self.model.engine.decoder
        if not isinstance(decoder, Decoder):
            return "cuda"
        kernels = (each.kernel for each in decoder.layers.modules() if isinstance(each, Int4Linear))
        return _LAYOUTS[type(next(kernels))]

    @property
    def setup(self) -> Setup:
        """How the model is held, as a plan has it."""
        engine = self.model.engine
        vision = engine.vision
        on_gpu = isinstance(vision, VisionSession) and vision.device.type == "cuda"
        # as the session chooses among the folder's graphs
        fused = engine.dtype != torch.float32 and (self.model.folder / FUSED_GRAPH).is_file()
        fused = fused and operators_file() is not None
        form: VisionForm = "float16" if on_gpu else "fused" if fused else "float32"
        return Setup(
            device="cuda" if self.device.type == "cuda" else "cpu",
            vision_device="cuda" if on_gpu else "cpu",
            dtype=str(engine.dtype).removeprefix("torch."),
            kv_bits=engine.kv_bits,
            group_size=self.group_size,
            layout=self.layout,
            vision_form=form,
            prefill_chunk=engine.options.prefill_chunk,
            picture_bytes=engine.options.picture_bytes,
        )


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
    if vram_limit is not None:
        limit_memory(place, vram_limit)
    if threads is not None:
        torch.set_num_threads(threads)
    made = replace(config, decoder=replace(config.decoder, n_layers=layers))
    tokenizer = Tokenizer(folder / TOKENIZER_FILE, made.vision, made.decoder.vocab_size)
    with torch.inference_mode():
        decoder = random_any_decoder(made.decoder, chosen, place)
    vision = VisionSession(folder, made, seen, threads, exact=chosen == torch.float32)
    if seen.type == "cuda":
        vision.warm_up()
    options = EngineOptions(kv_bits=KV_BITS[kv_cache], cache_tokens=context, memory_limit=vram_limit)
    engine = Engine(made, decoder, vision, place, chosen, tokenizer.stop_ids, options)
    model = Model(made, engine, tokenizer, folder, finish(place) - start, max_image_size)
    return Subject(name, model, config, GROUP_SIZE, synthetic=True)
