"""Which NVIDIA driver and which ONNX Runtime fit a CUDA that torch was built for."""

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class CudaFit:
    """What fits one major version of CUDA.

    driver: the oldest series (CUDA Toolkit Release Notes, "CUDA Driver"). onnxruntime: the package that is
    built for this CUDA and finds its libraries where torch's packages put them.
    """

    driver: int
    onnxruntime: str


FITS = {
    12: CudaFit(525, "onnxruntime-gpu>=1.20,<1.27"),
    # 1.27 is built for CUDA 13 too, and looks for its libraries where the packages of CUDA 12 were.
    13: CudaFit(580, "onnxruntime-gpu>=1.28,<2"),
}


def driver_needed(cuda: str) -> str:
    """Name the driver that a CUDA, such as "13.0", needs; "a newer driver" where that is not known."""
    fit = FITS.get(int(cuda.split(".")[0]))
    return f"a driver of the {fit.driver} series or later" if fit else "a newer driver"


def driver_cuda() -> tuple[int, int] | None:
    """Ask the driver for the newest CUDA that it supports; None without a driver."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = ctypes.c_int()
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def driver_too_old(cuda: str | None) -> str:
    """Say in what the driver is too old for torch's CUDA; "" where it is not, or there is none."""
    found = driver_cuda()
    if cuda is None or found is None or found[0] >= int(cuda.split(".")[0]):
        return ""
    supported = f"this one supports CUDA {found[0]}.{found[1]}"
    return f"torch is built for CUDA {cuda}, which needs {driver_needed(cuda)}; {supported}"
