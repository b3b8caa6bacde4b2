"""The machine as first_run.py finds it: card, driver, libraries, packages; facts for the stages as JSON.

    python benchmarks/first_run_machine.py FACTS.json

Prints for people and needs nothing but Python. Each package that is missing is one sentence.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

# By module: the package that brings it, and what there is not without it.
PACKAGES = {
    "torch": ("torch", "nothing runs"),
    "triton": ("triton", "torch computes in place of the GPU kernels"),
    "onnxruntime": ("onnxruntime-gpu", "no picture is encoded"),
    "numpy": ("numpy", "nothing runs"),
    "safetensors": ("safetensors", "no model is read"),
    "mistral_common": ("mistral_common[image]", "no question becomes tokens"),
    "cv2": ("opencv-python-headless", "no picture is resized"),
    "PIL": ("pillow", "no picture is read"),
    "click": ("click", "there is no command line"),
    "rich": ("rich", "there is no progress"),
    "llguidance": ("llguidance", "no model is loaded"),
    "jsonschema": ("jsonschema", "no format is read"),
    "huggingface_hub": ("huggingface_hub", "nothing is pulled"),
    "onnx": ("onnx", "the demo is not exported"),
    "onnxscript": ("onnxscript", "the demo is not exported"),
    "pytest": ("pytest", "the GPU tests are left out"),
    "hypothesis": ("hypothesis", "the GPU tests do not begin"),
    "transformers": ("transformers", "some files of tests cannot be read"),
}
CARD = "a CUDA device"
_LIBRARIES = re.compile(r"cuda|cudnn|cublas|nvidia|nvrtc|curand|onnxruntime|libtorch", re.IGNORECASE)


def show(title: str, text: str) -> None:
    """Print a part."""
    print(f"== {title}\n{text.strip() or 'nothing'}\n", flush=True)


def told(*command: str) -> str:
    """Return what a program says, or why it says nothing."""
    path = shutil.which(command[0]) or shutil.which(command[0], path="/usr/lib/wsl/lib:/usr/sbin:/sbin")
    if path is None:
        return f"{command[0]} is missing"
    try:
        done = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]} failed ({type(error).__name__})"
    return done.stdout + done.stderr


def read(*files: str) -> str:
    """Return the files that are there, each after its name."""
    parts = []
    for name in files:
        try:
            parts.append(f"{name}: {Path(name).read_text(errors='replace').strip()}")
        except OSError:
            parts.append(f"{name}: not there")
    return "\n".join(parts)


def packages() -> list[str]:
    """List installed packages with their versions, without pixedge and what came from a file."""
    found = set()
    for each in metadata.distributions():
        name = each.metadata["Name"]
        # a checkout has metadata of its own without saying where it comes from
        if name and name != "pixedge" and "file:" not in (each.read_text("direct_url.json") or ""):
            found.add(f"{name}=={each.version}")
    return sorted(found, key=str.lower)


def missing() -> list[str]:
    """Say which packages are missing, each in a sentence; return their modules."""
    lacks = []
    for module, (package, without) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{package} is missing, so {without}; pip install '{package}'")
            lacks.append(module)
    return lacks


def card_is_usable() -> bool:
    """Tell whether torch finds a CUDA device; say so where it finds none."""
    try:
        import torch

        if torch.cuda.is_available():
            return True
        print(f"torch {torch.__version__} finds no CUDA device, so everything runs on the CPU")
    except Exception as error:
        print(f"torch cannot be imported ({type(error).__name__}), so nothing runs")
    return False


def encoder_on_cuda() -> bool:
    """Tell whether ONNX Runtime has a CUDA provider; say so where it has none."""
    try:
        from pixedge.onnx_runtime import onnxruntime
    except Exception as error:
        print(f"ONNX Runtime cannot be imported ({type(error).__name__}), so no picture is encoded")
        return False
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return True
    name = f"ONNX Runtime {onnxruntime.__version__}"
    print(f"{name} here has no CUDA provider, so pictures are encoded on the CPU")
    return False


def vram() -> str:
    """Return what of the card the benchmark may take: what is free, and 24 GiB at most."""
    free = told("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits").split()[:1]
    return f"{min(24 * 1024, int(free[0])) if free and free[0].isdigit() else 24 * 1024}MiB"


def main(facts: Path) -> None:
    """Print everything, and write what the stages must know."""
    system = f"{platform.platform()} {platform.machine()}, {os.cpu_count()} cores"
    show("system", f"{system}\nPython {platform.python_version()}")
    show(
        "wsl",
        read("/proc/sys/kernel/osrelease", "/proc/version") + f"\n/dev/dxg: {Path('/dev/dxg').exists()}",
    )
    show("driver", read("/proc/driver/nvidia/version"))
    show("nvidia-smi", told("nvidia-smi"))
    show(
        "nvidia-smi, clocks and memory",
        told("nvidia-smi", "-q", "-d", "MEMORY,CLOCK,POWER,PERFORMANCE,TEMPERATURE"),
    )
    show("cpu", "\n".join(sorted(set(re.findall(r"^(?:model name|flags).*$", read("/proc/cpuinfo"), re.M)))))
    show("memory", "\n".join(read("/proc/meminfo").splitlines()[:6]))
    libraries = [line for line in told("ldconfig", "-p").splitlines() if _LIBRARIES.search(line)]
    show("ldconfig -p", "\n".join(libraries))
    show("compiler", told("gcc", "--version").partition("\n")[0])
    show("packages", "\n".join(packages()))
    print("== what is missing")
    lacks = missing()
    if "torch" in lacks or not card_is_usable():
        lacks.append(CARD)
    encoder = "onnxruntime" not in lacks and encoder_on_cuda()
    facts.write_text(json.dumps({"missing": lacks, "encoder_on_cuda": encoder, "vram": vram()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
