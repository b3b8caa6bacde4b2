"""What ``pixedge plan`` prints for people."""

from dataclasses import fields
from typing import TYPE_CHECKING

from pixedge.byte_size import write_bytes
from pixedge.plan import Components
from pixedge.terminal import table

if TYPE_CHECKING:
    from pixedge.outlook import Outlook, Question
    from pixedge.prediction import Estimate, Prediction

_NAMES = {
    "linears": "4-bit linears",
    "head": "output head, 8-bit",
    "norms": "norms",
    "embeddings": "embeddings",
    "encoder_weights": "encoder weights",
    "encoder_activations": "encoder activations",
    "kv_cache": "KV cache",
    "pictures": "pictures kept",
    "prefill_scratch": "prefill scratch",
    "decode_scratch": "decode scratch",
    "cuda_context": "CUDA context",
    "process": "Python, torch, ONNX Runtime",
    "margin": "allocator margin",
}
_BINDINGS = {"bandwidth": "memory bandwidth", "operations": "products"}


def lines(model: str, device: str, asked: "Question", outlook: "Outlook") -> list[str]:
    """Give the page: the verdict, bytes by component, what else would fit, and how fast it will be."""
    return [
        *_verdict(model, device, asked, outlook),
        "",
        *_memory(outlook),
        "",
        *_largest(asked, outlook),
        "",
        *_speed(outlook),
    ]


def _verdict(model: str, device: str, asked: "Question", outlook: "Outlook") -> list[str]:
    work = outlook.plan.workload
    what = f"{model} on {device}: context {work.context:,}"
    if work.batch > 1:
        what += f", {work.batch} answers at a time"
    if asked.pictures:
        what += f", {_pictures(asked.pictures, outlook)}"
    if outlook.fits:
        return [f"fits: {what}"]
    found = [f"does not fit: {what}", *(f"  {problem}" for problem in outlook.problems)]
    if outlook.largest_image_size is not None:
        found.append(
            f"  what would: {outlook.most_pictures:,} of these pictures at a time, or all {asked.pictures:,} "
            f"with --max-image-size {outlook.largest_image_size}"
        )
    elif outlook.prompt_tokens > work.context:
        found.append(f"  what would: {outlook.most_pictures:,} of these pictures at a time")
    if not outlook.plan.fits and outlook.largest_context:
        found.append(f"  what would: --context {outlook.largest_context}")
    return found


def _pictures(count: int, outlook: "Outlook") -> str:
    width, height = outlook.plan.workload.picture or (0, 0)
    kind = "picture" if count == 1 else "pictures"
    return f"{count:,} {kind} of {width}x{height} ({outlook.picture_tokens:,} tokens each)"


def _memory(outlook: "Outlook") -> list[str]:
    plan = outlook.plan
    bits, work = plan.setup.kv_bits, plan.workload
    detail = {"kv_cache": f"{work.cache_tokens:,} tokens, {bits}-bit"}
    if work.picture is not None:
        detail["encoder_activations"] = "one picture of {}x{}".format(*work.picture)
    if plan.setup.device == "cpu" and not plan.device.embeddings:
        detail["embeddings"] = "read from their file, row by row"
    elif plan.host.embeddings:
        detail["embeddings"] = f"in host memory, {write_bytes(plan.host.embeddings)}"
    shown = {"embeddings"} | {field.name for field in fields(Components) if getattr(plan.device, field.name)}
    rows = [
        (_NAMES[name], write_bytes(getattr(plan.device, name)), detail.get(name, ""))
        for name in _NAMES
        if name in shown
    ]
    rows.append(("total", write_bytes(plan.total), ""))
    if plan.limit is not None:
        rows.append(("may be taken", write_bytes(plan.limit), ""))
        rows.append(("left", write_bytes(plan.left or 0), ""))
    width = max(len(detail) for *_, detail in rows)
    found = table(("memory", "bytes", ""), [(name, size, note.ljust(width)) for name, size, note in rows])
    if plan.setup.device == "cuda":
        found.append(f"host memory besides: {write_bytes(plan.host.total)}")
    return [line.rstrip() for line in found]


def _largest(asked: "Question", outlook: "Outlook") -> list[str]:
    bound = "the model's own" if outlook.largest_context == outlook.model_context else "what memory holds"
    if outlook.largest_context > outlook.model_context:
        bound = f"beyond the {outlook.model_context:,} that the model was trained for"
    found = [f"largest context: {outlook.largest_context:,} tokens ({bound})"]
    if asked.pictures:
        room = outlook.plan.workload.context
        left = room - outlook.most_pictures * outlook.picture_tokens
        found.append(
            f"most pictures of this size: {outlook.most_pictures:,} in {room:,} tokens, {left:,} for text"
        )
    batch = f"{outlook.largest_batch}" if outlook.largest_batch < 16 else "16 (the most that a step takes)"
    found.append(f"largest batch of this context: {batch}")
    return found


def _speed(outlook: "Outlook") -> list[str]:
    found = outlook.prediction
    if found is None:
        return ["speed: give --card NAME, or --bandwidth GB/s and --tflops N, for a prediction"]
    machine = found.machine
    basis = "shares of the limits as measured there" if machine.measured else _assumed(found)
    head = (
        f"speed, predicted and not measured: {machine.name}, {machine.bandwidth / 1e9:,.0f} GB/s, "
        f"{machine.operations / 1e12:,.1f} TFLOP/s, {basis}"
    )
    rows = []
    if found.encode is not None:
        rows.append(_row("encode one picture", found.encode))
    rows.append(_row(f"prefill {outlook.timed_tokens:,} tokens", found.prefill))
    count = outlook.timed_pictures
    pictures = f", {count:,} {'picture' if count == 1 else 'pictures'} encoded" if count else ""
    rows.append(_row(f"first token{pictures}", found.first_token))
    batch = outlook.plan.workload.batch
    answers = f", {batch} answers" if batch > 1 else ""
    rows.append(
        (
            f"decode behind {outlook.plan.workload.context:,} tokens{answers}",
            f"{found.tokens_per_second:,.1f} tokens/s",
            f"{found.limit_tokens_per_second:,.1f} tokens/s",
            _BINDINGS[found.decode.binding],
        )
    )
    return [head, *table(("stage", "predicted", "at the limit", "bound by"), rows)]


def _assumed(found: "Prediction") -> str:
    machine = found.machine
    return (
        f"assuming {machine.decode_share(1):.0%} of the limit in decode, {machine.prefill:.0%} in prefill, "
        f"{machine.encode:.0%} in encode"
    )


def _row(name: str, found: "Estimate") -> tuple[str, str, str, str]:
    return name, _seconds(found.seconds), _seconds(found.limit), _BINDINGS[found.binding]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


assert set(_NAMES) == {field.name for field in fields(Components)}
