"""The demo's answer about a picture, through every kernel: token for token the torch decoder's."""

import pytest
import torch
from torch import Tensor

from pixedge.artifact import DECODER, HEAD, Artifact, load_decoder, open_artifact
from pixedge.decoder import WholeSequences
from pixedge.kernels.int8 import quantize_rows
from pixedge.tokenizer import Tokenizer
from pixedge.vision import VisionSession
from tests.exported_demo import PICTURES, exported_demo

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixedge.kernels.cuda import chunk, graph, int8, step, tuning
from pixedge.kernels.cuda.pages import PAGE, LayerPages

DEVICE = torch.device("cpu" if tuning.interpreted() else "cuda")
CPU = torch.device("cpu")
ANSWER = 9
"""Tokens compared: all of the answer."""


def read_weights(artifact: Artifact, dtype: torch.dtype) -> step.StepWeights:
    def norm(name: str) -> Tensor:
        return artifact.tensors(f"{DECODER}{name}.")["weight"].to(DEVICE, dtype)

    head, scales = quantize_rows(artifact.tensors(HEAD)[""])
    return step.StepWeights.assemble(
        artifact.config.decoder,
        lambda name: artifact.unpack(artifact.tensors(f"{DECODER}{name}."), name),
        norm,
        (head.to(DEVICE), scales.to(DEVICE)),
        norm("embed_tokens"),
    )


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.slow
@torch.inference_mode()
def test_the_demo_answers_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In float16 with an 8-bit cache in scattered pages; the other side in float32 without a cache."""
    artifact = open_artifact(exported_demo(tmp_path_factory.getbasetemp()))
    config = artifact.config.decoder
    tokenizer = Tokenizer(artifact.folder / "tekken.json", artifact.config.vision, config.vocab_size)
    picture = {"type": "image", "image": PICTURES / "shapes.png"}
    question = {"type": "text", "text": "What colour is the star?"}
    prompt = tokenizer.encode([{"role": "user", "content": [picture, question]}])
    vision = VisionSession(artifact.folder, artifact.config, CPU, None)
    patches = torch.cat([vision.encode(image) for image in prompt.images]).float()
    decoder = load_decoder(artifact, torch.float32, CPU)

    def embed(ids: list[int]) -> Tensor:
        tokens = torch.tensor(ids)
        places = torch.nonzero(tokens == artifact.config.vision.image_token_id)[:, 0]
        return decoder.embed_tokens(tokens).index_copy(0, places, patches)

    expected: list[int] = []
    for _ in range(ANSWER):
        ids = [*prompt.ids, *expected]
        hidden = decoder(embed(ids), torch.arange(len(ids)), WholeSequences(len(ids)))
        expected.append(int(decoder.lm_head(hidden[-1:]).argmax()))
    assert tokenizer.decode(expected).startswith("The star is")

    weights, held = read_weights(artifact, torch.float16), len(prompt.ids)
    count = -(-(held + ANSWER) // PAGE)
    shape = (config.n_layers, count, config.n_kv_heads, PAGE, config.head_dim)
    stored = [torch.empty(shape, dtype=torch.int8, device=DEVICE) for _ in range(2)]
    scales = [torch.empty(shape[:-1], dtype=torch.float16, device=DEVICE) for _ in range(2)]
    pages = [LayerPages(*layer) for layer in zip(*stored, *scales, strict=True)]
    table = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(torch.int32)[None]
    layout = chunk.ChunkLayout.lay_out(table, ints([0]), ints([held]), DEVICE)
    buffers = chunk.ChunkBuffers.allocate(weights, held)
    x = embed(list(prompt.ids)).to(DEVICE, torch.float16)
    last = chunk.run_chunk(weights, pages, buffers, x, layout)[-1:]
    found = [int(int8.head(last, weights.head, weights.head_scales).argmax())]
    capture = graph.direct if DEVICE.type == "cpu" else None
    decode = graph.DecodeGraph(weights, pages, count, batches=(1,), capture=capture)
    while len(found) < ANSWER:
        _, chosen = decode.step(ints(found[-1:]), ints([held + len(found) - 1]), table)
        found.append(int(chosen[0]))
    assert found == expected
