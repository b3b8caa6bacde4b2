"""Measure what lowers the divergence from 16 bits at the same size: variants of the step to 4 bits.

    python benchmarks/bits.py
    python benchmarks/bits.py --variants rtn exported "no catching up" --held-out fresh
    python benchmarks/bits.py --calibration models/demo/calibration second third --held-out fresh

Every variant quantises the decoder of a small model layer by layer, as an export does, with everything in
memory. Each calibration folder gives one result for each variant; the table shows their mean and standard
deviation. What is measured on is --held-out, or without it each folder's own share, as in an export. More
folders of the demo's kind: python models/demo/make_calibration.py --seed 2 --out second

The variant "gptqmodel" is GPTQModel's solver with its default settings, in our streaming; it is left out
where that package is not installed. The last line is JSON.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixedge.decoder import DecoderLayer
from pixedge.packing import dequantize
from pixedge_export.calibration import Sample, load_samples, split
from pixedge_export.checkpoint import Checkpoint, open_checkpoint
from pixedge_export.divergence import KINDS, divergence
from pixedge_export.gptq import quantize_rtn
from pixedge_export.hessian import HessianAccumulator, Shortfall
from pixedge_export.known_picture import known_conversation
from pixedge_export.layer_runner import MIDDLE_NORM
from pixedge_export.layers import STAGES, Recipe, solve
from small_decoder import CPU, Batch, SmallDecoder, embedder, pass_through, run

DEMO = Path(__file__).parents[1] / "models" / "demo"
OWN = Recipe()
BEHIND = {1: MIDDLE_NORM, 3: "out"}
"""Where the residual stream can be read behind the stages that are added to it."""


@dataclass(frozen=True)
class Variant:
    """How to quantise; what goes beyond a recipe is only here, because it did not pay.

    solver: "pixedge" or "gptqmodel". stages: those that catch up. whole_stream: whether what is added to the
    residual stream makes up for that stream, or for its own input alone. share: how much of what is missing
    is made up for; None for what the halves of the samples agree on. quiet: tokens count by the power
    -2 * quiet of the size of their residual stream. samples: how many to calibrate on, evenly chosen; None
    for all.
    """

    recipe: Recipe = OWN
    solver: str = "pixedge"
    stages: tuple[int, ...] = (0, 1, 2, 3)
    whole_stream: bool = True
    share: float | None = None
    quiet: float = 0.0
    samples: int | None = None


def _variants() -> dict[str, Variant]:
    """Name them all; each differs from the default recipe in what its name says."""
    found = {
        "rtn": Variant(Recipe("rtn")),
        "gptqmodel": Variant(replace(OWN, catch_up=False, image_weight=1.0), solver="gptqmodel"),
        "exported": Variant(),
        "no catching up": Variant(replace(OWN, catch_up=False)),
        "no catching up, all tokens alike": Variant(replace(OWN, catch_up=False, image_weight=1.0)),
        "catch up, first stage": Variant(stages=(0,)),
        "catch up, stages that read a norm": Variant(stages=(0, 2)),
        "catch up, stages that add": Variant(stages=(1, 3)),
        "catch up, own input alone": Variant(whole_stream=False),
        "natural order": Variant(replace(OWN, act_order=False)),
        "scales absmax": Variant(replace(OWN, scale_search="absmax")),
        "scales uniform": Variant(replace(OWN, scale_search="uniform")),
    }
    found |= {f"catch up by {share:g}": Variant(share=share) for share in (0.25, 0.5, 0.75, 1.0)}
    found |= {f"polish {n}": Variant(replace(OWN, polish=n)) for n in (0, 1, 2, 3)}
    found |= {f"damping {d:g}": Variant(replace(OWN, damping=d)) for d in (0.003, 0.01, 0.03, 0.1)}
    found |= {
        f"image tokens x {w:g}": Variant(replace(OWN, image_weight=w)) for w in (0.1, 0.25, 0.5, 1.0, 2.0)
    }
    found |= {f"quiet {q:g}": Variant(quiet=q) for q in (0.25, 0.5, 1.0)}
    for count in (3, 6, 12, 24, 48):
        found[f"samples {count}"] = Variant(samples=count)
        found[f"samples {count}, no catching up"] = Variant(replace(OWN, catch_up=False), samples=count)
        found[f"samples {count}, catch up by 1"] = Variant(share=1.0, samples=count)
    return found


VARIANTS = _variants()


def quantize(variant: Variant, decoder: SmallDecoder, batch: Batch) -> list[DecoderLayer]:
    """Quantise all layers on a batch; return them with the weights that their 4 bits stand for."""
    done = []
    x = target = batch.x
    for index in range(decoder.config.n_layers):
        layer = decoder.load(index)
        goal = pass_through(layer, batch, target)
        for at, stage in enumerate(STAGES):
            read = pass_through(layer, batch, x)
            counts = _token_weights(variant, batch, x if at < 2 else read[MIDDLE_NORM])
            inputs = read[stage[0]]
            hessian = _hessian(inputs, counts)
            chosen = {}
            for name in stage:
                weight = layer.get_submodule(name).weight
                shortfall = None
                if variant.recipe.catch_up and at in variant.stages:
                    if at in BEHIND and variant.whole_stream:
                        lacking = goal[BEHIND[at]] - read[BEHIND[at]]
                    else:
                        lacking = (goal[stage[0]] - inputs) @ weight.t()
                    shortfall = _shortfall(lacking * counts[:, None], inputs, batch, variant.share)
                chosen[name] = quantize_one(variant, weight, hessian, shortfall)
            for name, weight in chosen.items():
                layer.get_submodule(name).weight.copy_(weight)
        x, target = pass_through(layer, batch, x)["out"], goal["out"]
        done.append(layer)
    return done


def _token_weights(variant: Variant, batch: Batch, stream: Tensor) -> Tensor:
    """Return what each token counts, [tokens], 1 on average."""
    counts = torch.where(batch.is_image, variant.recipe.image_weight, 1.0)
    counts = counts * stream.square().mean(-1).pow(-variant.quiet)
    return counts / counts.mean()


def _hessian(x: Tensor, counts: Tensor) -> Tensor:
    accumulator = HessianAccumulator(x.shape[1], CPU)
    accumulator.add(x, counts)
    return accumulator.hessian()


def _shortfall(d: Tensor, x: Tensor, batch: Batch, share: float | None) -> Shortfall:
    """Sum what outputs lack; with a share given, such that this much of it is made up for."""
    shortfall = Shortfall(d.shape[1], x.shape[1], CPU)
    if share is None:
        for sample in zip(d.split(batch.lengths), x.split(batch.lengths), strict=True):
            shortfall.add(*sample)
    else:
        for _ in range(2):  # halves that agree in all
            shortfall.add(share * d, x)
    return shortfall


def quantize_one(variant: Variant, weight: Tensor, hessian: Tensor, shortfall: Shortfall | None) -> Tensor:
    """Quantise one weight [out, in]; return what its 4 bits stand for."""
    recipe = variant.recipe
    if recipe.method == "rtn":
        return dequantize(quantize_rtn(weight, recipe.group_size), torch.float32)
    if variant.solver == "gptqmodel":
        return _gptqmodel(weight, hessian, recipe.group_size)
    return dequantize(solve(weight, hessian, recipe, shortfall).quantized, torch.float32)


def _gptqmodel(weight: Tensor, hessian: Tensor, group_size: int) -> Tensor:
    """Solve as GPTQModel does by default, its scales left in float32.

    It wants inputs: the rows of the Hessian's Cholesky factor have that Hessian but for a factor, which its
    damping cancels. What is added to the diagonal before is a ten-thousandth of its damping.
    """
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    task = GPTQ(linear, QuantizeConfig(bits=4, group_size=group_size))
    task.quantizer.configure(perchannel=True)
    h = hessian.double()
    h.diagonal().add_(5e-6 * h.diagonal().mean())
    task.add_batch(torch.linalg.cholesky(h).t().float()[None], None)
    solved: Tensor = task.quantize()[0]
    return solved.float()


def read_sets(
    folders: Sequence[Path], held_out: Path | None, checkpoint: Checkpoint, count: int | None
) -> list[tuple[Batch, Batch]]:
    """Return for each folder what to calibrate on, at most ``count`` samples, and what to measure on."""
    embed = embedder(checkpoint)
    common = embed(load_samples(held_out)) if held_out else None
    found = []
    for folder in folders:
        kept, held = split(load_samples(folder))
        held = [*held, Sample("the known picture", known_conversation())]
        found.append((embed(kept).thinned(count), common or embed(held)))
    return found


def measure(
    variant: Variant, decoder: SmallDecoder, calibration: Batch, held_out: Batch, dense: Tensor
) -> dict[str, dict[str, float]]:
    """Quantise and measure, by kind of token; dense: the held-out samples behind the dense layers."""
    layers = quantize(variant, decoder, calibration.thinned(variant.samples))
    heads = decoder.heads
    (found,) = divergence(
        [dense], {"it": [run(layers, held_out)]}, [held_out.kinds], heads.dense, heads.int8
    ).values()
    return {kind: {"kl": row.kl, "top1": row.top1} for kind, row in found.items()}


def main() -> None:
    """Measure, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEMO, help="a checkpoint, small enough for memory")
    parser.add_argument("--calibration", type=Path, nargs="+", default=[DEMO / "calibration"])
    parser.add_argument("--held-out", type=Path, help="a folder like those for calibration")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="V")
    parser.add_argument("--samples", type=int, help="most samples to calibrate on")
    args = parser.parse_args()
    names = list(args.variants)
    if importlib.util.find_spec("gptqmodel") is None and "gptqmodel" in names:
        print("GPTQModel is not installed, so its variant is left out")
        names.remove("gptqmodel")
    checkpoint = open_checkpoint(args.model)
    variants: dict[str, Any] = {}
    with torch.inference_mode():
        decoder = SmallDecoder(checkpoint)
        dense_layers = decoder.layers()
        sets = read_sets(args.calibration, args.held_out, checkpoint, args.samples)
        dense = [run(dense_layers, held) for _, held in sets]
        samples = [len(kept.xs) for kept, _ in sets]
        positions = [[int((held.kinds == at).sum()) for at in range(len(KINDS))] for _, held in sets]
        print(f"calibration samples: {samples}; held-out positions, of text and after a picture: {positions}")
        print(f"{'KL from 16 bits, in nats':36}{'text':>19}{'after a picture':>21}{'same first':>13}")
        for name in names:
            start = time.perf_counter()
            rows = [
                measure(VARIANTS[name], decoder, kept, held, expected)
                for (kept, held), expected in zip(sets, dense, strict=True)
            ]
            variants[name] = {
                kind: {what: [round(row[kind][what], 6) for row in rows] for what in ("kl", "top1")}
                for kind in rows[0]
            }
            line = f"{name:36}"
            for kls in (variants[name][kind]["kl"] for kind in rows[0]):
                line += f"{statistics.mean(kls):11.5f} ± {statistics.pstdev(kls):.5f}"
            same = statistics.mean(variants[name]["image"]["top1"])
            print(f"{line}{100 * same:11.2f} %{time.perf_counter() - start:8.1f} s", flush=True)
    summary = {
        "model": args.model.resolve().name,
        "calibration_samples": samples,
        "held_out_positions": positions,
        "variants": variants,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
