"""Write models/demo/calibration/: conversations for calibrating the demo's quantisation.

    python models/demo/make_calibration.py

The folder has the format of docs/calibration.md. The seed is its own, so that neither training nor the
held-out questions show the same conversations by design.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

from scenes import TASKS, Example, make_example

SEED = 20241
N_PICTURED, N_TEXT = 84, 12


def examples(seed: int) -> list[Example]:
    """Draw the conversations: tasks in turn, one to four questions, every second size in whole patches."""
    made = []
    for i in range(N_PICTURED + N_TEXT):
        rng = random.Random(f"demo calibration {seed} {i}")
        size = (rng.randint(64, 224), rng.randint(64, 224))
        if i % 2:
            size = (size[0] // 16 * 16, size[1] // 16 * 16)
        made.append(make_example(rng, size, n_turns=1 + i // len(TASKS) % 4, tasks=(TASKS[i % len(TASKS)],)))
    return made


def write(folder: Path, seed: int = SEED) -> None:
    """Write calibration.jsonl and the pictures; the last N_TEXT conversations go without their pictures."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for number, example in enumerate(examples(seed)):
        parts = []
        for at, picture in enumerate(example.pictures if number < N_PICTURED else ()):
            name = f"pictures/{number:02d}{'ab'[at]}.png"
            colours = picture.getcolors(256)
            if colours is not None:  # without loss: the palette holds every colour
                palette = picture.quantize(len(colours))
                picture = palette if palette.convert("RGB").tobytes() == picture.tobytes() else picture
            picture.save(folder / name, optimize=True)
            parts.append({"type": "image", "image": name})
        question = {"type": "text", "text": example.turns[0].question}
        content = [*parts, question] if example.picture_first else [question, *parts]
        messages = [{"role": "user", "content": content if parts else question["text"]}]
        for turn, following in zip(example.turns, (*example.turns[1:], None), strict=True):
            messages.append({"role": "assistant", "content": turn.answer})
            if following is not None:
                messages.append({"role": "user", "content": following.question})
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    (folder / "calibration.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Replace the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "calibration")
    out = parser.parse_args().out
    if out.exists():
        shutil.rmtree(out)
    write(out)
    files = [file for file in out.rglob("*") if file.is_file()]
    print(f"{out}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")


if __name__ == "__main__":
    main()
