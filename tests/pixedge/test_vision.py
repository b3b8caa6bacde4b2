"""The vision session: what it computes, what it refuses, and how much memory it takes."""

import ctypes
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from pixedge import vision
from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.errors import ArtifactError, CapacityError, ImageError, PixedgeError
from pixedge.kernels.cpu.compiled import VARIABLE
from pixedge.kernels.vision.fast import operators_file
from pixedge.known_shapes import PIXTRAL_12B
from pixedge.mapped_files import mapped_bytes
from pixedge.vision import (
    CPU_GRAPH,
    CUDA_GRAPH,
    FUSED_GRAPH,
    VisionSession,
    gpu_memory_limit,
    session_options,
)
from pixedge_export.encoder import VisionEncoder, encode
from pixedge_export.vision import export_vision

SHARD = "model-00001-of-00001.safetensors"
CPU = torch.device("cpu")

needs_kernels = pytest.mark.skipif(
    operators_file() is None, reason="needs a CPU with AMX, and the compiled kernels"
)
# Largest deviation from torch over the largest magnitude, of the float32 graph and of the fused one.
EXACT = pytest.param(True, id="float32")
FUSED = pytest.param(False, id="fused", marks=needs_kernels)
BOUNDS = {True: 1e-4, False: 2e-2}

CONFIG = ModelConfig(
    DecoderConfig(
        dim=40,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=16,
        vocab_size=32,
        norm_eps=1e-5,
        rope_theta=1e4,
        context=128,
    ),
    VisionConfig(
        dim=32,
        n_layers=2,
        n_heads=2,
        ffn_dim=48,
        n_channels=3,
        patch_size=8,
        image_size=64,
        rope_theta=1e4,
        norm_eps=1e-5,
        image_token_id=10,
        image_break_token_id=12,
        image_end_token_id=13,
    ),
)


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(CONFIG).requires_grad_(False).half().float()


@pytest.fixture(scope="module")
def folder(encoder: VisionEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact")
    save_file({name: weight.half() for name, weight in encoder.state_dict().items()}, path / SHARD)
    export_vision(CONFIG, path, SHARD)
    return path


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, height, width), np.float32)


@pytest.mark.parametrize("exact", [EXACT, FUSED])
@pytest.mark.parametrize("size", [(8, 8), (8, 64), (64, 8), (64, 64), (24, 40)])
def test_equals_torch(size: tuple[int, int], exact: bool, folder: Path, encoder: VisionEncoder) -> None:
    pixels = picture(*size)
    found = VisionSession(folder, CONFIG, CPU, threads=1, exact=exact).encode(pixels)
    assert found.device == CPU
    assert found.dtype == torch.float32
    expected = encode(encoder, torch.from_numpy(pixels))
    torch.testing.assert_close(found, expected, rtol=0, atol=BOUNDS[exact] * expected.abs().max().item())
    assert torch.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.parametrize("exact", [EXACT, FUSED])
def test_takes_views_of_any_layout(exact: bool, folder: Path) -> None:
    session = VisionSession(folder, CONFIG, CPU, exact=exact)
    pixels = picture(16, 32)
    flipped = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]
    assert not flipped.flags.c_contiguous
    assert torch.equal(session.encode(flipped), session.encode(pixels))


@pytest.mark.parametrize("exact", [EXACT, FUSED])
def test_answer_does_not_depend_on_earlier_pictures(exact: bool, folder: Path) -> None:
    session = VisionSession(folder, CONFIG, CPU, exact=exact)
    first = session.encode(picture(24, 40)).clone()
    session.warm_up()
    session.encode(picture(8, 64, seed=1))
    assert torch.equal(session.encode(picture(24, 40)), first)


@pytest.mark.parametrize("exact", [EXACT, FUSED])
def test_embeddings_outlive_the_next_picture(exact: bool, folder: Path) -> None:
    session = VisionSession(folder, CONFIG, CPU, exact=exact)
    first = session.encode(picture(24, 40))
    copy = first.clone()
    session.encode(picture(24, 40, seed=1))
    assert torch.equal(first, copy)


# The fused graph: when it runs, and that its own threads and the buffers it shares do no harm.


def kinds_run(session: VisionSession) -> str:
    """Tell which graph a session holds, by what it computes."""
    found = session.encode(picture(24, 40))
    exact = VisionSession(session_folder(session), CONFIG, CPU, exact=True).encode(picture(24, 40))
    return "float32" if torch.equal(found, exact) else "fused"


def session_folder(session: VisionSession) -> Path:
    return Path(session._session._model_path).parent


@needs_kernels
def test_fused_graph_runs_by_default(folder: Path) -> None:
    assert kinds_run(VisionSession(folder, CONFIG, CPU)) == "fused"


@needs_kernels
@pytest.mark.parametrize("variant", ["avx512", "avx2", "c", "torch"])
def test_float32_graph_runs_with_other_instructions(
    variant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, variant)
    assert kinds_run(VisionSession(folder, CONFIG, CPU)) == "float32"


def test_folder_without_a_fused_graph(folder: Path, tmp_path: Path) -> None:
    """Folders of the first format have none."""
    for name in (CPU_GRAPH, SHARD):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert kinds_run(VisionSession(tmp_path, CONFIG, CPU)) == "float32"


@needs_kernels
def test_threads_do_not_change_embeddings(folder: Path) -> None:
    pixels = picture(64, 56)
    one, four = (VisionSession(folder, CONFIG, CPU, threads=threads).encode(pixels) for threads in (1, 4))
    assert torch.equal(one, four)


@needs_kernels
def test_sessions_side_by_side(folder: Path) -> None:
    """Two sessions, used from four threads at once."""
    sessions = [VisionSession(folder, CONFIG, CPU, threads=2) for _ in range(2)]
    pixels = [picture(8 * rows, 40, seed=rows) for rows in range(1, 9)]
    expected = [sessions[0].encode(each) for each in pixels]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: sessions[i % 2].encode(pixels[i % 8]), range(64)))
    assert all(torch.equal(each, expected[i % 8]) for i, each in enumerate(found))


FORK = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from pixedge.config import ModelConfig
from pixedge.section import read_json
from pixedge.vision import VisionSession
signal.alarm(60)
folder = Path(sys.argv[1])
config = ModelConfig.from_params(read_json(folder / "params.json"))
session = VisionSession(folder, config, torch.device("cpu"), threads=2)
pixels = np.random.default_rng(0).standard_normal((3, 64, 40), np.float32)
before = session.encode(pixels).numpy()
child = os.fork()
after = session._session.run(["embeddings"], {"pixels": pixels})[0]
assert np.array_equal(before, after)
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("both")
"""


@needs_kernels
def test_a_forked_child_encodes_too(folder: Path) -> None:
    (folder / "params.json").write_text(json.dumps(CONFIG.to_params()))
    command = [sys.executable, "-c", FORK, str(folder)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "both\n"


@pytest.mark.parametrize("shape", [(3, 12, 8), (3, 8, 0), (3, 72, 8), (3, 8, 72), (1, 8, 8)])
def test_refuses_sizes(shape: tuple[int, int, int], folder: Path) -> None:
    session = VisionSession(folder, CONFIG, CPU)
    with pytest.raises(
        ImageError, match=rf"{shape[2]}x{shape[1]} pixels and {shape[0]} channels .* at most 64"
    ):
        session.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("exact", [EXACT, FUSED])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_an_error(value: float, exact: bool, folder: Path) -> None:
    pixels = picture(8, 16)
    pixels[0, 0, 0] = value
    session = VisionSession(folder, CONFIG, CPU, exact=exact)
    with pytest.raises(PixedgeError, match="not finite"):
        session.encode(pixels)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_missing_graph(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "_missing_libraries", list)
    with pytest.raises(ArtifactError, match=r"vision_encoder\S*\.onnx is missing"):
        VisionSession(tmp_path, CONFIG, torch.device(device))


@pytest.mark.parametrize("exact", [EXACT, FUSED])
@pytest.mark.parametrize("damage", ["graph", "empty graph", "no weights", "short weights"])
def test_damaged_folder(damage: str, exact: bool, folder: Path, tmp_path: Path) -> None:
    graph = CPU_GRAPH if exact else FUSED_GRAPH
    for name in (graph, SHARD):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if damage == "graph":
        (tmp_path / graph).write_bytes((folder / graph).read_bytes()[:-100])
    elif damage == "empty graph":
        (tmp_path / graph).write_bytes(b"")
    elif damage == "no weights":
        (tmp_path / SHARD).unlink()
    else:
        (tmp_path / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match=rf"{graph} cannot be loaded \(.+\); export"):
        VisionSession(tmp_path, CONFIG, CPU, exact=exact)


@pytest.mark.parametrize(
    "message", ["bad allocation", "CUDA failure 2: out of memory", "Failed to allocate memory"]
)
def test_out_of_memory_is_a_sentence(message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = VisionSession(folder, CONFIG, CPU)

    def fail(*_: object) -> None:
        raise vision.state.RuntimeException(message)

    monkeypatch.setattr(session, "_session", SimpleNamespace(run=fail))
    with pytest.raises(CapacityError, match=r"16x8 pixels on cpu; .* --max-image-size"):
        session.encode(picture(8, 16))


def test_what_a_picture_took_goes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena shrinks behind every picture, and weights do not lie in it, for they would hold it open."""
    options = session_options(threads=3)
    assert options.intra_op_num_threads == 3
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    session, asked = VisionSession(folder, CONFIG, CPU), []

    def run(names: list[str], inputs: dict[str, np.ndarray], how: onnxruntime.RunOptions) -> list[np.ndarray]:
        asked.append(how.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
        return [np.zeros((2, CONFIG.decoder.dim), np.float32)]

    monkeypatch.setattr(session, "_session", SimpleNamespace(run=run))
    session.encode(picture(8, 16))
    assert asked == ["cpu:0"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
@pytest.mark.parametrize("exact", [EXACT, FUSED])
def test_the_file_of_weights_does_not_stay_in_memory(exact: bool, folder: Path) -> None:
    session = VisionSession(folder, CONFIG, CPU, exact=exact)
    assert mapped_bytes(folder) == 0
    session.encode(picture(8, 16))


def test_an_error_of_the_session_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = VisionSession(folder, CONFIG, CPU)

    def fail(*_: object) -> None:
        raise vision.state.Fail("CUDNN_STATUS_NOT_INITIALIZED\nat cudnn.cc:77")

    monkeypatch.setattr(session, "_session", SimpleNamespace(run=fail))
    with pytest.raises(
        PixedgeError, match=r"failed on a picture of 16x8 pixels \(CUDNN_\w+\); check the folder"
    ):
        session.encode(picture(8, 16))
    monkeypatch.setattr(session, "_run_bound", fail)
    session.device = torch.device("cuda:0")
    with pytest.raises(PixedgeError, match=r"check the driver and cuDNN, or run .* --vision-device cpu"):
        session.encode(picture(8, 16))


def test_the_session_is_warmed_at_the_largest_planned_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, sizes = VisionSession(folder, CONFIG, CPU), []
    monkeypatch.setattr(session, "encode", lambda pixels: sizes.append(pixels.shape))
    eye = CONFIG.vision
    for side in (None, eye.patch_size + 1, 10_000):
        session.warm_up(side)
    most = (3, eye.image_size, eye.image_size)
    assert sizes == [most, (3, 2 * eye.patch_size, 2 * eye.patch_size), most]


# CUDA, as far as it can be judged without a device: what is asked of ONNX Runtime, and what is refused.


@pytest.fixture
def open_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Open a CUDA session against a stand-in for ONNX Runtime; give what it was asked for."""

    def run(
        providers: list[str],
        available: list[str] | None = None,
        missing: tuple[str, ...] = (),
        fails: Exception | None = None,
        on_cpu: tuple[str, ...] = (),
    ) -> Any:
        asked = SimpleNamespace(preloaded=False)

        def preload() -> None:
            asked.preloaded = True

        def load(name: str | None) -> Any:
            if name in missing:
                raise OSError(f"{name}: cannot open shared object file")
            return SimpleNamespace()

        def make(file: Path, options: object, providers: list[Any], enable_fallback: int) -> Any:
            asked.file, asked.options, asked.providers = file, options, providers
            assert not enable_fallback
            if fails is not None:
                raise fails
            assigned = [
                SimpleNamespace(
                    ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=k) for k in kinds]
                )
                for name, kinds in (("CUDAExecutionProvider", ("Gemm",)), ("CPUExecutionProvider", on_cpu))
            ]
            return SimpleNamespace(
                get_providers=lambda: found, get_provider_graph_assignment_info=lambda: assigned
            )

        found = providers
        everything = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available or everything)
        vision.preload_cuda.cache_clear()
        monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
        monkeypatch.setattr(onnxruntime, "InferenceSession", make)
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(sys, "platform", "linux")
        VisionSession(folder, CONFIG, torch.device("cuda:1"), gpu_mem_limit=12345)
        return asked

    return run


def test_cuda_options(open_cuda: Callable[..., Any]) -> None:
    asked = open_cuda(["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert asked.preloaded
    assert asked.file.name == CUDA_GRAPH
    ((name, options),) = asked.providers
    assert name == "CUDAExecutionProvider"
    assert options == {
        "device_id": "1",
        "gpu_mem_limit": "12345",
        "arena_extend_strategy": "kSameAsRequested",
    }


def test_silent_fall_back_to_the_cpu_is_an_error(open_cuda: Callable[..., Any]) -> None:
    with pytest.raises(PixedgeError, match=r"fell back to CPUExecutionProvider; .* --vision-device cpu"):
        open_cuda(["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            "CUDA failure 35: the driver is too old\nat cuda_call.cc",
            r"fails \(CUDA failure 35: .*old\); check",
        ),
        ("CUDA failure 2: out of memory", "memory ran out while loading"),
        ("", r"fails \(RuntimeError\)"),
    ],
)
def test_a_provider_that_fails_is_a_sentence(
    failure: str, sentence: str, open_cuda: Callable[..., Any]
) -> None:
    """ONNX Runtime would print it on standard output, where answers go, and try again on the CPU."""
    with pytest.raises(PixedgeError, match=sentence):
        open_cuda([], fails=RuntimeError(failure))


def test_a_node_without_a_cuda_kernel_is_an_error(open_cuda: Callable[..., Any]) -> None:
    """ONNX Runtime gives it to the CPU and says nothing, and every picture is copied to and fro."""
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    open_cuda(both, on_cpu=("Slice", "Concat"))  # numbers of patches
    with pytest.raises(PixedgeError, match=r"no CUDA kernel for Gelu, RMSNormalization and would .* CPU; "):
        open_cuda(both, on_cpu=("RMSNormalization", "Slice", "Gelu", "Gelu"))


def test_every_node_of_the_encoder_computes_or_is_about_shapes(folder: Path) -> None:
    graph = onnx.load(folder / CUDA_GRAPH, load_external_data=False).graph
    shapes = {"Add", "Cast", "Concat", "Cos", "Div", "Mul", "Range", "Reshape", "Shape", "Sin", "Slice"}
    shapes |= {"Squeeze", "Transpose", "Unsqueeze"}
    kinds = {node.op_type for node in graph.node}
    assert kinds - shapes and kinds - shapes <= vision._COMPUTING


def test_onnxruntime_without_cuda_is_an_error(open_cuda: Callable[..., Any]) -> None:
    with pytest.raises(PixedgeError, match=r"install onnxruntime-gpu .* --vision-device cpu"):
        open_cuda([], available=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("version", "missing", "remedy"),
    [
        ("13.0", ("libcuda.so.1",), "install the NVIDIA driver"),
        ("13.0", ("libcudnn.so.9",), "install what is missing (pip install nvidia-cudnn-cu13)"),
        ("12.8", ("libcublas.so.12", "libcublasLt.so.12"), "(pip install nvidia-cublas-cu12)"),
        ("13.0", ("libcurand.so.10",), "(pip install nvidia-curand)"),
        (
            "13.0",
            ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9"),
            "install a torch for CUDA 13.0",
        ),
        (
            "13.0",
            ("libcuda.so.1", "libcudnn.so.9"),
            "install the NVIDIA driver and what is missing (pip install nvidia-cudnn-cu13)",
        ),
    ],
)
def test_missing_cuda_libraries_are_named(
    version: str,
    missing: tuple[str, ...],
    remedy: str,
    open_cuda: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime, "cuda_version", version)
    with pytest.raises(PixedgeError) as raised:
        open_cuda(["CUDAExecutionProvider"], missing=missing)
    sentence = str(raised.value)
    assert f"needs {', '.join(missing)}, which cannot be loaded; " in sentence
    assert f"{remedy}, or run the encoder on the CPU with --vision-device cpu" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
@pytest.mark.skipif(
    not hasattr(onnxruntime, "preload_dlls"), reason="this onnxruntime cannot preload libraries"
)
def test_cuda_on_a_machine_without_it(folder: Path) -> None:
    with pytest.raises(PixedgeError, match=r"cannot run on CUDA: .* --vision-device cpu"):
        VisionSession(folder, CONFIG, torch.device("cuda:0"))


def test_binding_writes_into_the_tensor(
    folder: Path, encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float16 graph, on the CPU provider, bound as on CUDA: only the stream is a stand-in."""
    session = VisionSession(folder, CONFIG, CPU)
    session._session = onnxruntime.InferenceSession(
        folder / CUDA_GRAPH, session_options(), providers=["CPUExecutionProvider"]
    )
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    pixels = picture(24, 40)
    found = session._run_bound(pixels, 15)
    assert waited
    assert found.dtype == torch.float16
    expected = encode(encoder, torch.from_numpy(pixels))
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-2 * expected.abs().max().item())


def test_float16_overflow_names_the_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = VisionSession(folder, CONFIG, CPU)
    session.device = torch.device("cuda:0")
    infinite = torch.full((2, 40), torch.inf, dtype=torch.float16)
    monkeypatch.setattr(session, "_run_bound", lambda pixels, patches: infinite)
    with pytest.raises(PixedgeError, match=r"float16 has overflowed, .* --vision-device cpu"):
        session.encode(picture(8, 16))


FULL = ModelConfig(replace(CONFIG.decoder, dim=5120), PIXTRAL_12B.vision)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in VisionEncoder(config).state_dict().items()}


def test_gpu_limit_of_pixtral() -> None:
    weights = 2 * sum(map(math.prod, shapes_of(FULL).values()))
    assert weights + 500e6 < gpu_memory_limit(FULL) < weights + 1e9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_torch_at_mixed_sizes(folder: Path, encoder: VisionEncoder) -> None:
    session = VisionSession(folder, CONFIG, torch.device("cuda:0"))
    session.warm_up()
    for size in [(64, 64), (8, 8), (24, 40), (8, 64), (64, 8), (64, 64)]:
        pixels = picture(*size)
        found = session.encode(pixels)
        assert found.is_cuda
        expected = encode(encoder, torch.from_numpy(pixels))
        torch.testing.assert_close(
            found.cpu().float(), expected, rtol=0, atol=1e-2 * expected.abs().max().item()
        )


def write_random_shard(file: Path, config: ModelConfig) -> None:
    """Write random float16 weights one at a time, so that they never lie in memory together."""
    header, end = {}, 0
    shapes = shapes_of(config)
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(0)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            scale = math.prod(shape[1:]) ** -0.5
            values = generator.standard_normal(shape, np.float32)
            stream.write((values * scale if len(shape) > 1 else 1 + values / 4).astype(np.float16).tobytes())


MEASURE = """
import sys, time
from pathlib import Path
import numpy as np, torch
from pixedge.config import DecoderConfig, ModelConfig, VisionConfig
from pixedge.vision import VisionSession
from pixedge.section import read_json
folder = Path(sys.argv[1])
config = ModelConfig.from_params(read_json(folder / "params.json"))
start = time.perf_counter()
session = VisionSession(folder, config, torch.device("cpu"), exact=sys.argv[2] == "True")
loaded = time.perf_counter()
session.encode(np.random.default_rng(0).standard_normal((3, 1024, 1024), np.float32))
done = time.perf_counter()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024, loaded - start, done - loaded)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("exact", "beside"), [(True, 1.2e9), pytest.param(False, 0.8e9, marks=needs_kernels)]
)
def test_full_size_picture_on_the_cpu_peaks_below_a_bound(exact: bool, beside: float, tmp_path: Path) -> None:
    """24 layers of 1024, a 1024x1024 picture, loading included, Python and torch counted too.

    Weights count 4 bytes each: float32, or those of the file, which are mapped, beside packed bfloat16.

    The kernel's own figure for a process, ru_maxrss, starts from its parent's; VmHWM is this process's alone.
    """
    write_random_shard(tmp_path / SHARD, FULL)
    export_vision(FULL, tmp_path, SHARD)
    (tmp_path / "params.json").write_text(json.dumps(FULL.to_params()))
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(exact)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, load, run = map(float, output.split())
    weights = 4 * sum(map(math.prod, shapes_of(FULL).values()))
    print(f"peak {peak / 1e6:.0f} MB, weights {weights / 1e6:.0f} MB, load {load:.1f} s, encode {run:.1f} s")
    assert peak <= weights + beside
