"""Quantising the decoder one layer at a time, while measuring what it costs.

Streams of activations run through the layers side by side. The calibration samples run twice: through the
layers that are quantised already, which is what GPTQ solves for, and through the dense ones, which is where
it should lead. The held-out samples run three times, through the dense layers, through layers rounded to
nearest, and through the layers that are exported; they give the error of every linear and, after the output
head, the divergence of the whole model, without two models ever being in memory together.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pixedge.config import ModelConfig
from pixedge.errors import ExportError, UsageError
from pixedge.packing import NIBBLES, QuantizedWeight
from pixedge.tensor_shapes import expected_shapes, is_quantized
from pixedge_export.gptq import GptqResult, ScaleSearch, quantize_gptq, quantize_rtn, relative_output_error
from pixedge_export.hessian import HessianAccumulator, Shortfall
from pixedge_export.layer_runner import FIRST_NORM, MIDDLE_NORM, LayerRunner

Method = Literal["gptq", "rtn"]

STAGES: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a layer in the order of their inputs; those of one stage share their input."""

_NORMS = {STAGES[0][0]: FIRST_NORM, STAGES[2][0]: MIDDLE_NORM}
"""The norm of the residual stream that a stage reads; what the other stages give is added to that stream."""

LINEARS = tuple(name for stage in STAGES for name in stage)

ERROR_ROWS = 2048
"""Held-out rows on which a linear's error is measured; more change it in the third digit only."""


@dataclass(frozen=True)
class Recipe:
    """How to quantise; stored in the artifact.

    group_size: inputs that share a scale. damping: share of the Hessian's mean diagonal that is added to it.
    act_order: solve columns by falling activation (groups keep their natural order). scale_search, polish:
    see ``quantize_gptq``. catch_up: let each linear make up for the errors in front of it, as far as they
    can be foreseen. image_weight: how much a picture's token counts in calibration, against a text token's 1.
    With "rtn" only group_size matters. Raises UsageError for a value out of range.
    """

    method: Method = "gptq"
    group_size: int = 128
    damping: float = 0.01
    act_order: bool = True
    scale_search: ScaleSearch = "activation"
    polish: int = 1
    catch_up: bool = True
    image_weight: float = 0.25

    def __post_init__(self) -> None:
        """Check every value."""
        allowed = {"method": get_args(Method), "scale_search": get_args(ScaleSearch)}
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise UsageError(f"{key} is {getattr(self, key)!r}; use {', '.join(values)}")
        if self.group_size < 1 or self.group_size % NIBBLES:
            raise UsageError(f"group_size is {self.group_size}; use a multiple of {NIBBLES}, such as 128")
        if not 0 < self.damping <= 1:
            raise UsageError(f"damping is {self.damping}; use a share above 0, at most 1")
        if self.polish < 0:
            raise UsageError(f"polish is {self.polish}; use 0 or more")
        if not 0 < self.image_weight < math.inf:
            raise UsageError(f"image_weight is {self.image_weight}; use a number above 0, such as 1")

    def check_fits(self, config: ModelConfig) -> None:
        """Raise ExportError when a linear of the decoder cannot be cut into groups and packed."""
        for name, shape in expected_shapes(config).items():
            if is_quantized(name) and (shape[1] % self.group_size or shape[0] % NIBBLES):
                raise ExportError(
                    f"{name} has {shape[1]} inputs and {shape[0]} outputs, which do not divide into groups "
                    f"of {self.group_size} inputs and words of {NIBBLES} outputs; choose another --group-size"
                )


@dataclass(frozen=True)
class LinearError:
    """Relative output error ||x (W - V)^T|| / ||x W^T|| of one linear on held-out inputs x, by method.

    W is the weight that was rounded: the dense one, or where linears catch up the one that does so.
    """

    layer: int
    linear: str
    rtn: float
    quantized: float


Step = Callable[[str, LinearError | None], None]
"""Gets a linear's name when its work begins, and once more with what it costs."""

STREAMS = ("calibration", "target", "dense", "rtn", "quantized")


class Streams:
    """Residual streams between two layers, in memory: one float32 [tokens, dim] for each sample.

    calibration, target: the calibration samples, as they come out of the quantised layers and of the dense
    ones. dense, rtn, quantized: the held-out samples likewise.
    """

    calibration: Sequence[Tensor]
    target: Sequence[Tensor]
    middle: Sequence[Tensor]
    """The target between attention and feed-forward, only while a layer is at work."""
    counts: Sequence[Tensor] | None = None
    """How much each token of the calibration samples counts, [tokens] each; all alike where None."""
    dense: Sequence[Tensor]
    rtn: Sequence[Tensor]
    quantized: Sequence[Tensor]

    def __init__(self, calibration: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Start the streams of the same samples alike."""
        self.calibration = self.target = calibration
        self.dense = self.rtn = self.quantized = held_out

    def move(self, name: str, samples: Iterable[Tensor]) -> None:
        """Let a stream go on as ``samples``."""
        setattr(self, name, list(samples))

    def share(self, name: str, other: str) -> None:
        """Let a stream be the same as another one."""
        setattr(self, name, getattr(self, other))

    def drop(self, name: str) -> None:
        """Let a stream be no more."""
        delattr(self, name)


def quantize_layer(
    runner: LayerRunner,
    index: int,
    tensors: Callable[[], Mapping[str, Tensor]],
    streams: Streams,
    recipe: Recipe,
    progress: Step,
) -> tuple[dict[str, QuantizedWeight], list[LinearError]]:
    """Quantise one layer and move every stream behind it.

    tensors reads the layer's canonical tensors by their names inside it; it is called twice, because to read
    them again costs a second and to keep them a gigabyte. Return the quantised weights by linear and what
    each costs. Raises ExportError for values that are not finite or a Hessian that stays singular.
    """
    runner.load(tensors())
    streams.move("dense", map(runner.forward, streams.dense))
    catching_up = recipe.method == "gptq" and recipe.catch_up
    before = streams.target
    if catching_up:
        streams.move("middle", runner.inputs(MIDDLE_NORM, before))
        streams.move("target", map(runner.forward, before))
    for name in LINEARS:
        runner.replace(name, quantize_rtn(runner.weight(name), recipe.group_size, _title(index, name)))
    streams.move("rtn", map(runner.forward, streams.rtn))
    runner.load(tensors())

    chosen: dict[str, QuantizedWeight] = {}
    errors: list[LinearError] = []
    for at, stage in enumerate(STAGES):
        progress(stage[0], None)
        held_out = _held_out_rows(runner, stage[0], streams.quantized)
        hessian = shortfall = None
        title = _title(index, stage[0])
        if catching_up:
            wanted = (before, streams.middle, streams.middle, streams.target)[at]
            hessian, shortfall = _hessian_and_shortfall(runner, stage[0], streams, wanted, title)
        elif recipe.method == "gptq":
            hessian = _hessian(runner, stage[0], streams, title)
        for name in stage:
            if name != stage[0]:
                progress(name, None)
            weight = runner.weight(name)
            nearest = quantize_rtn(weight, recipe.group_size, _title(index, name))
            rtn = relative_output_error(weight, nearest, held_out)
            if hessian is None:
                best, quantized = nearest, rtn
            else:
                own = shortfall.through(weight) if shortfall and stage[0] in _NORMS else shortfall
                solved = solve(weight, hessian, recipe, own, _title(index, name))
                best = solved.quantized
                quantized = relative_output_error(solved.target, best, held_out)
                del solved
            chosen[name] = QuantizedWeight(best.q.cpu(), best.scales.cpu(), best.group_size)
            errors.append(LinearError(index, name, rtn, quantized))
            progress(name, errors[-1])
        del hessian, shortfall
        for name in stage:
            runner.replace(name, chosen[name])
    streams.move("calibration", map(runner.forward, streams.calibration))
    if catching_up:
        streams.drop("middle")
    else:
        streams.share("target", "calibration")
    if recipe.method == "rtn":
        streams.share("quantized", "rtn")
    else:
        streams.move("quantized", map(runner.forward, streams.quantized))
    return chosen, errors


def _hessian(runner: LayerRunner, linear: str, streams: Streams, title: str) -> Tensor:
    """Sum the Hessian [in, in] of a linear's inputs."""
    accumulator = HessianAccumulator(runner.weight(linear).shape[1], runner.device, title)
    for x, counts in zip(runner.inputs(linear, streams.calibration), _counts(streams), strict=True):
        accumulator.add(x, counts)
    return accumulator.hessian()


def _hessian_and_shortfall(
    runner: LayerRunner, linear: str, streams: Streams, wanted: Sequence[Tensor], title: str
) -> tuple[Tensor, Shortfall]:
    """Sum the Hessian [in, in] of a linear's inputs, and what is missing there.

    At a linear that reads a norm that is what its inputs lack; at the others, what the residual stream lacks
    that they have added to. wanted: that stream as it should be.
    """
    out_features, in_features = runner.weight(linear).shape
    norm = _NORMS.get(linear)
    accumulator = HessianAccumulator(in_features, runner.device, title)
    shortfall = Shortfall(in_features if norm else out_features, in_features, runner.device)
    samples = streams.calibration
    if norm:
        for x, goal, counts in zip(runner.inputs(linear, samples), wanted, _counts(streams), strict=True):
            accumulator.add(x, counts)
            shortfall.add(runner.norm(norm, goal) - x, x, counts)
    else:
        reached = runner.additions(linear, samples)
        for (x, stream), goal, counts in zip(reached, wanted, _counts(streams), strict=True):
            accumulator.add(x, counts)
            shortfall.add(goal.to(stream) - stream, x, counts)
    return accumulator.hessian(), shortfall


def _counts(streams: Streams) -> Sequence[Tensor | None]:
    return [None] * len(streams.calibration) if streams.counts is None else streams.counts


def solve(
    weight: Tensor,
    hessian: Tensor,
    recipe: Recipe,
    shortfall: Shortfall | None = None,
    name: str = "a linear",
) -> GptqResult:
    """Quantise one weight [out, in] as a recipe for GPTQ says; the rest is as in ``quantize_gptq``."""
    return quantize_gptq(
        weight,
        hessian,
        recipe.group_size,
        damp=recipe.damping,
        act_order=recipe.act_order,
        scale_search=recipe.scale_search,
        polish=recipe.polish,
        shortfall=shortfall,
        name=name,
    )


def _held_out_rows(runner: LayerRunner, linear: str, samples: Sequence[Tensor]) -> Tensor:
    """Return a linear's inputs float32 [rows, in] at ERROR_ROWS places spread evenly over all samples."""
    total = sum(len(x) for x in samples)
    wanted = torch.linspace(0, total - 1, min(ERROR_ROWS, total)).long()
    rows, start = [], 0
    for x in runner.inputs(linear, samples):
        inside = wanted[(wanted >= start) & (wanted < start + len(x))] - start
        rows.append(x[inside.to(x.device)].float())
        start += len(x)
    return torch.cat(rows)


def _title(index: int, linear: str) -> str:
    return f"layer {index} {linear}"
