"""What quantisation cost, in numbers and pictures: export_report.json and export_report.html.

They alone tell how long the export took and on which machine, so they alone differ when the same export is
made again, and the manifest leaves them out: export_report.json has the page's digest, and its own.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pixedge.artifact import MANIFEST, REPORT, REPORT_PAGE, REPORTS, hash_file
from pixedge.durable_file import publish
from pixedge.machine import describe_machine
from pixedge.self_digest import KEY, UNSIGNED
from pixedge.tensor_shapes import DECODER, HEAD
from pixedge_export.divergence import Divergence
from pixedge_export.layers import LinearError
from pixedge_export.report_page import render
from pixedge_export.vision import ParityRow
from pixedge_export.writer import write_json

PARTS = (
    "quantized_weights",
    "scales",
    "norms",
    "embeddings",
    "output_head",
    "vision_encoder",
    "projector",
    "other_tensors",
    "tensor_headers",
    "onnx_graphs",
    "tokenizer_and_configuration",
)
"""Where the bytes of a folder go. quantized_weights: qweight, qzeros and g_idx. norms: the decoder's."""


@dataclass(frozen=True)
class Report:
    """Everything that an export measured.

    source, recipe, calibration: as in pixedge.json. divergence: by method, then by kind of token. seconds: by
    phase. device: where the layers were quantised, to name a GPU.
    """

    source: Mapping[str, str]
    recipe: Mapping[str, Any]
    calibration: Mapping[str, Any]
    linears: Sequence[LinearError]
    divergence: Mapping[str, Mapping[str, Divergence]]
    vision_parity: Sequence[ParityRow]
    seconds: Mapping[str, float]
    device: torch.device | None = None


def write_report(folder: Path, report: Report) -> None:
    """Write both reports into a folder whose other files, but for the manifest, are there already."""
    data = {
        "source": report.source,
        "recipe": report.recipe,
        "calibration": report.calibration,
        "divergence_from_16_bits": {
            method: {kind: asdict(value) for kind, value in kinds.items()}
            for method, kinds in report.divergence.items()
        },
        "linear_errors": [asdict(row) for row in report.linears],
        "vision_parity": [asdict(row) for row in report.vision_parity],
        "bytes": count_bytes(folder),
        "seconds": {phase: round(value, 2) for phase, value in report.seconds.items()},
        "machine": describe_machine(report.device),
    }
    beside = folder / f"{REPORT_PAGE}.new"
    beside.write_text(render(data), encoding="utf-8")
    publish(beside, folder / REPORT_PAGE)
    write_json(folder / REPORT, data | {"page_sha256": hash_file(folder / REPORT_PAGE), KEY: UNSIGNED})


def count_bytes(folder: Path) -> dict[str, int]:
    """Add up the bytes of every file that the manifest names, by PARTS; parts without any are left out."""
    counts = dict.fromkeys(PARTS, 0)
    for file in folder.rglob("*"):
        # an export that was killed while it wrote one of these left it under its new name
        if not file.is_file() or file.name.removesuffix(".new") in (MANIFEST, *REPORTS):
            continue
        rest = file.stat().st_size
        if file.suffix == ".safetensors":
            for name, n_bytes in _tensors(file):
                counts[_part(name)] += n_bytes
                rest -= n_bytes
            counts["tensor_headers"] += rest
        elif ".onnx" in file.suffixes:
            counts["onnx_graphs"] += rest
        else:
            counts["tokenizer_and_configuration"] += rest
    return {part: n_bytes for part, n_bytes in counts.items() if n_bytes}


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    """List names and bytes from a header: its length, 8 bytes little endian, then JSON."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield name, end - start


def _part(name: str) -> str:
    """Tell which part a tensor of an exported folder belongs to."""
    if name.startswith("vision_tower."):
        return "vision_encoder"
    if name.startswith("multi_modal_projector."):
        return "projector"
    if name == HEAD:
        return "output_head"
    if name == f"{DECODER}embed_tokens.weight":
        return "embeddings"
    if name.endswith((".qweight", ".qzeros", ".g_idx")):
        return "quantized_weights"
    if name.endswith(".scales"):
        return "scales"
    return "norms" if name.endswith("norm.weight") else "other_tensors"
