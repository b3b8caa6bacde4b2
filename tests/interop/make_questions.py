"""Choose 50 of the demo's held-out questions and write them as every engine can take them.

    python make_questions.py FOLDER QUESTIONS.json

FOLDER is the export, for the encoder's patch and picture sizes. The choice is the first lines of each task in
models/demo/held_out: seven of the tasks with two pictures and with two turns, four of every other. Each
picture is resized here, by pixedge's own code, to whole patches and back to 8 bits: of such a picture no
engine changes a pixel, and what is compared is the models and not the engines' filters for resizing.
"""

import argparse
import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.tokens.tokenizers.image import DATASET_MEAN, DATASET_STD
from PIL import Image

from pixedge.config import ModelConfig, VisionConfig
from pixedge.image import ImageLimits, read_image, to_pixels

HELD_OUT = Path(__file__).parents[2] / "models" / "demo" / "held_out"
COUNT = 50
PER_TASK = {"two_pictures": 7, "follow_up": 7}
PER_OTHER_TASK = 4


def choose(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the first lines of each task, in the order of the file."""
    taken: Counter[str] = Counter()
    chosen = []
    for entry in entries:
        task = entry["task"]
        if taken[task] < PER_TASK.get(task, PER_OTHER_TASK):
            taken[task] += 1
            chosen.append(entry)
    assert len(chosen) == COUNT, f"{len(chosen)} questions were chosen: {dict(taken)}"
    return chosen


def whole_patches(image: Image.Image, vision: VisionConfig) -> Image.Image:
    """Resize a picture as pixedge does before it encodes it; 8-bit RGB, sides multiples of the patch."""
    pixels = to_pixels(image, vision)  # [3, H, W]
    shares = pixels.transpose(1, 2, 0) * DATASET_STD + DATASET_MEAN  # of white, [H, W, 3]
    resized = Image.fromarray((shares * 255).round().clip(0, 255).astype(np.uint8))
    if resized.size == image.size:
        assert resized.tobytes() == image.tobytes(), "a picture of whole patches was changed"
    return resized


def part(image: Image.Image) -> dict[str, Any]:
    """Give the image as a PNG in a data: address."""
    file = io.BytesIO()
    image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def prepared(block: dict[str, Any], vision: VisionConfig) -> dict[str, Any]:
    """Replace a stored picture by its pixels in whole patches; leave text as it is."""
    if block["type"] != "image":
        return block
    file = HELD_OUT / block["image"]
    return part(whole_patches(read_image(file, file.name, ImageLimits()), vision))


def conversation(messages: list[dict[str, Any]], vision: VisionConfig) -> list[dict[str, Any]]:
    """Give the turns in OpenAI's spelling."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [prepared(block, vision) for block in content]
        turns.append(message | {"content": content})
    return turns


def main() -> None:
    """Write the questions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("questions", type=Path)
    arguments = parser.parse_args()
    vision = ModelConfig.load(arguments.folder).vision
    lines = (HELD_OUT / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = choose([json.loads(line) for line in lines])
    questions = [conversation(entry["messages"], vision) for entry in chosen]
    arguments.questions.write_text(json.dumps(questions), encoding="utf-8")


if __name__ == "__main__":
    main()
