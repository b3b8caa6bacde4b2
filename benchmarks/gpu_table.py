"""The table of a GPU's figures."""

from typing import Any


def say(what: str, figure: str) -> None:
    """Print one line of the table."""
    print(f"{what:56} {figure}", flush=True)


def report(found: dict[str, Any]) -> None:
    """Print the table."""
    say("copy", f"{found['limits']['copy_bytes_per_second'] / 1e9:.0f} GB/s")
    say("bfloat16 product", f"{found['limits']['product_operations_per_second'] / 1e12:.1f} TFLOP/s")
    say("load: decoder, graphs", ", ".join(f"{value:.1f} s" for value in found["load_seconds"].values()))
    for row in found["decode"]:
        what = f"decode, batch {row['batch']}, behind {row['context']:,}"
        if "why" in row:
            say(what, row["why"])
            continue
        times = f"{1e3 * row['seconds']:.2f} ms (graph {1e3 * row['graph_seconds']:.2f})"
        say(what, f"{row['tokens_per_second']:.1f} tokens/s, {times}, {100 * row['share_of_limit']:.0f} %")
    for row in found["answers"]:
        say(
            f"answers at a time through the engine: {row['batch']}",
            f"{row['tokens_per_second']:.1f} tokens/s",
        )
    for row in found["prefill"]:
        figure = f"{row['tokens_per_second']:.0f} tokens/s, {100 * row['share_of_limit']:.0f} %"
        say(f"prompt of {row['tokens']:,}", figure)
    for row in found["encoder"]["pictures"]:
        say(f"encoder, {row['side']} x {row['side']}", f"{1e3 * row['seconds']:.1f} ms")
    say("encoder by", found["encoder"]["by"])
    first = found["first_token"]["seconds"]
    parts = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in first.items())
    say(f"first token, picture of {found['first_token']['side']} x {found['first_token']['side']}", parts)
    for row in found["products"]:
        peer = f"torch {1e6 * row['torch_seconds']:.1f} us" if row["torch_seconds"] else row["why"]
        say(f"4-bit product {row['product']}, {row['rows']} rows", f"{1e6 * row['seconds']:.1f} us, {peer}")
    taken = found["memory"].get("taken")
    planned = f"{found['memory']['planned'] / 1e9:.2f} GB planned"
    say("memory", planned if taken is None else f"{taken / 1e9:.2f} GB taken, {planned}")
