"""The encoder of an exported folder, on one picture: where its nodes run, and how large its numbers become.

    python benchmarks/first_run_encoder.py placement FOLDER PICTURE
    python benchmarks/first_run_encoder.py ranges FOLDER PICTURE

placement: nodes by provider and kind, from ONNX Runtime's profile of a run on CUDA, else on the CPU. ranges:
the largest |x| that each linear takes and gives, computed in float32 by torch, beside float16's 65,504. The
last line is JSON.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pixedge.artifact import open_artifact
from pixedge.image import ImageLimits, fit_pixels, read_image
from pixedge_export.encoder import encode, load_encoder

FLOAT16 = 65_504.0
_ENCODER = ("vision_tower.", "multi_modal_projector.")


def read_pixels(folder: Path, picture: Path) -> np.ndarray:
    """Return the picture as the encoder takes it: float32 [3, H, W]."""
    eye = open_artifact(folder).config.vision
    image = read_image(picture, "the picture", ImageLimits())
    return np.ascontiguousarray(fit_pixels(image, eye.image_size, eye.patch_size))


def placement(folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    """Run the graph with ONNX Runtime's profile on, and count its nodes by provider and kind."""
    from pixedge.onnx_runtime import onnxruntime, preload_cuda
    from pixedge.vision import CPU_GRAPH, CUDA_GRAPH, session_options

    cuda = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if cuda:
        preload_cuda()
    options = session_options()
    providers = ["CUDAExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    with tempfile.TemporaryDirectory() as name:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(name) / "profile")
        graph = folder / (CUDA_GRAPH if cuda else CPU_GRAPH)
        session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        session.run(None, {"pixels": pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = {
        (args["provider"], args["op_name"], event["name"])
        for event in events
        if (args := event.get("args", {})).get("provider") and args.get("op_name")
    }
    counts = Counter((provider, kind) for provider, kind, _ in nodes)
    for (provider, kind), count in sorted(counts.items()):
        print(f"{provider:24} {kind:28} {count:5}")
    return {
        "graph": graph.name,
        "providers": session.get_providers(),
        "nodes": {f"{provider} {kind}": count for (provider, kind), count in sorted(counts.items())},
        "copies": sum(count for (_, kind), count in counts.items() if kind.startswith("Memcpy")),
    }


def ranges(folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    """Compute the encoder in float32, and note the largest |x| before and behind each linear."""
    artifact = open_artifact(folder)
    tensors = {prefix + name: t for prefix in _ENCODER for name, t in artifact.tensors(prefix).items()}
    encoder = load_encoder(artifact.config, tensors)
    found: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            found[name] = [float(given[0].abs().max()), float(out.abs().max())]

        return hook

    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(note(name))
    encode(encoder, torch.from_numpy(pixels))
    print(f"{'linear':56} {'takes':>12} {'gives':>12} {'of 65,504':>10}")
    for name, pair in found.items():
        print(f"{name:56} {pair[0]:12.4g} {pair[1]:12.4g} {max(pair) / FLOAT16:10.2%}")
    largest = max(found, key=lambda name: max(found[name]))
    return {"limit": FLOAT16, "largest": {"linear": largest, "x": max(found[largest])}, "linears": found}


if __name__ == "__main__":
    do, model = {"placement": placement, "ranges": ranges}[sys.argv[1]], Path(sys.argv[2])
    print(json.dumps(do(model, read_pixels(model, Path(sys.argv[3])))))
