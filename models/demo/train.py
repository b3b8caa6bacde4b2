"""Train the demo checkpoint from a seed: a small Pixtral that really sees.

    python models/demo/train.py --out models/demo --steps 12000

Data is drawn afresh for every step (see scenes.py), several questions to a picture in one sequence. While
training only, linear heads on the adapter's output also say what covers each patch and how it relates to the
rest (see labels.py); they are no part of the checkpoint. The first steps train the encoder by them alone,
without the decoder, which costs a third of a whole step and teaches it to see before it is asked anything.
A run can be killed at any time and goes on from its last saved state.
"""

import argparse
import json
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from labels import CLASSES, COUNTED
from pixedge.config import ModelConfig
from pixedge.decoder import Decoder, WholeSequences
from pixedge.image import to_pixels
from pixedge.known_shapes import DEMO as CONFIG
from pixedge_export.checkpoint import save_checkpoint
from pixedge_export.encoder import VisionEncoder
from scenes import TASKS, Task, make_example

IMG, IMG_BREAK, IMG_END = 10, 12, 13
BOS, EOS, INST, INST_END = 1, 2, 3, 4
# What the encoder is shown while it trains alone: letters, relations and counts take it longest.
SEEING: tuple[tuple[Task, ...] | None, ...] = (("word", "number"), ("position",), ("count",), None)
SIDES = range(64, 225, 16)  # pixels


@dataclass(frozen=True)
class Batch:
    """One step's data; all pictures have one size."""

    ids: Tensor  # int64 [examples, length], padded with EOS
    answers: Tensor  # bool [examples, length]: this token is to be predicted
    turns: Tensor  # int64 [examples, length]: number of the turn that an answer token belongs to, else -1
    tasks: list[str]  # task of each turn
    pixels: Tensor  # float32 [pictures, 3, H, W]
    labels: dict[str, Tensor]  # int64 [pictures, patches], counts: [pictures, patches * 14]


class Steps(Dataset[Batch]):
    """The data of step i follows from the seed and i alone, so a resumed run sees what it would have seen."""

    def __init__(self, tekken: Path, seed: int, steps: int, vision_steps: int, examples: int) -> None:
        self.tekken, self.seed, self.steps, self.examples = tekken, seed, steps, examples
        self.vision_steps = vision_steps
        self.tokenizer: Tekkenizer | None = None
        self.cache: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return self.steps

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, remembered because phrases recur."""
        if self.tokenizer is None:
            self.tokenizer = Tekkenizer.from_file(self.tekken)
        if len(self.cache) > 200_000:
            self.cache.clear()
        if text not in self.cache:
            self.cache[text] = self.tokenizer.encode(text, bos=False, eos=False)
        return self.cache[text]

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/{step}")
        width, height = rng.choices(SIDES, k=2)
        columns, rows = width // 16, height // 16
        picture_ids = ([IMG] * columns + [IMG_BREAK]) * (rows - 1) + [IMG] * columns + [IMG_END]
        sequences, pictures, labels, tasks = [], [], [], []
        drawn = (width, height)
        if rng.random() < 0.5:  # as the runtime does, stretch what is no whole number of patches
            drawn = (max(64, width - rng.randint(0, 15)), max(64, height - rng.randint(0, 15)))
        seeing = step < self.vision_steps
        for place in range(2 * self.examples if seeing else self.examples):
            wanted = SEEING[place % len(SEEING)] if seeing else None
            example = make_example(rng, drawn, n_turns=1 if seeing else 5, tasks=wanted)
            ids, turn_of = [BOS], [-1]
            for number, turn in enumerate(example.turns):
                question = self.encode(turn.question)
                if number == 0:
                    shown = picture_ids * len(example.pictures)
                    question = shown + question if example.picture_first else question + shown
                question = [INST, *question, INST_END]
                answer = [*self.encode(turn.answer), EOS]
                ids += question + answer
                turn_of += [-1] * len(question) + [len(tasks)] * len(answer)
                tasks.append(turn.task)
            sequences.append((ids, turn_of))
            pictures += [to_pixels(picture, CONFIG.vision) for picture in example.pictures]
            labels += example.labels
        length = max(len(ids) for ids, _ in sequences)
        ids_array = np.full((len(sequences), length), EOS, np.int64)
        turns_array = np.full((len(sequences), length), -1, np.int64)
        for row, (ids, turn_of) in enumerate(sequences):
            ids_array[row, : len(ids)] = ids
            turns_array[row, : len(ids)] = turn_of
        turns = torch.from_numpy(turns_array)
        return Batch(
            ids=torch.from_numpy(ids_array),
            answers=turns >= 0,
            turns=turns,
            tasks=tasks,
            pixels=torch.from_numpy(np.stack(pictures)),
            labels={
                name: torch.from_numpy(np.stack([getattr(label, name) for label in labels])).flatten(1)
                for name in CLASSES
            },
        )


class DemoPixtral(nn.Module):
    """Encoder, decoder and the patch heads that only training knows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = VisionEncoder(config)
        self.decoder = Decoder(config.decoder)
        self.patch_heads = nn.ModuleDict(
            {
                name: nn.Linear(config.decoder.dim, classes * (len(COUNTED) if name == "counts" else 1))
                for name, classes in CLASSES.items()
            }
        )
        depth = {"encoder": config.vision.n_layers, "decoder": config.decoder.n_layers}
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = 0.04
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= math.sqrt(
                        2 * depth[name.split(".")[0]]
                    )  # keeps the residual stream's scale over depth
                nn.init.normal_(parameter, std=std)

    def patch_losses(self, embeddings: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how badly each patch head does; a patch with nothing on it counts a quarter."""
        losses = {}
        for name, head in self.patch_heads.items():
            labels = batch.labels[name].flatten()
            logits = head(embeddings).reshape(-1, CLASSES[name]).float()
            loss = functional.cross_entropy(logits, labels, reduction="none")
            weight = torch.where(labels > 0, 1.0, 0.25) * (labels >= 0)
            losses[name] = (loss * weight).sum() / weight.sum().clamp(min=1)
        losses["counts"] = 4 * losses["counts"]  # it stands for 14 labels
        return losses

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return logits [answer tokens, vocab], their targets [answer tokens] and the patch losses."""
        embeddings = self.encoder(batch.pixels)  # [pictures, patches, dim]
        patch_losses = self.patch_losses(embeddings, batch)
        ids = batch.ids[:, :-1]
        x = self.decoder.embed_tokens(ids.flatten()).to(embeddings.dtype)
        x = x.index_put((torch.nonzero(ids.flatten() == IMG)[:, 0],), embeddings.flatten(0, 1))
        positions = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0])
        hidden = self.decoder(x, positions, WholeSequences(ids.shape[1]))
        wanted = batch.answers[:, 1:].flatten()
        return self.decoder.lm_head(hidden[wanted]).float(), batch.ids[:, 1:].flatten()[wanted], patch_losses

    def tensors(self) -> dict[str, Tensor]:
        """Return the checkpoint's tensors by canonical name, in bfloat16."""
        named = {f"language_model.model.{k}": v for k, v in self.decoder.state_dict().items()}
        named["language_model.lm_head.weight"] = named.pop("language_model.model.lm_head.weight")
        named |= self.encoder.state_dict()
        return {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in named.items()}


def optimizers(model: DemoPixtral) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices between activations, AdamW for embeddings, heads, norms and biases.

    After 400 steps of the encoder alone Muon's patches named 91 % of the shapes, AdamW's 42 %.
    """
    named = dict(model.named_parameters())
    outer = ("decoder.embed_tokens", "decoder.lm_head", "patch_heads")
    hidden = [name for name, p in named.items() if p.dim() == 2 and not name.startswith(outer)]
    rest = [p for name, p in named.items() if name not in hidden]
    return [
        torch.optim.Muon([named[name] for name in hidden], weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int, vision_steps: int, peak: float, decay: float) -> float:
    """Rise over 100 steps of either phase, stay, then fall linearly over the last share ``decay``."""
    since = step if step < vision_steps else step - vision_steps
    falling = (steps - step) / (decay * (steps - vision_steps))
    return peak * min(1.0, (since + 1) / 100, max(0.01, falling))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch."""
    return Batch(
        batch.ids.to(device),
        batch.answers.to(device),
        batch.turns.to(device),
        batch.tasks,
        batch.pixels.to(device),
        {name: label.to(device) for name, label in batch.labels.items()},
    )


def main() -> None:
    """Train, report every 50 steps, save every 250 and at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tekken", type=Path, default=Path(__file__).parent / "tekken.json")
    parser.add_argument(
        "--state", type=Path, default=None, help="where to keep the state of an unfinished run"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--vision-steps", type=int, default=1500, help="those that train the encoder alone")
    parser.add_argument("--examples", type=int, default=32, help="examples a step, 5 questions each")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--decay", type=float, default=0.6, help="share of the later steps over which the rate falls"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    state_file = args.state or args.out / "training.state"

    torch.manual_seed(args.seed)
    model = DemoPixtral(CONFIG).to(device)
    print(f"{sum(v.numel() for v in model.tensors().values()) / 1e6:.2f} M parameters")
    if (
        args.compile
    ):  # one graph serves all layers of a kind and every shape; about 1.6 times as fast on a CPU
        for layer in (*model.decoder.layers, *model.encoder.vision_tower.transformer.layers):
            layer.compile(dynamic=True)
    optimizer_list = optimizers(model)
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, first = state["average"], state["step"]
        print(f"going on from step {first}")

    data = Steps(args.tekken, args.seed, args.steps, args.vision_steps, args.examples)
    loader = DataLoader(data, batch_size=None, sampler=range(first, args.steps), num_workers=args.workers)
    rights: dict[str, list[float]] = defaultdict(list)
    sums: dict[str, float] = defaultdict(float)
    start = time.perf_counter()
    for step, cpu_batch in enumerate(loader, first):
        batch = to_device(cpu_batch, device)
        rate = learning_rate(step, args.steps, args.vision_steps, args.lr, args.decay)
        seeing = step < args.vision_steps
        loss = torch.zeros((), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            if seeing:
                patch_losses = model.patch_losses(model.encoder(batch.pixels), batch)
            else:
                logits, targets, patch_losses = model(batch)
                loss = functional.cross_entropy(logits, targets)
        # the patch heads lead early and let go late
        fade = 1.0 if seeing else max(0.1, 1 - (step - args.vision_steps) / (0.6 * args.steps))
        (loss + fade * sum(patch_losses.values())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        keep = min(0.998, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)

        if not seeing:
            wrong = (logits.argmax(-1) != targets).long()
            wrong_by_turn = torch.zeros(len(batch.tasks), dtype=torch.long, device=device)
            wrong_by_turn.index_add_(0, batch.turns[:, 1:][batch.answers[:, 1:]], wrong)
            for task, count in zip(batch.tasks, wrong_by_turn.tolist(), strict=True):
                rights[task].append(float(count == 0))
        sums["loss"] += float(loss)
        for name, value in patch_losses.items():
            sums[f"patch {name}"] += float(value)
        if (step + 1) % 50 == 0:
            line = {name: round(total / 50, 3) for name, total in sums.items()}
            line |= {task: round(100 * sum(rights[task]) / max(1, len(rights[task]))) for task in TASKS}
            everything = [right for task in TASKS for right in rights[task]]
            print(
                f"{step + 1}/{args.steps} {time.perf_counter() - start:.0f}s "
                f"all {100 * sum(everything) / max(1, len(everything)):.1f} {json.dumps(line)}",
                flush=True,
            )
            rights.clear()
            sums.clear()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizer_list],
                "average": average,
                "step": step + 1,
            }
            beside = state_file.with_suffix(".new")
            torch.save(state, beside)
            beside.replace(state_file)
    model.load_state_dict(average)
    save_checkpoint(args.out, CONFIG, model.tensors(), "mistral")


if __name__ == "__main__":
    main()
