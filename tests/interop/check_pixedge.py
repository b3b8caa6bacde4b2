"""Answer the same prompts in pixedge and compare what other engines said.

    python check_pixedge.py FOLDER [RESULT.json ...]

Each RESULT is the output of check_vllm.py or check_transformers.py on the same folder. Prints one JSON
object: pixedge's own token ids in float32, and for every result whether the prompt's ids are equal, how many
of the answers are, and `worst_gap`: put the other engine's answer behind the prompt, word by word, and see
by how much pixedge's best logit exceeds that of the chosen token. Equal answers have gap 0; a near-tie that
fell the other way has a small one, and everything behind it is still compared. `spread` is the standard
deviation of pixedge's logits, to judge the gap by.

pixedge rounds the output head to 8 bits when it loads; --dense-head takes the folder's 16-bit head instead,
as the other engines do, so that what is left is arithmetic.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import prompts
import torch
from safetensors import safe_open
from torch import Tensor

import pixedge
from pixedge.engine import Engine, Stopwatch, greedy
from pixedge.kv_cache import KVCache
from pixedge.tensor_shapes import HEAD
from pixedge.tokenizer import Prompt


def head_weight(folder: Path) -> Tensor:
    """Read the output head, float32 [vocab, dim]."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    with safe_open(folder / index["weight_map"][HEAD], "pt") as file:
        return file.get_tensor(HEAD).float()


@torch.inference_mode()
def forced_logits(engine: Engine, prompt: Prompt, answer: list[int]) -> Tensor:
    """Give the logits [tokens, vocab] from which each token of an answer was to be chosen."""
    cache = KVCache(engine.config.decoder, len(prompt.ids) + len(answer), engine.dtype, engine.device)
    logits = [engine.prefill(prompt, cache, Stopwatch())]
    logits += [engine.decode(token, cache) for token in answer[:-1]]
    return torch.stack(logits)


def compare(
    engine: Engine, encoded: list[Prompt], own: list[list[int]], result: dict[str, Any]
) -> dict[str, Any]:
    """Compare one engine's result."""
    gaps, spreads, drifts = [], [], []
    for prompt, answer in zip(encoded, result["answers"], strict=True):
        logits = forced_logits(engine, prompt, answer["answer"])
        chosen = torch.tensor(answer["answer"])[:, None]
        gaps.append(float((logits.max(-1).values - logits.gather(1, chosen)[:, 0]).max()))
        spreads.append(float(logits.std()))
        if "logprobs" in answer:
            expected = torch.log_softmax(logits, -1).gather(1, chosen)[:, 0]
            drifts.append(float((torch.tensor(answer["logprobs"]) - expected).abs().max()))
    pairs = list(zip(encoded, own, result["answers"], strict=True))
    report = {
        "engine": result["engine"],
        "dtype": result["dtype"],
        "prompts_equal": [list(prompt.ids) == list(theirs["prompt"]) for prompt, _, theirs in pairs],
        "answers_equal": [ours == theirs["answer"] for _, ours, theirs in pairs],
        "worst_gap": max(gaps),
        "spread": min(spreads),
    }
    return report | ({"worst_logprob_difference": max(drifts)} if drifts else {})


def main() -> None:
    """Run the check and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--dense-head", action="store_true")
    arguments = parser.parse_args()

    model = pixedge.load(arguments.folder, dtype="float32", device="cpu")
    engine = model.engine
    if arguments.dense_head:
        weight = head_weight(arguments.folder)
        head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        head.weight.data = weight
        engine.decoder.lm_head = head
    encoded = [model.tokenizer.encode(messages) for messages in prompts.conversations()]
    own = [greedy(engine, prompt, prompts.MAX_TOKENS) for prompt in encoded]
    results = [json.loads(file.read_text()) for file in arguments.results]
    compared = [compare(engine, encoded, own, result) for result in results]
    print(json.dumps({"answers": own, "compared": compared}))


if __name__ == "__main__":
    main()
