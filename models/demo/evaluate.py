"""Ask a model held-out questions and count right answers by task.

    python models/demo/evaluate.py models/demo                           # 16 bits, from the checkpoint
    python models/demo/evaluate.py models/demo-pixedge-4bit              # an export
    python models/demo/evaluate.py models/demo-pixedge-4bit --count 1100 # 1100 fresh questions

The stored questions are those of models/demo/held_out/; fresh ones are drawn from another seed. Training uses
neither. The last line of output is JSON.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import pixedge
from conversations import Message, conversation
from pixedge.model import Model
from pixedge.sampling import SamplingParams
from pixedge_export.dense import load_dense
from scenes import TASKS, held_out, is_right
from turns import Turn

SEED = 1
HELD_OUT = Path(__file__).parent / "held_out"
MAX_TOKENS = 48


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question, and the turn that answers it."""

    messages: list[Message]
    turn: Turn


def stored_questions(folder: Path = HELD_OUT) -> list[Question]:
    """Read held_out.jsonl; names of pictures become paths."""
    questions = []
    for line in (folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for part in entry["messages"][0]["content"]:  # no later turn has pictures
            if part["type"] == "image":
                part["image"] = folder / part["image"]
        asked = entry["messages"][-1]["content"]
        question = "".join(part.get("text", "") for part in asked)
        turn = Turn(entry["task"], question, entry["answer"], entry["key"])
        questions.append(Question(entry["messages"], turn))
    return questions


def fresh_questions(seed: int, count: int) -> Iterator[Question]:
    """Draw questions, the tasks in turn."""
    for example in held_out(seed, count):
        messages = conversation(example.turns, example.pictures, example.picture_first)
        yield Question(messages, example.turns[-1])


def answer(model: Model, question: Question) -> str:
    """Return the model's likeliest answer."""
    return model.generate(question.messages, SamplingParams(max_tokens=MAX_TOKENS)).text


def accuracy(model: Model, questions: Iterable[Question], show_wrong: int = 0) -> dict[str, float]:
    """Return the share of right answers by task, and over all of them as "all"."""
    turns, rights = [], []
    for question in questions:
        reply = answer(model, question)
        turns.append(question.turn)
        rights.append(is_right(question.turn, reply))
        if not rights[-1] and show_wrong > 0:
            show_wrong -= 1
            print(f"{turns[-1].task}: {turns[-1].question} -> {reply!r}, right is {turns[-1].answer!r}")
    return shares(turns, rights)


def shares(turns: Sequence[Turn], rights: Sequence[bool]) -> dict[str, float]:
    """Return the share of rights by task, in the order of TASKS, and over all of them as "all"."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for turn, right in zip(turns, rights, strict=True):
        by_task[turn.task].append(right)
    found = {task: sum(by_task[task]) / len(by_task[task]) for task in TASKS if by_task[task]}
    return found | {"all": sum(rights) / len(rights)}


def load(folder: Path, dtype: str) -> Model:
    """Load an export, or a checkpoint as it is."""
    if (folder / "pixedge.json").exists():
        return pixedge.load(folder, dtype=dtype)
    return load_dense(folder, getattr(torch, dtype))


def main() -> None:
    """Evaluate one folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stored", action="store_true", help="the 220 stored questions; the default")
    which.add_argument("--count", type=int, metavar="N", help="N fresh questions, the tasks in turn")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of fresh questions (default {SEED})")
    parser.add_argument(
        "--show-wrong", type=int, default=0, metavar="N", help="show the first N wrong answers"
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    questions = stored_questions() if args.count is None else list(fresh_questions(args.seed, args.count))
    found = accuracy(load(args.folder, args.dtype), questions, args.show_wrong)
    for task, share in found.items():
        print(f"{task:14} {100 * share:5.1f} %")
    asked = "stored" if args.count is None else f"seed {args.seed}"
    summary = {"folder": args.folder.name, "questions": len(questions), "asked": asked, "dtype": args.dtype}
    print(json.dumps(summary | found))


if __name__ == "__main__":
    main()
