"""Write the tables of speed from docs/speed.json, or with --check say whether they are what it says.

python docs/make_speed.py [--check]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).with_name("speed.json")
README = Path(__file__).parents[1] / "README.md"
PERFORMANCE = Path(__file__).with_name("performance.md")
BEGIN, END = "<!-- written by docs/make_speed.py -->\n", "<!-- end -->\n"


def _case(decoder: Any, tokens: int, batch: int = 1, context: int = 512) -> Any:
    """Find a case of the decoder's benchmark, with the 8-bit cache."""
    context = 0 if tokens > 1 else context
    wanted = {"batch": batch, "context": context, "bits": 8, "tokens": tokens}
    return next(case for case in decoder["cases"] if wanted.items() <= case.items())


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def table(found: Any) -> str:
    """Return the text between the markers."""
    decoder, peer, vision = found["decoder"], found["llama_cpp"], found["vision"]
    one = _case(decoder, 1)
    lines = ["| what | figure | share of the machine's limit | beside another engine |", "|---|---|---|---|"]

    def row(what: str, case: Any, figure: str, beside: str = "") -> None:
        share = f"{100 * case['share_of_limit']:.0f} %" if "share_of_limit" in case else ""
        lines.append(f"| {what} | {figure} | {share} | {beside} |")

    def against(seconds: float, what: str) -> str:
        if peer is None or what not in peer["seconds"]:
            return ""
        return f"{peer['seconds'][what] / seconds:.2f} × llama.cpp's"

    for context in (512, 8192):
        case = _case(decoder, 1, context=context)
        figure = f"{case['tokens_per_second']:.2f} tokens/s, {_time(case['seconds'])} a token"
        beside = against(case["seconds"], "token") if context == 512 else ""
        row(f"decode behind {context:,} tokens", case, figure, beside)
    for batch in (4, 8):
        case = _case(decoder, 1, batch=batch)
        gain = case["tokens_per_second"] / one["tokens_per_second"]
        row(f"{batch} answers at a time", {}, f"{case['tokens_per_second']:.1f} tokens/s, {gain:.1f} × one")
    for tokens in (512, 2048):
        case = _case(decoder, tokens)
        figure = f"{case['tokens_per_second']:.0f} tokens/s, {_time(case['seconds'])}"
        row(f"prompt of {tokens:,} tokens", case, figure, against(case["seconds"], f"prompt {tokens}"))
    for picture in vision["pictures"]:
        seconds, side = picture["seconds"], picture["side"]
        beside = (
            f"{picture['times_as_fast']:.2f} × transformers' (bfloat16)" if "times_as_fast" in picture else ""
        )
        row(f"picture of {side} × {side} through the encoder", {}, _time(seconds["ours"]), beside)
    encode = next(each["seconds"]["ours"] for each in vision["pictures"] if each["side"] == 512)
    prefill = _case(decoder, 1104)["seconds"]
    row(
        "first token: 512 × 512 picture, 30 words",
        {},
        f"{_time(encode + prefill)}: encoder {_time(encode)}, 1,104 tokens {_time(prefill)}",
    )
    machine = found["machine"]
    reads = f"{decoder['read_bytes_per_second'] / 1e9:.0f} GB/s"
    rate = f"{decoder['product_operations_per_second'] / 1e9:,.0f} GFLOP/s"
    layers = decoder["layers"]
    lines.append("")
    lines.append(
        f"Pixtral-12B's shape with random weights, {machine['cores']} cores of {machine['cpu']}, "
        f"{decoder['kernels']} kernels, {found['date']}. {layers} of 40 layers and the head were timed "
        f"and 40 reckoned. The limit is {reads} of memory that was read, or {rate} of torch's bfloat16 "
        "product, measured between the cases in the same run."
    )
    return "\n".join(lines) + "\n"


def growth(found: Any) -> str:
    """Return how times grow with layers, context and batch, as a table."""
    lines = ["| layers | answers at a time | context | time of a step | tokens/s |", "|---|---|---|---|---|"]
    for run in (*found["growth"], found["decoder"]):
        for case in run["cases"]:
            if case["bits"] != 8 or case["tokens"] > 1:
                continue
            if run is found["decoder"] and case["batch"] == 1:
                continue
            layers, seconds = str(run["layers"]), case["layers_seconds"] + case["head_seconds"]
            if run is found["decoder"]:
                layers, seconds = "40, reckoned", case["seconds"]
            lines.append(
                f"| {layers} | {case['batch']} | {case['context']:,} | {1e3 * seconds:.1f} ms | "
                f"{case['batch'] / seconds:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the tables, or compare them."""
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    for file, wanted in ((README, table(found)), (PERFORMANCE, growth(found))):
        text = file.read_text(encoding="utf-8")
        parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
        assert parts[1::2] == [BEGIN, END], f"{file} has no place for the table"
        parts[2] = wanted
        if sys.argv[1:] != ["--check"]:
            file.write_text("".join(parts), encoding="utf-8")
        elif "".join(parts) != text:
            print(f"{file.name} is not what docs/speed.json says; run python docs/make_speed.py")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
