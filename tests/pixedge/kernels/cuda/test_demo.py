"""The demo's answers through the engine and every kernel: token for token the CPU's in float32."""

from pathlib import Path

import pytest
import torch

import pixedge
from pixedge.artifact import open_artifact
from pixedge.engine import Engine, EngineOptions
from pixedge.model import Model
from tests.exported_demo import PICTURES, exported_demo

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.gpu_decoder import load_gpu_decoder
from pixedge.gpu_runner import GpuRunner
from tests.gpu_engines import DEVICE

STAR = {"type": "text", "text": "What colour is the star?"}


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [[], ["shapes.png"]], ids=["text", "picture"])
def test_the_demo_answers_the_same(tmp_path_factory: pytest.TempPathFactory, pictures: list[str]) -> None:
    """In float16 with an 8-bit cache and embeddings in host memory; minutes in the interpreter."""
    folder = exported_demo(tmp_path_factory.getbasetemp())
    exact = pixedge.load(folder, dtype="float32", device="cpu")
    artifact = open_artifact(folder)
    decoder = load_gpu_decoder(artifact, torch.float16, DEVICE, host_embeddings=True)
    options = EngineOptions(max_requests=1, cache_tokens=2048)
    stop_ids = exact.engine.stop_ids
    vision = exact.engine.vision
    engine = Engine(artifact.config, decoder, vision, DEVICE, torch.float16, stop_ids, options)
    assert engine.kv_bits == 8 and isinstance(engine.runner, GpuRunner)
    model = Model(artifact.config, engine, exact.tokenizer, Path(folder), 0.0)
    content = [*({"type": "image", "image": PICTURES / name} for name in pictures), STAR]
    messages = [{"role": "user", "content": content}]
    found, expected = model.generate(messages), exact.generate(messages)
    assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
    assert found.text.startswith("The star is ")
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert abs(one.logprob - other.logprob) < 0.1
