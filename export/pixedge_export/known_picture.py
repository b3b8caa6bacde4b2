"""A picture that every export is asked about once, so that `pixedge verify` and `doctor` can ask again.

The model's own answer would do for a strong model only. Instead a fixed conversation is scored: the
log-probability of each of its words, given the picture, must come out the same wherever the folder is run.
"""

import base64
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pixedge.config import ModelConfig, VisionConfig
from pixedge.tokenizer import Prompt
from pixedge.verify import sample_embeddings
from pixedge.vision import VisionSession
from pixedge_export.divergence import KINDS, Head, kinds_of

QUESTION = "What colour is the square?"
REPLY = "The square is red."


def known_conversation() -> list[dict[str, Any]]:
    """Return the conversation as JSON-ready messages; the picture is a PNG in a data: URL."""
    picture = Image.new("RGB", (96, 80), (245, 245, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((12, 20, 43, 51), fill=(220, 40, 40))
    draw.ellipse((56, 30, 85, 59), fill=(40, 80, 220))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}],
        },
        {"role": "assistant", "content": REPLY, "prefix": True},
    ]


def known_scores(ids: tuple[int, ...], hidden: Tensor, head: Head, vision: VisionConfig) -> list[float]:
    """Return the log-probability of every word behind the picture, in nats.

    ids: the conversation's. hidden: its states behind the last layer, [tokens, dim], which head maps to
    logits.
    """
    places = torch.nonzero(kinds_of(ids, vision) == KINDS.index("image"))[:, 0]
    following = torch.tensor(ids)[places + 1]
    logprobs = torch.log_softmax(torch.cat(list(head(hidden[places])), -1).float(), -1).cpu()
    return [round(score, 4) for score in logprobs[torch.arange(len(places)), following].tolist()]


def known_embeddings(prompt: Prompt, folder: Path, config: ModelConfig) -> list[float]:
    """Return a sample of the picture's embeddings by the float32 graph in ``folder``."""
    exact = VisionSession(folder, config, torch.device("cpu"), exact=True)
    return sample_embeddings(exact.encode(prompt.images[0]))
