"""Where ONNX Runtime puts the encoder's nodes."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from pixedge import vision
from pixedge.config import ModelConfig
from pixedge.errors import CapacityError, PixedgeError
from pixedge.vision import CUDA_GRAPH, VisionSession
from tests.fake_cuda import card


def test_no_node_is_copied_to_or_computed_on_the_cpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the graph that really runs, of the session as pixedge opens it."""
    file, make = tmp_path / "optimised.onnx", vision.session_options

    def options(*arguments: object, **named: object) -> onnxruntime.SessionOptions:
        made = make(*arguments, **named)
        made.optimized_model_filepath = str(file)
        return made

    monkeypatch.setattr(vision, "session_options", options)
    session = VisionSession(folder, ModelConfig.load(folder), torch.device("cuda:0"))
    assert session.provider == "CUDAExecutionProvider"
    kinds = Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)
    assert kinds["Gemm"] > 20 and not [kind for kind in kinds if kind.startswith("Memcpy")]
    places: dict[str, set[str]] = {}
    for part in session._session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            places.setdefault(node.op_type, set()).add(part.ep_name)
    source = {node.op_type for node in onnx.load(folder / CUDA_GRAPH, load_external_data=False).graph.node}
    for kind in ("Gemm", "MultiHeadAttention", "RotaryEmbedding", "RMSNormalization", "QuickGelu", "Gelu"):
        assert kind in source and places[kind] == {"CUDAExecutionProvider"}, kind


def test_a_node_on_the_cpu_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real assignment: one kind more is asked for, which ONNX Runtime leaves on the CPU."""
    monkeypatch.setattr(vision, "_COMPUTING", vision._COMPUTING | {"Slice"})
    with pytest.raises(PixedgeError, match=r"no CUDA kernel for Slice and would .* --vision-device cpu"):
        VisionSession(folder, ModelConfig.load(folder), torch.device("cuda:0"))


def test_memory_that_runs_out_in_the_session(folder: Path) -> None:
    """ONNX Runtime takes its memory at the first picture; torch has kept its own part ready."""
    config = ModelConfig.load(folder)
    session = VisionSession(folder, config, torch.device("cuda:0"))
    kept = torch.empty(256 * config.decoder.dim, dtype=torch.float16, device="cuda:0")
    del kept
    with (
        card.full(torchs_too=False),
        pytest.raises(CapacityError, match="encoding a picture of 256x256 pixels"),
    ):
        session.warm_up()
    session.warm_up()
