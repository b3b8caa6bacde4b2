"""Quantising the decoder one layer at a time, while measuring what it costs.

Three streams of activations run through the layers side by side. The calibration stream is what GPTQ solves
for: it always comes out of layers that are quantised already. The held-out samples run three times, through
the dense layers, through layers rounded to nearest, and through the layers that are exported; they give the
error of every linear and, after the output head, the divergence of the whole model, without two models ever
being in memory together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pixedge.config import DecoderConfig, ModelConfig
from pixedge.decoder import DecoderLayer, WholeSequences
from pixedge.errors import ExportError, UsageError
from pixedge.packing import NIBBLES, QuantizedWeight, dequantize
from pixedge.rope import rotary_1d
from pixedge.tensor_shapes import expected_shapes, is_quantized
from pixedge_export.gptq import (
    HessianAccumulator,
    ScaleSearch,
    quantize_gptq,
    quantize_rtn,
    relative_output_error,
)

Method = Literal["gptq", "rtn"]

STAGES: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a layer in the order of their inputs; those of one stage share their input."""

LINEARS = tuple(name for stage in STAGES for name in stage)

ERROR_ROWS = 2048
"""Held-out rows on which a linear's error is measured; more change it in the third digit only."""


@dataclass(frozen=True)
class Recipe:
    """How to quantise; stored in the artifact.

    group_size: inputs that share a scale. damping: share of the Hessian's mean diagonal that is added to it.
    act_order: solve columns by falling activation (groups keep their natural order). scale_search, polish:
    see ``quantize_gptq``. With "rtn" only group_size matters. Raises UsageError for a value out of range.
    """

    method: Method = "gptq"
    group_size: int = 128
    damping: float = 0.01
    act_order: bool = True
    scale_search: ScaleSearch = "activation"
    polish: int = 1

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
    """Relative output error ||x (W - V)^T|| / ||x W^T|| of one linear on held-out inputs x, by method."""

    layer: int
    linear: str
    rtn: float
    quantized: float


Step = Callable[[str, LinearError | None], None]
"""Gets a linear's name when its work begins, and once more with what it costs."""

STREAMS = ("calibration", "dense", "rtn", "quantized")


class Streams:
    """Residual streams between two layers, in memory: one float32 [tokens, dim] for each sample."""

    calibration: Sequence[Tensor]
    dense: Sequence[Tensor]
    rtn: Sequence[Tensor]
    quantized: Sequence[Tensor]

    def __init__(self, calibration: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Start the three held-out streams alike."""
        self.calibration, self.dense, self.rtn, self.quantized = calibration, held_out, held_out, held_out

    def move(self, name: str, samples: Iterable[Tensor]) -> None:
        """Let a stream go on as ``samples``."""
        setattr(self, name, list(samples))

    def share(self, name: str, other: str) -> None:
        """Let a stream be the same as another one."""
        setattr(self, name, getattr(self, other))


class _Reached(Exception):
    """Carries a linear's input out of a forward pass that need not go on."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class LayerRunner:
    """A dense decoder layer that runs whole samples, one at a time."""

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> None:
        """Make room for one layer on ``device``; it computes in ``dtype``, and samples stay in float32."""
        self.config, self.device, self.dtype = config, device, dtype
        self.layer = DecoderLayer(
            config, lambda i, o: nn.Linear(i, o, bias=False, device=device, dtype=dtype)
        ).to(device, dtype)
        self.layer.requires_grad_(False)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the layer from canonical tensors by their names inside it."""
        self.layer.load_state_dict(dict(tensors), strict=True)

    def weight(self, linear: str) -> Tensor:
        """Return a linear's weight [out, in] as it is now."""
        weight = self.layer.get_submodule(linear).weight
        assert isinstance(weight, Tensor)
        return weight

    def replace(self, linear: str, quantized: QuantizedWeight) -> None:
        """Let a linear compute with its quantised weight."""
        self.weight(linear).copy_(dequantize(quantized, torch.float32))

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Run one sample [tokens, dim] through the whole layer; back in float32 on the CPU."""
        return self._run(x).float().cpu()

    @torch.inference_mode()
    def inputs(self, linear: str, samples: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield a linear's input [tokens, in] for each sample; nothing behind the linear is computed."""

        def reach(module: nn.Module, args: tuple[Tensor]) -> None:
            raise _Reached(args[0])

        handle = self.layer.get_submodule(linear).register_forward_pre_hook(reach)
        try:
            for x in samples:
                try:
                    self._run(x)
                except _Reached as reached:
                    yield reached.x
        finally:
            handle.remove()

    def _run(self, x: Tensor) -> Tensor:
        tokens = len(x)
        positions = torch.arange(tokens, device=self.device)
        cos, sin = rotary_1d(positions, self.config.head_dim, self.config.rope_theta)
        out: Tensor = self.layer(0, x.to(self.device, self.dtype), cos, sin, WholeSequences(tokens))
        return out


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
    for name in LINEARS:
        runner.replace(name, quantize_rtn(runner.weight(name), recipe.group_size, _title(index, name)))
    streams.move("rtn", map(runner.forward, streams.rtn))
    runner.load(tensors())

    chosen: dict[str, QuantizedWeight] = {}
    errors: list[LinearError] = []
    for stage in STAGES:
        progress(stage[0], None)
        held_out = _held_out_rows(runner, stage[0], streams.quantized)
        hessian = None
        if recipe.method == "gptq":
            hessian = _hessian(runner, stage[0], streams.calibration, _title(index, stage[0]))
        for name in stage:
            if name != stage[0]:
                progress(name, None)
            weight = runner.weight(name)
            nearest = quantize_rtn(weight, recipe.group_size, _title(index, name))
            rtn = relative_output_error(weight, nearest, held_out)
            if hessian is None:
                best, quantized = nearest, rtn
            else:
                best = _solve(weight, hessian, recipe, _title(index, name))
                quantized = relative_output_error(weight, best, held_out)
            chosen[name] = QuantizedWeight(best.q.cpu(), best.scales.cpu(), best.group_size)
            errors.append(LinearError(index, name, rtn, quantized))
            progress(name, errors[-1])
        del hessian
        for name in stage:
            runner.replace(name, chosen[name])
    streams.move("calibration", map(runner.forward, streams.calibration))
    if recipe.method == "rtn":
        streams.share("quantized", "rtn")
    else:
        streams.move("quantized", map(runner.forward, streams.quantized))
    return chosen, errors


def _hessian(runner: LayerRunner, linear: str, samples: Sequence[Tensor], title: str) -> Tensor:
    """Sum the Hessian [in, in] of a linear's inputs."""
    accumulator = HessianAccumulator(runner.weight(linear).shape[1], runner.device, title)
    for x in runner.inputs(linear, samples):
        accumulator.add(x)
    return accumulator.hessian()


def _solve(weight: Tensor, hessian: Tensor, recipe: Recipe, title: str) -> QuantizedWeight:
    return quantize_gptq(
        weight,
        hessian,
        recipe.group_size,
        damp=recipe.damping,
        act_order=recipe.act_order,
        scale_search=recipe.scale_search,
        polish=recipe.polish,
        name=title,
    ).quantized


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
