"""A checkpoint as it is, behind the runtime's interface."""

from pathlib import Path

import pytest
import torch

from pixedge.decoder import WholeSequences
from pixedge.errors import CheckpointError
from pixedge.sampling import SamplingParams
from pixedge_export.dense import load_dense
from pixedge_export.encoder import encode
from pixedge_export.known_picture import known_conversation
from tests.engines import embed
from tests.random_models import build_decoder, build_encoder
from tests.small_exports import CONFIG, small_tensors, write_checkpoint


def test_scores_equal_those_of_the_plain_decoder(tmp_path: Path) -> None:
    model = load_dense(write_checkpoint(tmp_path), torch.float32)
    tensors = {name: tensor.float() for name, tensor in small_tensors().items()}
    decoder, encoder = build_decoder(CONFIG, tensors), build_encoder(CONFIG, tensors)
    prompt = model.tokenizer.encode(known_conversation())
    ids = torch.tensor(prompt.ids)
    x = decoder.embed_tokens(ids).detach().clone()
    x[ids == CONFIG.vision.image_token_id] = encode(encoder, torch.from_numpy(prompt.images[0]))
    logits = decoder.lm_head(decoder(x, torch.arange(len(ids)), WholeSequences(len(ids))))
    expected = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]
    torch.testing.assert_close(model.engine.score(prompt), expected, atol=1e-4, rtol=0)


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    models = [load_dense(write_checkpoint(tmp_path / layout, layout)) for layout in ("mistral", "hf")]
    prompt = models[0].tokenizer.encode(known_conversation())
    a, b = (model.engine.score(prompt) for model in models)
    assert torch.equal(a, b)
    answers = [model.generate(known_conversation()[:1], SamplingParams(max_tokens=8)) for model in models]
    assert answers[0].text == answers[1].text and answers[0].image_tokens == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_in_the_dtype_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = load_dense(write_checkpoint(tmp_path), dtype)
    parameters = [*model.engine.decoder.parameters(), *model.engine.vision.encoder.parameters()]
    assert {parameter.dtype for parameter in parameters} == {dtype}
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in parameters)
    prompt = model.tokenizer.encode(known_conversation())
    assert embed(model.engine, prompt).dtype == dtype


def test_a_missing_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "tekken.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tekken\.json"):
        load_dense(tmp_path)
