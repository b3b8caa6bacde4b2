"""torch, CUDA and ONNX Runtime as they really load, and whether they fit together.

Imported in a process of its own only: a library that is broken may take its process along.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pixedge.cuda_fit import FITS, driver_needed
from pixedge.doctor.finding import Finding, Subject, green, red, yellow
from pixedge.doctor.machine import find_driver
from pixedge.terminal import size

_CUDA = "CUDAExecutionProvider"
_GET_TORCH = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
PIXTRAL_RUN = 10_500_000_000
"""Bytes of memory that Pixtral-12B's 4-bit folder takes on a CPU, with a short context."""

# An ONNX graph that doubles x, float32 [2]: one Add node, operator set 13.
_DOUBLE = bytes.fromhex(
    "080712003a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020802620f0a0179120a0a080801"
    "12040a02080242040a00100d"
)


def check_torch(subject: Subject) -> Iterator[Finding]:
    """Whether torch loads, what it was built for, and whether it finds the GPU."""
    try:
        import torch
    except Exception as error:  # a missing library raises OSError or ImportError, a broken one anything
        yield red("torch", f"cannot be imported ({_words(error)})", "pip install --force-reinstall torch")
        return
    built = torch.version.cuda
    name = f"torch {torch.__version__}"
    threads = f"{torch.get_num_threads()} threads"
    if not subject.gpu:
        build = f"built for CUDA {built}" if built else "a CPU build"
        yield green("torch", f"{name}, {build}, {threads}")
        return
    if built is None:
        yield red("torch", f"{name} is a CPU build, so {subject.cards[0]} would not be used", _GET_TORCH)
        return
    driver, _ = find_driver()
    if driver is not None and driver.cuda[0] < int(built.split(".")[0]):
        limit = ".".join(map(str, driver.cuda))
        yield red(
            "torch",
            f"{name} is built for CUDA {built}, which needs {driver_needed(built)}; the driver is "
            f"{driver.version}, which supports CUDA up to {limit}",
            "install a newer NVIDIA driver, or a torch for an older CUDA",
        )
        return
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            reason = "no device"
        except Exception as error:
            reason = _words(error)
        detail = f"{name}, built for CUDA {built}, cannot use the GPU ({reason})"
        yield red("torch", detail, "install NVIDIA's driver again, and restart")
        return
    major, minor = torch.cuda.get_device_capability()
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    detail = f"{name}, built for CUDA {built}, cuDNN {cudnn}, compute capability {major}.{minor}, {threads}"
    if (major, minor) < (8, 0):
        yield yellow("torch", detail, "this card is too old for pixedge's kernels (8.0): expect slow answers")
    else:
        yield green("torch", detail)


def check_memory(subject: Subject) -> Iterator[Finding]:
    """Free main memory, against what Pixtral-12B takes without a GPU."""
    import torch

    from pixedge.memory import free_memory

    free = free_memory(torch.device("cpu"))
    if free is None:
        yield green("memory", "not told on this system")
    elif free < PIXTRAL_RUN and not subject.gpu:
        yield yellow(
            "memory",
            f"{size(free)} free",
            f"Pixtral-12B takes about {size(PIXTRAL_RUN)} on a CPU: close other programs, or add memory",
        )
    else:
        yield green("memory", f"{size(free)} free")


def check_triton(subject: Subject) -> Iterator[Finding]:
    """Whether Triton, which the GPU kernels are written in, loads; nothing where no GPU is used."""
    if not subject.gpu:
        return
    try:
        import triton
    except Exception as error:
        yield red("triton", f"cannot be imported ({_words(error)})", "pip install --force-reinstall triton")
        return
    yield green("triton", f"triton {triton.__version__}")


def check_onnxruntime(subject: Subject) -> Iterator[Finding]:
    """Whether ONNX Runtime loads, and whether its CUDA is torch's."""
    try:
        import torch  # first, so that both use one set of CUDA libraries

        built = torch.version.cuda
    except Exception:
        built = None
    try:
        from pixedge.onnx_runtime import onnxruntime
    except Exception as error:
        yield red(
            "onnxruntime",
            f"cannot be imported ({_words(error)})",
            "pip install --force-reinstall the package named above",
        )
        return
    name = f"ONNX Runtime {onnxruntime.__version__}"
    cuda = getattr(onnxruntime, "cuda_version", "")
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    if not subject.gpu:
        yield green("onnxruntime", f"{name}, {f'built for CUDA {cuda}' if has_cuda else 'a CPU build'}")
        return
    if not has_cuda:
        yield red(
            "onnxruntime",
            f"{name} is a CPU build, so pictures would be encoded on the CPU",
            "pip uninstall -y onnxruntime && pip install --force-reinstall onnxruntime-gpu",
        )
        return
    if built and cuda.split(".")[0] != built.split(".")[0]:
        yield red(
            "onnxruntime",
            f"{name} is built for CUDA {cuda} and torch for CUDA {built}: their libraries differ",
            f"install a torch for CUDA {cuda}, or an onnxruntime-gpu for CUDA {built}{_named_runtime(built)}",
        )
        return
    if missing := _missing_library(Path(onnxruntime.__file__).parent / "capi"):
        major = cuda.split(".")[0]
        advice = f"pip install nvidia-cudnn-cu{major}" if "cudnn" in missing else _GET_TORCH
        yield red("onnxruntime", f"{name} needs {missing}, which is not there", advice)
        return
    yield green("onnxruntime", f"{name}, built for CUDA {cuda}, as torch is")


def check_provider(subject: Subject) -> Iterator[Finding]:
    """Which provider a session really gets, and that it computes."""
    import numpy as np

    from pixedge.onnx_runtime import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    wanted = ["CPUExecutionProvider"]
    if subject.gpu and _CUDA in onnxruntime.get_available_providers():
        wanted.insert(0, _CUDA)
    session = onnxruntime.InferenceSession(_DOUBLE, options, providers=wanted)
    found = session.get_providers()
    x = np.array([1.5, -2.0], np.float32)
    (y,) = session.run(None, {"x": x})
    if not np.array_equal(y, 2 * x):
        yield red(
            "provider", f"{found[0]} computes 2 x {x} as {y}", "pip install --force-reinstall onnxruntime"
        )
    elif subject.gpu and found[0] != _CUDA:
        yield red(
            "provider",
            f"a session falls back to {found[0]}",
            "see the lines about torch and onnxruntime, or run with --vision-device cpu",
        )
    else:
        yield green("provider", f"a session gets {found[0]}")


def check_kernels(subject: Subject) -> Iterator[Finding]:
    """Which variant of the CPU kernels is in use."""
    from pixedge.errors import UsageError
    from pixedge.kernels.cpu import compiled

    try:
        variant = compiled.variant()
    except UsageError as error:
        yield red("cpu kernels", str(error), f"unset {compiled.VARIABLE}")
        return
    asked = os.environ.get(compiled.VARIABLE, "")
    if asked:
        yield yellow(
            "cpu kernels",
            f"{variant}, because {compiled.VARIABLE} says so",
            f"unset {compiled.VARIABLE} to have the fastest that this CPU can run",
        )
    elif variant == compiled.TORCH:
        yield yellow(
            "cpu kernels",
            "not built, so torch serves and answers are slower",
            "install gcc, then: pip install --force-reinstall --no-deps --no-cache-dir pixedge",
        )
    else:
        from pixedge.kernels.vision.fast import operators_file

        encoder = "the encoder's too" if operators_file() else "the encoder runs on ONNX Runtime's own"
        yield green("cpu kernels", f"{variant}; {encoder}")


def _missing_library(folder: Path) -> str:
    """Name the library that ONNX Runtime's part for CUDA does not find, "" where it finds all."""
    if not sys.platform.startswith("linux"):
        return ""
    from pixedge.onnx_runtime import preload_cuda

    preload_cuda()
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        found = re.match(r"(\S+?): cannot open shared object", str(error))
        return found[1] if found else _words(error)
    return ""


def _named_runtime(cuda: str) -> str:
    fit = FITS.get(int(cuda.split(".")[0]))
    return f": pip install '{fit.onnxruntime}'" if fit else ""


def _words(error: BaseException) -> str:
    """Give an error's first line."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
