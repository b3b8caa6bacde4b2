"""Ask pixedge the same questions and compare what other engines answered.

    python check_pixedge.py FOLDER QUESTIONS.json RESULT.json... [--dtype float32] [--dense-head]

Each RESULT is the output of check_vllm.py or check_transformers.py on the same folder and questions. Prints
one JSON object. For every result it counts the questions with equal prompt ids and those with equal answers,
and lists each difference: where the first other token stands, by how much pixedge's logit of its own choice
exceeds that of the other's there (`gap`), and the largest gap that is still a near-tie. The exit code is 1
when a prompt differs, fewer than 48 in 50 answers are equal, or a difference is no near-tie.

A near-tie is a gap of at most two bfloat16 steps at the size of the larger logit. An engine that ends in
bfloat16 rounds both logits, each by up to half a step; the other step is for what rounding in the layers
before has moved them. `worst_logprob_difference` shows that movement over all tokens before a difference.

pixedge rounds the output head to 8 bits when it loads; --dense-head takes the folder's 16-bit head instead,
as the other engines do, so that what is left is arithmetic.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import prompts
import torch
from safetensors import safe_open
from torch import Tensor

import pixedge
from pixedge.engine import Engine, greedy
from pixedge.sampling import SampledToken, Sampler, SamplingParams
from pixedge.tensor_shapes import HEAD
from pixedge.tokenizer import Prompt

LEAST_EQUAL = 48 / 50
STEPS = 2


@dataclass(frozen=True)
class Difference:
    """The first token in which two answers to a question differ; an id is None where an answer had ended."""

    question: int
    place: int
    ours: int | None
    theirs: int | None
    gap: float | None
    near_tie: float | None
    spread: float | None

    @property
    def is_explained(self) -> bool:
        """Whether pixedge nearly chose the other token too."""
        return self.gap is not None and self.near_tie is not None and self.gap <= self.near_tie


def bfloat16_step(value: float) -> float:
    """Give the distance of neighbouring bfloat16 numbers (8 significant bits) of a value's size."""
    return 2.0 ** (math.frexp(value)[1] - 8)


def dense_head(folder: Path) -> torch.nn.Linear:
    """Read the output head as it lies in the folder, float32 [vocab, dim]."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    with safe_open(folder / index["weight_map"][HEAD], "pt") as file:
        weight = file.get_tensor(HEAD).float()
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight
    return head


class Forced(Sampler):
    """Says a given answer whatever the logits are, and keeps the logits."""

    def __init__(self, answer: list[int]) -> None:
        """Take the answer's ids."""
        super().__init__(SamplingParams(max_tokens=len(answer)))
        self.answer = answer
        self.rows: list[Tensor] = []

    def sample(self, logits: Tensor) -> SampledToken:
        """Give the next token of the answer."""
        self.rows.append(logits)
        return SampledToken(self.answer[len(self.rows) - 1], 0.0)


def forced_logits(engine: Engine, prompt: Prompt, answer: list[int]) -> Tensor:
    """Give the logits float32 [tokens, vocab] from which each token of an answer was to be chosen."""
    sampler = Forced(answer)
    list(engine.tokens(engine.submit(prompt, sampler)))
    return torch.stack(sampler.rows)


def first_difference(question: int, ours: list[int], theirs: list[int], logits: Tensor) -> Difference | None:
    """Compare two answers; logits [tokens, vocab] are those of ours, token by token."""
    for place in range(max(len(ours), len(theirs))):
        own, other = (side[place] if place < len(side) else None for side in (ours, theirs))
        if own == other:
            continue
        if own is None or other is None:
            return Difference(question, place, own, other, None, None, None)
        row = logits[place]
        gap = float(row[own] - row[other])
        return Difference(
            question, place, own, other, gap, STEPS * bfloat16_step(float(row[own])), float(row.std())
        )
    return None


def compare(encoded: list[Prompt], own: list[list[int]], logits: list[Tensor], result: dict[str, Any]) -> Any:
    """Compare one engine's result; own answers come with their logits [tokens, vocab]."""
    prompts_equal, differences, drifts = 0, [], []
    for question, theirs in enumerate(result["answers"]):
        prompts_equal += list(encoded[question].ids) == list(theirs["prompt"])
        difference = first_difference(question, own[question], theirs["answer"], logits[question])
        if difference:
            differences.append(difference)
        same = difference.place if difference else len(own[question])
        if same and "logprobs" in theirs:
            expected = torch.log_softmax(logits[question][:same], -1)
            chosen = expected.gather(1, torch.tensor(own[question][:same])[:, None])[:, 0]
            drifts.append(float((torch.tensor(theirs["logprobs"][:same]) - chosen).abs().max()))
    asked = len(encoded)
    equal = asked - len(differences)
    return {
        "engine": result["engine"],
        "dtype": result["dtype"],
        "versions": result["versions"],
        "questions": asked,
        "prompts_equal": prompts_equal,
        "answers_equal": equal,
        "differences": [asdict(difference) for difference in differences],
        "worst_logprob_difference": max(drifts, default=None),
        "passed": prompts_equal == asked
        and equal >= LEAST_EQUAL * asked
        and all(difference.is_explained for difference in differences),
    }


def main() -> None:
    """Run the check, print its result and leave with 1 when it failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--dtype", default="auto", help="pixedge's activations (auto is what it runs in)")
    parser.add_argument("--dense-head", action="store_true", help="the 16-bit head; needs --dtype float32")
    arguments = parser.parse_args()
    if arguments.dense_head and arguments.dtype != "float32":
        parser.error("--dense-head computes in float32; add --dtype float32")

    model = pixedge.load(arguments.folder, dtype=arguments.dtype, kv_cache="16bit", device="cpu")
    if arguments.dense_head:
        model.engine.decoder.lm_head = dense_head(arguments.folder)
    encoded = [model.tokenizer.encode(messages) for messages in prompts.read(arguments.questions)]
    own = [greedy(model.engine, prompt, prompts.MAX_TOKENS) for prompt in encoded]
    logits = [forced_logits(model.engine, *pair) for pair in zip(encoded, own, strict=True)]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in arguments.results]
    compared = [compare(encoded, own, logits, result) for result in results]
    dtype = str(model.engine.dtype).removeprefix("torch.")
    head = "16-bit" if arguments.dense_head else "8-bit"
    print(json.dumps({"dtype": dtype, "head": head, "answers": own, "compared": compared}))
    sys.exit(0 if all(one["passed"] for one in compared) else 1)


if __name__ == "__main__":
    main()
