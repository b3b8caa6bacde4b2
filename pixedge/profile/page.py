"""A profile as one page that needs no network, no script and no other file."""

from collections.abc import Mapping, Sequence
from typing import Any

from pixedge.byte_size import write_bytes
from pixedge.charts import length_bar, span_bar, stacked_bar, swatch
from pixedge.markup import Markup, element, join
from pixedge.page import facts_list, table, table_row, whole_page
from pixedge.profile.page_plots import speed_plots
from pixedge.profile.serving import METRICS
from pixedge.profile.words import percent, rate, seconds, spread

_STYLE = """
.series polyline { fill: none; stroke-width: 1.6; }
.own polyline { stroke: var(--own); }
.own circle { fill: var(--own); }
.limit polyline { stroke: var(--rtn); stroke-dasharray: 5 3; }
.limit rect { fill: var(--rtn); }
.bandwidth { fill: var(--own); }
.operations, .operations .length rect { fill: var(--rtn); }
td.bar { min-width: 2.5rem; }
.lane td.bar { width: 60%; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1rem; }
"""

_PLANNED = {
    "4-bit linears and norms": ("linears", "norms"),
    "output head": ("head",),
    "token embeddings": ("embeddings",),
    "encoder's weights": ("encoder_weights",),
    "encoder at the largest picture": ("encoder_activations",),
    "keys and values": ("kv_cache",),
    "pictures kept for later questions": ("pictures",),
    "scratch and margin": ("prefill_scratch", "decode_scratch", "margin"),
    "process, libraries and CUDA": ("process", "cuda_context"),
}
_LANES = ("read", "resize and tokenise", "encode", "prefill", "decode")


def render(found: Mapping[str, Any]) -> str:
    """Give the page for a profile's object."""
    name = f"{found['model']['name']}: speed and memory"
    sections = [
        _headline(name, found),
        _shares(found),
        speed_plots(found),
        _memory(found),
        _timeline(found["timeline"]),
        _serving(found["serving"]),
        _facts(found),
    ]
    return whole_page(name, sections, _STYLE)


def _headline(name: str, found: Mapping[str, Any]) -> Markup:
    model, machine, limits = found["model"], found["machine"], found["limits"]
    where = machine["gpu"] if model["device"].startswith("cuda") else machine["cpu"]
    about = ["random weights" if model["synthetic"] else "4 bits", str(where), str(found["date"])]
    parts = [
        element("h1", name),
        element("p", ", ".join(about), class_="soft"),
        element(
            "p",
            f"In the same run memory was read at {limits['read_bytes_per_second'] / 1e9:.1f} GB/s, and a "
            f"large product of {model['dtype']} ran at "
            f"{limits['product_operations_per_second'] / 1e9:,.0f} GFLOP/s. From these follows the least "
            "time that each row could take, and the share of the limit that it reached.",
        ),
    ]
    if model["layers"] != model["whole_layers"]:
        parts.append(
            element(
                "p",
                f"{model['layers']} of {model['whole_layers']} decoder layers were made and timed. What is "
                f"called reckoned is for all {model['whole_layers']}: the time of the layers grown by their "
                "number, what does not grow with them as it is.",
            )
        )
    return join(*parts)


def _shares(found: Mapping[str, Any]) -> Markup:
    """Show each row's time and how near the limit it came; then all figures."""
    rows = []
    for row in found["rows"]:
        share = row["share_of_limit"]
        bar = Markup() if share is None else length_bar(min(share, 1.0))
        told = {"class_": f"bar {row['bound']}", "title": row["bound"]} if row["bound"] else {"class_": "bar"}
        rows.append(
            element(
                "tr",
                element("th", row["name"], scope="row", class_="whole"),
                element("td", seconds(row["seconds"])),
                element("td", bar, **told),
                element("td", percent(share)),
            )
        )
    head = element("thead", table_row(("test", "median", "", "share"), "th"))
    keys = (("bandwidth", "bound by reading memory"), ("operations", "bound by products"))
    return join(
        element("h2", "Share of the limit"),
        element("p", *(_key(style, text) for style, text in keys), class_="legend"),
        element("div", element("table", head, element("tbody", *rows), class_="full"), class_="wide"),
        *(element("p", f"{each['name']} was not measured: {each['reason']}.") for each in found["skipped"]),
        element(
            "p",
            "pp is a prompt of so many tokens, tg an answer of so many, @ d behind so many, b so many "
            "answers at a time: as llama-bench names them. img is a picture through the encoder, ttft the "
            "time to the first token of a question about one, read and resize what is done before.",
            class_="soft",
        ),
        element("details", element("summary", "All figures"), _figures(found)),
    )


def _figures(found: Mapping[str, Any]) -> Markup:
    cut = found["model"]["layers"] != found["model"]["whole_layers"]
    head = ("test", "median", "spread", "rate", "limit", "planned")
    rows = []
    for row in found["rows"]:
        cells = [
            row["name"],
            seconds(row["seconds"]),
            spread(row),
            rate(row["rate"], row["unit"]),
            seconds(row["limit_seconds"]),
            seconds(row["predicted_seconds"]),
        ]
        if cut:
            cells += [seconds(row["reckoned_seconds"]), rate(row["reckoned_rate"], row["unit"])]
        rows.append(cells)
    return table((*head, *(("reckoned", "rate, reckoned") if cut else ())), rows)


def _key(style: str, text: str) -> Markup:
    """Show a bar's colour beside what it means."""
    square = element("rect", width=14, height=14, rx=2, class_=style)
    return element("span", element("svg", square, width=14, height=14, aria_hidden="true"), f" {text}")


def _memory(found: Mapping[str, Any]) -> Markup:
    plan, phases = found["memory"]["plan"], found["memory"]["phases"]
    planned = {
        name: total for name, keys in _PLANNED.items() if (total := sum(plan["device"][key] for key in keys))
    }
    measured = _measured(phases, "device" if plan["setup"]["device"] == "cuda" else "rss")
    longest = max(sum(planned.values()), sum(measured.values()))
    parts = [
        element("h2", "Memory by component"),
        element("h3", f"As planned: {write_bytes(sum(planned.values()))}"),
        stacked_bar(planned, longest),
        _parts_table(planned),
    ]
    if measured:
        parts += [
            element("h3", f"As measured: {write_bytes(sum(measured.values()))}"),
            stacked_bar(measured, longest),
            _parts_table(measured),
        ]
    return join(*parts, _phases(phases, plan["setup"]["device"] == "cuda"))


def _measured(phases: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
    """Part the most that was held: before loading, more once it was loaded, more while it ran."""
    held = {phase["phase"]: phase[key] for phase in phases if phase[key] is not None}
    if not {"start", "load"} <= held.keys():
        return {}
    most = max(held.values())
    loaded = min(held["load"], held.get("pictures", held["load"]))
    parts = {
        "before loading": held["start"],
        "more, once loaded": loaded - held["start"],
        "more, while it ran": most - loaded,
    }
    return {name: value for name, value in parts.items() if value > 0}


def _parts_table(parts: Mapping[str, int]) -> Markup:
    whole = sum(parts.values()) or 1
    rows = [
        (join(swatch(number), name), write_bytes(value), f"{value / whole:.1%}")
        for number, (name, value) in enumerate(parts.items(), start=1)
    ]
    return table(("part", "size", "share"), rows)


def _phases(phases: Sequence[Mapping[str, Any]], gpu: bool) -> Markup:
    keys = {"device": "GPU, all", "torch": "GPU, torch"} if gpu else {}
    keys |= {"rss": "process", "planned": "planned"}
    rows = [
        (
            phase["phase"],
            *("not measured" if phase[key] is None else write_bytes(phase[key]) for key in keys),
        )
        for phase in phases
    ]
    return join(element("h3", "Most memory in each phase"), table(("phase", *keys.values()), rows))


def _timeline(spans: Sequence[Mapping[str, Any]]) -> Markup:
    """Show one question's stages, one lane each."""
    title = element("h2", "One question, by stage")
    whole = max((span["start"] + span["seconds"] for span in spans), default=0.0)
    if not whole:
        return join(title, element("p", "No question was recorded."))
    rows = []
    for lane in _LANES:
        mine = [span for span in spans if span["name"] == lane]
        if mine:
            bar = span_bar([(span["start"] / whole, span["seconds"] / whole) for span in mine])
            rows.append(
                element(
                    "tr",
                    element("th", lane, scope="row"),
                    element("td", bar, class_="bar"),
                    element("td", seconds(sum(span["seconds"] for span in mine))),
                    element("td", f"{len(mine)}"),
                )
            )
    head = element("thead", table_row(("stage", f"0 to {seconds(whole)}", "in all", "times"), "th"))
    tokens = next((span["tokens"] for span in spans if span["name"] == "question"), 0)
    answer = next((span["tokens"] for span in spans if span["name"] == "answer"), 0)
    return join(
        title,
        element("p", f"{tokens:,} tokens asked, {answer} answered, nothing else under way.", class_="soft"),
        element("div", element("table", head, element("tbody", *rows), class_="full lane"), class_="wide"),
    )


def _serving(serving: Mapping[str, Any] | None) -> Markup:
    if serving is None:
        return Markup()
    rows = []
    for key, name in METRICS.items():
        values = [serving[f"{kind}_{key}_ms"] for kind in ("mean", "median", "p99")]
        cells = ("" if value is None else f"{value:,.1f}" for value in values)
        rows.append((f"{key.upper()}, {name}", *cells))
    return join(
        element("h2", "Several questions at a time"),
        element(
            "p",
            f"{serving['completed']} questions, {serving['concurrency']} at a time: "
            f"{serving['request_throughput']:.2f} questions a second, "
            f"{serving['output_throughput']:.1f} tokens/s out, "
            f"{serving['total_token_throughput']:,.1f} in and out.",
            class_="soft",
        ),
        table(("milliseconds", "mean", "median", "p99"), rows),
    )


def _facts(found: Mapping[str, Any]) -> Markup:
    """List the machine and what was profiled."""
    model = {key: value for key, value in found["model"].items() if not isinstance(value, Mapping)}
    lists = [
        element("section", element("h2", title), facts_list(facts))
        for title, facts in (("Machine", found["machine"]), ("Model", model))
    ]
    return element("div", *lists, class_="facts")
