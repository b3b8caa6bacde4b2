"""The vision encoder as one ONNX Runtime session: pixels -> embeddings, each picture by itself.

On CUDA the float16 graph runs, and embeddings never visit the host. On a CPU the fused graph does, by
pixedge's own operators, where the CPU has the instructions for them; elsewhere the float32 graph.
"""

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixedge.config import ModelConfig, VisionConfig
from pixedge.errors import ArtifactError, ImageError, MemoryFullError, PixedgeError
from pixedge.kernels.vision.fast import operators_file, set_threads
from pixedge.mapped_files import let_go
from pixedge.onnx_runtime import onnxruntime, preload_cuda, state
from pixedge.scratch import encoder_activations
from pixedge.stored_weights import VisionForm, encoder_bytes
from pixedge.vision_graph_check import check_graph

CUDA_GRAPH = "vision_encoder.onnx"
CPU_GRAPH = "vision_encoder_cpu.onnx"
FUSED_GRAPH = "vision_encoder_fused.onnx"
GRAPHS: dict[VisionForm, str] = {"float16": CUDA_GRAPH, "float32": CPU_GRAPH, "fused": FUSED_GRAPH}

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_DRIVER = "libcuda.so.1"
_INSTEAD = "or run the encoder on the CPU with --vision-device cpu"
_VERIFY = "check the folder with pixedge verify"
_ORT_ERRORS = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
# The encoder's nodes that compute; the others reckon with shapes, which ONNX Runtime does on the CPU.
_COMPUTING = frozenset(
    {"Gemm", "MatMul", "MultiHeadAttention", "RotaryEmbedding", "RMSNormalization", "QuickGelu", "Gelu"}
)
# How ONNX Runtime's messages speak of memory: the arena's limit, cudaMalloc, std::bad_alloc.
_MEMORY_WORDS = ("alloc", "out of memory", "available memory")


class VisionSession:
    """A loaded vision encoder; `device` is where its embeddings are."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        device: torch.device,
        threads: int | None = None,
        gpu_mem_limit: int | None = None,
        exact: bool = False,
    ) -> None:
        """Load the graph that suits `device` from an exported folder.

        threads: of the CPU; None means one a core. gpu_mem_limit: bytes for weights and activations on CUDA;
        None means what gpu_memory_limit says. exact: on a CPU always run the float32 graph. Raises
        ArtifactError when the graph is missing or damaged, PixedgeError when ONNX Runtime cannot use the CUDA
        device that is asked for, MemoryFullError when memory runs out, and UsageError as kernels.cpu.compiled
        does.
        """
        self.config = config
        self.device = device
        graph = folder / GRAPHS[vision_form(folder, device, exact=exact)]
        if graph.is_file():
            check_graph(graph, config.vision.n_layers)
        if device.type == "cuda":
            assert device.index is not None, "loading.choose_device gives a CUDA device its index"
            limit = gpu_memory_limit(config) if gpu_mem_limit is None else gpu_mem_limit
            self._session = _open_cuda(folder / CUDA_GRAPH, device.index, limit)
        else:
            self._session = _open_cpu(folder, threads, exact)
        _return_freed_memory()
        # The session keeps the file of weights mapped, of which it made its own form while it was opened.
        let_go(folder)

    def encode(self, pixels: NDArray[np.float32]) -> torch.Tensor:
        """Encode one picture: pixels float32 [3, H, W] -> embeddings [H/patch * W/patch, decoder dim].

        The result is float32 on a CPU and float16 on CUDA. Raises ImageError for a size that the encoder does
        not take, MemoryFullError when memory runs out, PixedgeError when the result is not finite.
        """
        assert pixels.dtype == np.float32
        patches = _count_patches(pixels.shape, self.config.vision)
        run = self._run_bound if self.device.type == "cuda" else self._run
        try:
            embeddings = run(np.ascontiguousarray(pixels), patches)
        except (*_ORT_ERRORS, RuntimeError) as error:  # the latter is how CUDA's provider fails, and torch
            height, width = pixels.shape[1:]
            if _speaks_of_memory(error):
                raise MemoryFullError(
                    f"memory ran out while encoding a picture of {width}x{height} pixels on {self.device}; "
                    "free some or give a smaller --max-image-size"
                ) from error
            reason = _first_line(error)
            instead = f"check the driver and cuDNN, {_INSTEAD}" if self.device.type == "cuda" else _VERIFY
            raise PixedgeError(
                f"the vision encoder failed on a picture of {width}x{height} pixels ({reason}); {instead}"
            ) from error
        if not bool(torch.isfinite(embeddings).all()):
            advice = (
                "float16 has overflowed, so run the encoder in float32 with --vision-device cpu"
                if self.device.type == "cuda"
                else _VERIFY
            )
            raise PixedgeError(f"the vision encoder's output for this picture is not finite; {advice}")
        return embeddings

    @property
    def provider(self) -> str:
        """The execution provider that the session really got."""
        return str(self._session.get_providers()[0])

    def warm_up(self, side: int | None = None) -> None:
        """Encode a blank picture of the largest size, so that all memory that is ever needed is taken now.

        side: of that picture in pixels, filled up to whole patches; None is the encoder's largest.
        """
        eye = self.config.vision
        side = -(-min(side or eye.image_size, eye.image_size) // eye.patch_size) * eye.patch_size
        self.encode(np.zeros((eye.n_channels, side, side), np.float32))

    def _run(self, pixels: NDArray[np.float32], patches: int) -> torch.Tensor:
        options = onnxruntime.RunOptions()
        # What a picture took goes back to the system: the next one may be smaller, or long in coming.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        (embeddings,) = self._session.run(["embeddings"], {"pixels": pixels}, options)
        if embeddings.shape != (patches, self.config.decoder.dim) or embeddings.dtype != np.float32:
            raise ArtifactError(
                f"the vision encoder gives {embeddings.dtype} {list(embeddings.shape)} for a picture, not "
                f"float32 {[patches, self.config.decoder.dim]}; export the model again"
            )
        return torch.from_numpy(embeddings)

    def _run_bound(self, pixels: NDArray[np.float32], patches: int) -> torch.Tensor:
        """Let the session write into a tensor of torch's, so that nothing is copied through the host."""
        embeddings = torch.empty(patches, self.config.decoder.dim, dtype=torch.float16, device=self.device)
        binding = self._session.io_binding()
        binding.bind_cpu_input("pixels", pixels)
        binding.bind_output(
            "embeddings",
            device_type=self.device.type,
            device_id=self.device.index or 0,
            element_type=np.float16,
            shape=tuple(embeddings.shape),
            buffer_ptr=embeddings.data_ptr(),
        )
        # The session has a stream of its own. torch may hand out memory that kernels queued on torch's stream
        # still read, so those must be done before the session writes there, and it before torch reads.
        torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return embeddings


def session_options(
    threads: int | None = None, *, weights_in_arena: bool = False
) -> onnxruntime.SessionOptions:
    """Make the options of a session: quiet, and on the CPU with no memory kept between pictures.

    threads: of the CPU; None means one a core. weights_in_arena: whether a limit of the arena's size bounds
    the weights too.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = threads or 0
    # Pictures differ in size, and a plan for each shape would only ever be added. Activations come from an
    # arena, which shrinks after each picture (see VisionSession): on the system's allocator a 1024 x 1024
    # picture left holes that took four times what it needs. Weights, which stay, lie beside the arena, which
    # grows by doubling.
    options.enable_mem_pattern = False
    beside = "0" if weights_in_arena else "1"
    options.add_session_config_entry("session.use_device_allocator_for_initializers", beside)
    # Threads that wait for the next picture must not spin on cores that the decoder is using.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def fused_options(threads: int | None = None) -> onnxruntime.SessionOptions | None:
    """Make the options of a session of the fused graph; None where this machine lacks its kernels.

    threads: as session_options has it. Raises UsageError as kernels.cpu.compiled does.
    """
    operators = operators_file()
    if operators is None:
        return None
    # All that takes time happens in the operators, on their own threads, which all sessions share and which,
    # unlike ONNX Runtime's, a forked child gets anew.
    options = session_options(threads=1)
    options.register_custom_ops_library(str(operators))
    set_threads(threads)
    return options


def vision_form(folder: Path, device: torch.device, *, exact: bool = False) -> VisionForm:
    """Tell which graph a session opens; the arguments are ``VisionSession``'s."""
    if device.type == "cuda":
        return "float16"
    # Folders from before there was such a graph have none.
    fused = not exact and (folder / FUSED_GRAPH).is_file() and operators_file() is not None
    return "fused" if fused else "float32"


def gpu_memory_limit(config: ModelConfig) -> int:
    """Bound the bytes that a CUDA session may take for weights and the largest picture's activations."""
    patches = (config.vision.image_size // config.vision.patch_size) ** 2
    return encoder_bytes(config, "float16") + encoder_activations(config, patches, "float16")


def _open_cpu(folder: Path, threads: int | None, exact: bool) -> onnxruntime.InferenceSession:
    """Open the fused graph where the folder and this machine have what it needs, else the float32 one."""
    if vision_form(folder, torch.device("cpu"), exact=exact) == "fused":
        options = fused_options(threads)
        assert options is not None
        return _open(folder / FUSED_GRAPH, options, [_CPU])
    return _open(folder / CPU_GRAPH, session_options(threads), [_CPU])


def _open_cuda(file: Path, index: int, limit: int) -> onnxruntime.InferenceSession:
    """Open a session on CUDA, or say what is missing."""
    found = f"ONNX Runtime {onnxruntime.__version__}"
    if _CUDA not in onnxruntime.get_available_providers():
        raise PixedgeError(
            f"the vision encoder cannot run on CUDA: {found} was built without it; install onnxruntime-gpu "
            f"in place of onnxruntime, {_INSTEAD}"
        )
    preload_cuda()
    missing = _missing_libraries()
    if missing:
        raise PixedgeError(
            f"the vision encoder cannot run on CUDA: {found} needs {', '.join(missing)}, which cannot be "
            f"loaded; install {_remedy(missing)}, {_INSTEAD}"
        )
    cuda = {
        "device_id": str(index),
        "gpu_mem_limit": str(limit),
        # The default doubles the arena with each extension.
        "arena_extend_strategy": "kSameAsRequested",
    }
    options = session_options(weights_in_arena=True)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _open(file, options, [(_CUDA, cuda)])
    except RuntimeError as error:  # how the provider itself fails
        if _speaks_of_memory(error):
            raise MemoryFullError(f"memory ran out while loading {file}; free some and try again") from error
        raise PixedgeError(
            f"the vision encoder cannot run on CUDA: {found} fails ({_first_line(error)}); check the driver, "
            f"{_INSTEAD}"
        ) from error
    if _CUDA not in session.get_providers():
        providers = ", ".join(session.get_providers())
        raise PixedgeError(
            f"the vision encoder cannot run on CUDA: {found} fell back to {providers}; check the driver and "
            f"that torch is built for CUDA {onnxruntime.cuda_version}, {_INSTEAD}"
        )
    if elsewhere := _computed_elsewhere(session):
        raise PixedgeError(
            f"the vision encoder cannot run on CUDA: {found} has no CUDA kernel for {', '.join(elsewhere)} "
            f"and would compute these on the CPU; install another onnxruntime-gpu, {_INSTEAD}"
        )
    return session


def _computed_elsewhere(session: onnxruntime.InferenceSession) -> list[str]:
    """Name the kinds of nodes that compute and were not given to CUDA, which ONNX Runtime does silently."""
    assigned = session.get_provider_graph_assignment_info()
    return sorted(
        {
            node.op_type
            for part in assigned
            if part.ep_name != _CUDA
            for node in part.get_nodes()
            if node.op_type in _COMPUTING
        }
    )


def _open(
    file: Path, options: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; export the model again")
    try:
        # Without leave to fall back, which would print on standard output and go on upon the CPU.
        return onnxruntime.InferenceSession(file, options, providers=providers, enable_fallback=0)
    except _ORT_ERRORS as error:
        if _speaks_of_memory(error):
            raise MemoryFullError(f"memory ran out while loading {file}; free some and try again") from error
        reason = _first_line(error)
        raise ArtifactError(f"{file} cannot be loaded ({reason}); export the model again") from error


def _missing_libraries() -> list[str]:
    """List the libraries of CUDA that do not load; on Windows they are left to ONNX Runtime to find."""
    if not sys.platform.startswith("linux"):
        return []
    missing = []
    for name in (_DRIVER, *_packages()):
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def _packages() -> dict[str, str]:
    """Give the libraries beside the driver's that ONNX Runtime loads, each with the package that has it."""
    major = onnxruntime.cuda_version.split(".")[0]
    old = f"-cu{major}" if int(major) < 13 else ""  # later packages carry no version in their names
    return {
        f"libcudart.so.{major}": f"nvidia-cuda-runtime{old}",
        f"libcublas.so.{major}": f"nvidia-cublas{old}",
        f"libcublasLt.so.{major}": f"nvidia-cublas{old}",
        "libcurand.so.10": f"nvidia-curand{old}",
        "libcudnn.so.9": f"nvidia-cudnn-cu{major}",
    }


def _remedy(missing: Sequence[str]) -> str:
    """Say what to install for libraries that are missing."""
    known = _packages()
    packages = sorted({known[name] for name in missing if name != _DRIVER})
    parts = ["the NVIDIA driver"] if _DRIVER in missing else []
    if len(packages) > 2:  # none of them is there: the wrong torch is
        parts.append(f"a torch for CUDA {onnxruntime.cuda_version}")
    elif packages:
        parts.append(f"what is missing (pip install {' '.join(packages)})")
    return " and ".join(parts)


def _return_freed_memory() -> None:
    """Give the allocator's holes back to the system (glibc only).

    Loading frees weights that were still float16 or not yet packed, for Pixtral-12B up to 340 MB in holes.
    """
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _speaks_of_memory(error: Exception) -> bool:
    return any(word in str(error).lower() for word in _MEMORY_WORDS)


def _count_patches(shape: tuple[int, ...], eye: VisionConfig) -> int:
    channels, height, width = shape
    patch = eye.patch_size
    fits = all(0 < side <= eye.image_size and side % patch == 0 for side in (height, width))
    if not fits or channels != eye.n_channels:
        raise ImageError(
            f"a picture of {width}x{height} pixels and {channels} channels does not fit the encoder; give "
            f"{eye.n_channels} channels and sides of at most {eye.image_size} in multiples of {patch}"
        )
    return height // patch * (width // patch)
