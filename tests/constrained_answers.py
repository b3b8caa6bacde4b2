"""Answers of a model that knows nothing: random logits, held to a format by the sampler."""

import functools
from pathlib import Path

import mistral_common
import numpy as np
import torch
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from pixedge.answer_format import AnswerFormat
from pixedge.constraint import Vocabulary
from pixedge.sampling import Sampler, SamplingParams

DEMO_TEKKEN = Path(__file__).parents[1] / "models" / "demo" / "tekken.json"
REAL_TEKKEN = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
EOS = 2


@functools.cache
def tekkenizer(file: Path = DEMO_TEKKEN):
    return MistralTokenizer.from_file(file).instruct_tokenizer.tokenizer


@functools.cache
def vocabulary(file: Path = DEMO_TEKKEN) -> Vocabulary:
    return Vocabulary(tekkenizer(file))


@functools.cache
def _enders(file: Path) -> np.ndarray:
    """Give the tokens that bring an answer on, and not just along: float32 [vocab], 1 for them."""
    tekken = tekkenizer(file)
    enders = np.zeros(tekken.n_words, np.float32)
    enders[EOS] = 1
    for token in range(tekken.num_special_tokens, tekken.n_words):
        piece = tekken.id_to_byte_piece(token)
        enders[token] = bool(piece) and set(piece) <= set(b'"}]')
    return enders


def babble(
    answer_format: AnswerFormat, seed: int, *, file: Path = DEMO_TEKKEN, longest: int = 400, **params
) -> tuple[str, bool]:
    """Give a random answer and whether it ended by itself; what ends it grows likelier as it goes on."""
    vocab = tekkenizer(file).n_words
    values = SamplingParams(temperature=1.0, seed=seed, answer_format=answer_format, **params)
    sampler = Sampler(values, (), vocabulary(file).constraint(answer_format))
    random, said = np.random.default_rng(seed), []
    for at in range(longest):
        logits = random.normal(0, 2, vocab).astype(np.float32) + _enders(file) * min(30, at / 2)
        token = sampler.sample(torch.from_numpy(logits)).id
        if token == EOS:
            return read(said, file), True
        said.append(token)
    return read(said, file), False


def read(ids: list[int], file: Path = DEMO_TEKKEN) -> str:
    """Give the text of ids, strictly: bytes that are no UTF-8 are an error."""
    return b"".join(tekkenizer(file).id_to_byte_piece(id) for id in ids).decode("utf-8")
