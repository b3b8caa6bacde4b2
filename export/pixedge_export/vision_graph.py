"""The vision encoder as an ONNX graph, built node by node from the geometry alone.

The graph mirrors ``encoder.py``. It is written by hand instead of traced, so no height or width can be baked
in, no weight need be in memory, and the bytes depend on the geometry and the weights' places only.

Every weight keeps the orientation in which checkpoints store it: Gemm multiplies by the transpose, and the
patch convolution, whose patches do not overlap, is such a product too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pixedge.config import ModelConfig
from pixedge.rope import frequencies

# RMSNormalization and RotaryEmbedding are standard operators from 23 on; IR version 11 came with it.
_OPSET = 23
_IR_VERSION = 11
_CONTRIB = "com.microsoft"
_KERNELS = "pixedge"

Form = Literal["float16", "float32", "fused"]
"""What a graph computes with. fused: pixedge's own operators for the CPU (kernels/vision), a node a layer."""


@dataclass(frozen=True)
class StoredWeight:
    """Where a float16 tensor lies in a file: byte offset and length from the file's start."""

    file: str
    shape: tuple[int, ...]
    offset: int
    length: int


def build_graph(config: ModelConfig, weights: Mapping[str, StoredWeight], form: Form) -> ModelProto:
    """Build the graph: pixels float32 [3, H, W] -> embeddings [H/patch * W/patch, decoder dim].

    H and W are dynamic multiples of the patch size. `weights` gives each canonical tensor's place in a file
    beside the graph. In float16, products and attention are float16, but the residual stream and every
    norm's statistics are float32, where large activations cannot overflow; the output is float16. In float32
    each weight is widened by a Cast. The fused graph's operators round products to bfloat16 inside, and give
    and take float32.
    """
    graph = _Graph(weights, form)
    x = _patches(graph, config)
    cos, sin = _rotary(graph, config)
    layer = _fused_layer if form == "fused" else _layer
    for index in range(config.vision.n_layers):
        x = layer(graph, config, f"vision_tower.transformer.layers.{index}", x, cos, sin)
    name = "multi_modal_projector"
    x = graph.linear(f"{name}.linear_1", graph.narrow(x), bias=True, gelu=f"{name}.gelu")
    graph.linear(f"{name}.linear_2", x, bias=True, output="embeddings")
    return graph.model(config)


@dataclass
class _Graph:
    """A graph under construction; a node is named after the tensor it makes."""

    weights: Mapping[str, StoredWeight]
    form: Form
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    @property
    def half(self) -> bool:
        return self.form == "float16"

    @property
    def dtype(self) -> int:
        return int(TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)

    def add(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        self.nodes.append(
            helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes)
        )
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def batch_axis(self) -> str:
        """Refer to the axis that attention wants in front of the patches."""
        name = "batch_axis"
        if all(tensor.name != name for tensor in self.initializers):
            self.integers(name, 0)
        return name

    def weight(self, name: str, shape: tuple[int, ...] | None = None, widen: bool = False) -> str:
        """Refer to a stored tensor in the dtype that products take, or as float32 with `widen`.

        Fused operators take weights as they are stored. A tensor is read as `shape` where another view of the
        same bytes is wanted.
        """
        place = self.weights[name]
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape or place.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": place.file, "offset": place.offset, "length": place.length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        if self.form != "float32" and not widen:
            return name
        return self.add("Cast", [name], f"{name}.float32", to=TensorProto.FLOAT)

    def narrow(self, x: str) -> str:
        """Bring float32 to the dtype of products."""
        return self.add("Cast", [x], f"{x}.float16", to=TensorProto.FLOAT16) if self.half else x

    def widen(self, x: str) -> str:
        """Bring a product's result to the residual stream's float32."""
        return self.add("Cast", [x], f"{x}.float32", to=TensorProto.FLOAT) if self.half else x

    def linear(
        self, name: str, x: str, bias: bool = False, gelu: str | None = None, output: str | None = None
    ) -> str:
        """Multiply x [tokens, in] by the transpose of a weight [out, in]; `gelu` names the GELU of that."""
        inputs = [x, self.weight(f"{name}.weight")] + ([self.weight(f"{name}.bias")] if bias else [])
        if gelu is None:
            return self.product(inputs, output or name)
        if self.form == "fused":
            return self.product(inputs, gelu, gelu=True)
        return self.add("Gelu", [self.product(inputs, name)], gelu)

    def product(self, inputs: list[str], output: str, gelu: bool = False) -> str:
        """Multiply x by the transpose of a weight, given with the bias, if any, as `inputs`."""
        if self.form == "fused":
            return self.add("Linear", inputs, output, domain=_KERNELS, gelu=int(gelu))
        return self.add("Gemm", inputs, output, transB=1)

    def norm(self, name: str, x: str, eps: float) -> str:
        """RMSNorm of x float32; ONNX Runtime's CPU provider knows no mixed dtypes here."""
        inputs = [x, self.weight(f"{name}.weight", widen=True)]
        return self.add("RMSNormalization", inputs, name, axis=-1, epsilon=eps)

    def model(self, config: ModelConfig) -> ModelProto:
        pixels = helper.make_tensor_value_info(
            "pixels", TensorProto.FLOAT, [config.vision.n_channels, "height", "width"]
        )
        embeddings = helper.make_tensor_value_info("embeddings", self.dtype, ["patches", config.decoder.dim])
        graph = helper.make_graph(self.nodes, "vision_encoder", [pixels], [embeddings], self.initializers)
        return helper.make_model(
            graph,
            producer_name="pixedge",
            ir_version=_IR_VERSION,
            opset_imports=[
                helper.make_opsetid("", _OPSET),
                helper.make_opsetid(_KERNELS if self.form == "fused" else _CONTRIB, 1),
            ],
        )


def _patches(graph: _Graph, config: ModelConfig) -> str:
    """Cut pixels into patches and embed them: float32 [patches, dim].

    Leaves `rows` and `columns`, int64 [1], for _rotary.
    """
    eye = config.vision
    patch = graph.integers("patch_size", eye.patch_size)
    size = graph.add("Shape", ["pixels"], "size", start=1, end=3)
    grid = graph.add("Div", [size, patch], "grid")
    for name, place in (("rows", 0), ("columns", 1)):
        span = [graph.integers(f"{name}.start", place), graph.integers(f"{name}.end", place + 1)]
        graph.add("Slice", [grid, *span], name)
    # Where H or W is no multiple of the patch size, the element counts differ and Reshape refuses.
    cut = [graph.integers("channels", eye.n_channels), "rows", patch, "columns", patch]
    shape = graph.add("Concat", cut, "patches.shape", axis=0)
    x = graph.add("Reshape", ["pixels", shape], "patches.cut")
    x = graph.add("Transpose", [x], "patches.row_major", perm=[1, 3, 0, 2, 4])
    values = eye.n_channels * eye.patch_size**2
    x = graph.add("Reshape", [x, graph.integers("patches.flat_shape", -1, values)], "patches")
    weight = graph.weight("vision_tower.patch_conv.weight", (eye.dim, values))
    x = graph.product([graph.narrow(x), weight], "vision_tower.patch_conv")
    return graph.norm("vision_tower.ln_pre", graph.widen(x), eye.norm_eps)


def _rotary(graph: _Graph, config: ModelConfig) -> tuple[str, str]:
    """Compute cosines and sines [1, patches, head_dim / 2] of the grid, as pixedge.rope.rotary_2d does."""
    rates = frequencies(config.vision.head_dim, config.vision.rope_theta).numpy()
    # Rows turn the first half and columns the second: each axis has a rate of zero where the other turns.
    still = np.zeros(len(rates) // 2, np.float32)
    parts = {"rows": np.concatenate([rates[0::2], still]), "columns": np.concatenate([still, rates[1::2]])}
    shapes = {"rows": (-1, 1, 1), "columns": (1, -1, 1)}
    zero, one = graph.constant("zero", np.array(0, np.int64)), graph.constant("one", np.array(1, np.int64))
    angles = []
    for name, rate in parts.items():
        count = graph.add("Squeeze", [name], f"{name}.count")
        positions = graph.add("Range", [zero, count, one], f"{name}.positions")
        positions = graph.add("Cast", [positions], f"{name}.positions.float32", to=TensorProto.FLOAT)
        shape = graph.integers(f"{name}.shape", *shapes[name])
        positions = graph.add("Reshape", [positions, shape], f"{name}.positions.grid")
        angles.append(graph.add("Mul", [positions, graph.constant(f"{name}.rates", rate)], f"{name}.angles"))
    x = graph.add("Add", angles, "rotary.angles.grid")  # [rows, columns, head_dim / 2]
    x = graph.add("Reshape", [x, graph.integers("rotary.shape", 1, -1, len(rates))], "rotary.angles")
    cos, sin = (graph.add(kind, [x], f"rotary.{kind.lower()}") for kind in ("Cos", "Sin"))
    return graph.narrow(cos), graph.narrow(sin)


def _fused_layer(graph: _Graph, config: ModelConfig, name: str, x: str, cos: str, sin: str) -> str:
    """Name what `_layer` computes as one node, its weights in the order of kernels/vision/encoder_layer.h."""
    attention = ("attention_norm", *(f"attention.{letter}_proj" for letter in "qkvo"))
    feed_forward = ("ffn_norm", *(f"feed_forward.{part}_proj" for part in ("gate", "up", "down")))
    weights = [graph.weight(f"{name}.{part}.weight") for part in (*attention, *feed_forward)]
    eye = config.vision
    attributes = {"heads": eye.n_heads, "epsilon": eye.norm_eps}
    return graph.add("EncoderLayer", [x, cos, sin, *weights], name, domain=_KERNELS, **attributes)


def _layer(graph: _Graph, config: ModelConfig, name: str, x: str, cos: str, sin: str) -> str:
    """Attention and feed-forward around the residual stream x, float32 [patches, dim]."""
    eye = config.vision
    batch_axis = graph.batch_axis()
    part = f"{name}.attention"
    normed = graph.narrow(graph.norm(f"{name}.attention_norm", x, eye.norm_eps))
    heads = []
    for letter in "qkv":
        projected = graph.linear(f"{part}.{letter}_proj", normed)
        batched = graph.add("Unsqueeze", [projected, batch_axis], f"{part}.{letter}")  # [1, patches, dim]
        if letter != "v":
            inputs = [batched, cos, sin]
            batched = graph.add("RotaryEmbedding", inputs, f"{part}.{letter}.turned", num_heads=eye.n_heads)
        heads.append(batched)
    # Without a mask this node runs as flash attention on CPU and CUDA; ai.onnx Attention keeps all scores.
    attended = graph.add("MultiHeadAttention", heads, part, domain=_CONTRIB, num_heads=eye.n_heads)
    attended = graph.add("Squeeze", [attended, batch_axis], f"{part}.joined")
    out = graph.widen(graph.linear(f"{part}.o_proj", attended))
    x = graph.add("Add", [x, out], f"{part}.residual")

    part = f"{name}.feed_forward"
    normed = graph.narrow(graph.norm(f"{name}.ffn_norm", x, eye.norm_eps))
    gate = graph.linear(f"{part}.gate_proj", normed)
    # QuickGelu is x * sigmoid(alpha * x): SiLU where alpha is 1.
    gate = graph.add("QuickGelu", [gate], f"{part}.silu", domain=_CONTRIB, alpha=1.0)
    product = graph.add("Mul", [gate, graph.linear(f"{part}.up_proj", normed)], f"{part}.product")
    out = graph.widen(graph.linear(f"{part}.down_proj", product))
    return graph.add("Add", [x, out], f"{part}.residual")
