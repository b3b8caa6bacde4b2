"""Which packages are installed, told from their metadata alone: none of them is imported."""

from collections.abc import Iterator
from importlib import metadata

from pixedge import __version__
from pixedge.cuda_fit import FITS
from pixedge.doctor.finding import Finding, Subject, green, red, yellow

# Packages that all install the one folder onnxruntime, so that the last one installed overwrites the others.
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "ort-nightly",
    "ort-nightly-gpu",
)


def check_runtimes(subject: Subject) -> Iterator[Finding]:
    """Which package of ONNX Runtime is there, and whether two are."""
    found = {name: version for name in RUNTIMES if (version := _version(name)) is not None}
    names = [f"{name} {version}" for name, version in found.items()]
    wanted = f"'{FITS[13].onnxruntime}'" if "onnxruntime-gpu" in found or subject.gpu else "onnxruntime"
    if not found:
        yield red("onnxruntime package", "none is installed", f"pip install {wanted}")
    elif len(found) > 1:
        yield red(
            "onnxruntime package",
            f"{' and '.join(names)} overwrite each other's files",
            f"pip uninstall -y {' '.join(found)} && pip install {wanted}",
        )
    elif subject.gpu and "onnxruntime" in found:
        yield red(
            "onnxruntime package",
            f"{names[0]} has no CUDA, so pictures would be encoded on the CPU",
            f"pip uninstall -y onnxruntime && pip install {wanted}",
        )
    else:
        yield green("onnxruntime package", names[0])


def check_requirements(subject: Subject) -> Iterator[Finding]:
    """Whether the other packages that pixedge needs are there, in versions that it works with."""
    try:
        wanted = metadata.requires("pixedge") or []
    except metadata.PackageNotFoundError:
        yield green("packages", f"pixedge {__version__}, run from its sources: nothing says what it needs")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield yellow(
            "packages", "packaging is not installed, so versions are not compared", "pip install packaging"
        )
        return
    missing, wrong, right = [], [], 0
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            if requirement.name not in RUNTIMES:  # those have a line of their own
                missing.append(f"{requirement.name}{requirement.specifier}")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append((f"{requirement.name} {version}", f"{requirement.name}{requirement.specifier}"))
        else:
            right += 1
    if missing or wrong:
        faults = [f"{name} is missing" for name in missing]
        faults += [f"{found} does not fit {needed}" for found, needed in wrong]
        needed = " ".join(f"'{name}'" for name in [*missing, *(needed for _, needed in wrong)])
        yield red("packages", "; ".join(faults), f"pip install {needed}")
    else:
        yield green("packages", f"pixedge {__version__} and the {right} packages that it needs, all in range")


def check_extras(subject: Subject) -> Iterator[Finding]:
    """Which optional packages are there; none of them is needed."""
    extras = {"export": ("onnx", "onnxscript"), "heic": ("pillow-heif",), "pdf": ("pypdfium2",)}
    there = [name for name, needed in extras.items() if all(map(_version, needed))]
    without = [name for name in extras if name not in there]
    detail = f"extras installed: {', '.join(there) or 'none'}"
    yield green("extras", f"{detail}; not installed: {', '.join(without)}" if without else detail)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
