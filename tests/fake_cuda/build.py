"""Build the stand-in driver against the CUDA libraries of this Python: build.py [FOLDER].

Every function that a replaced library exports and the C files here do not have becomes one that does nothing
and succeeds. Needs gcc and nm. FOLDER is by default .fake-gpu/cuda in the checkout.
"""

import ctypes
import re
import site
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / ".fake-gpu" / "cuda"
NVIDIA = Path(site.getsitepackages()[0]) / "nvidia"
TORCH = Path(site.getsitepackages()[0]) / "torch"
TRITON = Path(site.getsitepackages()[0]) / "triton" / "backends" / "nvidia"
HEADERS = (NVIDIA / "cu13" / "include", TRITON / "include")
CUDA = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13")


def exported(library: Path) -> set[str]:
    """Name the functions that a library exports."""
    out = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return set(re.findall(r" [TW] (\w+)", out.stdout))


def build(out: Path, wanted: set[str], sources: tuple[str, ...], *defined: str) -> None:
    """Compile a library that has all wanted functions; its file's name is what others look for."""
    include = [f"-I{folder}" for folder in HEADERS]
    flags = ["-std=gnu11", "-O1", "-fPIC", "-Wall", "-Werror", "-Wno-deprecated-declarations", *defined]
    objects = []
    for source in sources:
        objects.append(out.with_name(f"{source}.o"))
        subprocess.run(["gcc", *flags, *include, "-c", HERE / source, "-o", objects[-1]], check=True)
    found = subprocess.run(["nm", "--defined-only", *objects], capture_output=True, text=True, check=True)
    have = set(re.findall(r" T (\w+)", found.stdout))
    rest = out.with_suffix(".rest.c")
    rest.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(wanted - have)))
    linked = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{out.name}", "-o", out, *objects, rest]
    subprocess.run([*linked, "-ldl", "-lpthread"], check=True)


def main(folder: Path) -> None:
    """Build the three libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set(re.findall(r"\bcu[A-Z]\w+(?=\()", (TRITON / "driver.c").read_text()))
    for name in CUDA:
        wanted |= exported(NVIDIA / "cu13" / "lib" / name)
    build(folder / "libcuda.so.1", wanted, ("card.c", "memory.c", "launches.c"))
    cudnn = NVIDIA / "cudnn" / "lib" / "libcudnn.so.9"
    version = f"-DCUDNN_VERSION={ctypes.CDLL(str(cudnn)).cudnnGetVersion()}"
    build(folder / "libcudnn.so.9", exported(cudnn), ("cudnn.c",), version)
    asked = (TORCH / "lib" / "libc10_cuda.so").read_bytes()  # by name, while it runs
    nvml = {name.decode() for name in re.findall(rb"\x00(nvml[A-Z]\w+)\x00", asked)}
    build(folder / "libnvidia-ml.so.1", nvml, ("nvml.c",))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
