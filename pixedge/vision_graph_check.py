"""Whether an ONNX graph is one that pixedge's exporter writes, found out without running it.

ONNX Runtime runs whatever it is given: loops without end, and operators whose results fill the memory. So a
graph from a stranger's folder is read first. Its operators must be those of exports, and its nodes must be
joined as an export joins them, the layers all alike. Only the fields that tell this are read, by protobuf's
wire format (https://protobuf.dev/programming-guides/encoding) and the numbers of onnx.proto.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pixedge.errors import ArtifactError
from pixedge.plain_name import is_plain_name, leads_out

OPERATORS = frozenset(
    [("", name) for name in (
        "Add", "Cast", "Concat", "Cos", "Div", "Gelu", "Gemm", "Mul", "RMSNormalization", "Range", "Reshape",
        "RotaryEmbedding", "Shape", "Sin", "Slice", "Squeeze", "Transpose", "Unsqueeze",
    )]
    + [("com.microsoft", "MultiHeadAttention"), ("com.microsoft", "QuickGelu")]
    + [("pixedge", "EncoderLayer"), ("pixedge", "Linear")]
)  # fmt: skip
"""(domain, operator); "" is ONNX's own domain."""

WIRINGS = frozenset(
    {
        "60932636c601f14d388c119f8a4d416e04a5d4c37f344c062aba65984608a8df",  # float16, for CUDA
        "ad5329d03bcc59f15d916eef16258bfbe0bbb47cc571ec5e5629ccbbc450369f",  # float32
        "1a2c5938e48cffc8162062ab0713b5bff43478feedc410c8f0a146ccd08b2dc1",  # pixedge's own operators
    }
)
"""What ``Graph.wiring`` gives for each form that exports have or had; a test compares them."""

_MAX_BYTES = 16 << 20
_MAX_NODES = 20_000
_MAX_NUMBERS = 1 << 16  # bytes of a constant, and the value of a whole number
_ENDS = {11: "pixels", 12: "embeddings"}  # input and output of a GraphProto
_NARROWED = ".feed_forward.residual.float16"
_LAYER = re.compile(r"(?<=\.layers\.)\d+")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FLOAT, _INT64, _FLOAT16 = 1, 7, 10  # types of tensors


@dataclass
class Graph:
    """The nodes: those of layers by the layer's number, and the others."""

    layers: dict[int, list[str]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    nodes: int = 0

    def add(self, domain: str, kind: str, inputs: list[str], output: str) -> None:
        """Note a node, with layer 0 for its own layer in names, and "in" for the result before it."""
        self.nodes += 1
        found = _LAYER.search(output)
        last = f".{max(self.layers, default=0)}"
        names = ["out" if _stream(name, last) else name for name in inputs]
        if found is None or output.endswith(_NARROWED):
            # the last layer's result is narrowed for the adapter, which is no part of that layer
            names = [
                re.sub(rf".*\.layers\{last}{re.escape(_NARROWED)}$", "out.narrow", n)
                for n in (*names, output)
            ]
            self.rest.append(" ".join((domain, kind, *names[:-1], "->", names[-1])))
            return
        layer = int(found[0])
        before = f".{layer - 1}"
        inputs = [
            "in" if (_stream(name, before) if layer else name == "vision_tower.ln_pre") else name
            for name in inputs
        ]
        own = [_LAYER.sub(lambda m: "0" if int(m[0]) == layer else m[0], name) for name in (*inputs, output)]
        self.layers.setdefault(layer, []).append(" ".join((domain, kind, *own[:-1], "->", own[-1])))

    def wiring(self) -> str:
        """Give a digest of how the nodes are joined, the same for any number of layers; "" if they differ."""
        numbers = sorted(self.layers)
        if numbers != list(range(len(numbers))) or any(
            self.layers[number] != self.layers[0] for number in numbers
        ):
            return ""
        lines = "\n".join([*self.rest, "layer", *self.layers.get(0, [])])
        return hashlib.sha256(lines.encode()).hexdigest()


def check_graph(file: Path, layers: int) -> None:
    """Raise ArtifactError where a file is not an export's graph of so many layers; no weight is read."""
    graph = read_graph(file)
    if graph.wiring() not in WIRINGS or len(graph.layers) != layers:
        raise ArtifactError(
            f"{file} is joined as no graph of this pixedge is; export again, or install the pixedge that "
            "wrote it"
        )


def read_graph(file: Path) -> Graph:
    """Read the nodes of a graph; ArtifactError where something in it is never in an export."""
    try:
        size = file.stat().st_size
        if size > _MAX_BYTES:
            raise ArtifactError(f"{file} has {size:,} bytes and the limit is {_MAX_BYTES:,}; export again")
        data = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror}); export the model again") from error
    graph = Graph()
    try:
        fault = _model(memoryview(data), graph, file.parent)
    except (IndexError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be loaded ({error}); export the model again") from error
    if not graph.nodes and not fault:
        raise ArtifactError(f"{file} cannot be loaded (it has no nodes); export the model again")
    if fault:
        raise ArtifactError(f"{file} has {fault}, which no export writes; export the model again")
    return graph


def _model(model: memoryview, graph: Graph, folder: Path) -> str:
    """Read a ModelProto (graph 7, functions 25); return what is in it that must not be, "" for nothing."""
    for number, content in _parts(model):
        if number == 25:
            return "a function"
        for part, message in _parts(content) if number == 7 else ():
            fault = ""
            if part == 1:
                fault = _node(message, graph)
            elif part == 5:
                fault = _initializer(message, folder)
            elif part in _ENDS:
                fault = _end(message, _ENDS[part])
            elif part == 15:
                fault = "a sparse tensor"
            if fault:
                return fault
    return ""


def _end(value: memoryview, expected: str) -> str:
    """Read a ValueInfoProto: name 1. Another input would have to be given, and another output made."""
    names = [bytes(content).decode("utf-8") for number, content in _parts(value) if number == 1]
    return "" if names == [expected] else f"an input or output {names!a:.80}"


def _node(node: memoryview, graph: Graph) -> str:
    """Read a NodeProto: inputs 1, outputs 2, operator 4, attributes 5 (their graphs 6 and 11), domain 7."""
    texts: dict[int, list[str]] = {1: [], 2: [], 4: [""], 7: [""]}
    for number, content in _parts(node):
        if number in texts:
            texts[number].append(bytes(content).decode("utf-8"))
        elif number == 5 and any(part in (6, 11) for part, _ in _parts(content)):
            return "a graph within a node"
    domain, kind = texts[7][-1].replace("ai.onnx", ""), texts[4][-1]
    if (domain, kind) not in OPERATORS:
        return f"the operator {f'{domain}.{kind}'.lstrip('.')!a:.80}"
    if graph.nodes == _MAX_NODES:
        return f"more than {_MAX_NODES:,} nodes"
    graph.add(domain, kind, texts[1], "+".join(texts[2]))
    return ""


def _initializer(tensor: memoryview, folder: Path) -> str:
    """Read a TensorProto: type 2, raw data 9, external data 13 (entries of key 1 and value 2).

    Weights are float16 in a file of the same folder. Whole numbers are few and small: a large one could make
    a Range of gigabytes.
    """
    kind, raw, outside = 0, b"", False
    for number, content in _fields(tensor):
        if number == 2 and isinstance(content, int):
            kind = content
        elif isinstance(content, int):
            continue
        elif number == 13:
            outside = True
            entry = {part: bytes(text).decode("utf-8") for part, text in _parts(content)}
            place = entry.get(2, "")
            shard = is_plain_name(place) and place.endswith(
                ".safetensors"
            )  # verify wants all of these listed
            if entry.get(1) == "location" and (not shard or leads_out(folder / place)):
                return f"weights in {place!a:.80}"
        elif number == 9:
            raw = bytes(content)
        elif number != 8:  # its name
            return "a constant in another form"
    if outside:
        return "" if kind == _FLOAT16 and not raw else "weights in another form"
    if kind == _INT64 and len(raw) <= 64:
        numbers = struct.unpack(f"<{len(raw) // 8}q", raw[: len(raw) // 8 * 8])
        return "a large number" if any(abs(value) > _MAX_NUMBERS for value in numbers) else ""
    return "" if kind == _FLOAT and len(raw) <= _MAX_NUMBERS else "a large constant"


def _stream(name: str, layer: str) -> bool:
    """Tell whether a name is that of a layer's result: the layer's own, or its last sum's."""
    return name.endswith((f"layers{layer}", f"layers{layer}.feed_forward.residual"))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield each field's number and value: a number or bytes, but none for those of fixed width."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire, length = key & 7, 0
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > end:
            raise ValueError("it is cut short")
        if wire == _BYTES:
            yield key >> 3, message[at : at + length]
        at += length


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields that have bytes."""
    for number, value in _fields(message):
        if not isinstance(value, int):
            yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number and the place after it; IndexError where the message ends in it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
