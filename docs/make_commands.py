"""Write docs/commands.md, or with --check say whether it is what the commands print.

python docs/make_commands.py [--check]
"""

import sys
from pathlib import Path

import click

from pixedge.cli import main

FILE = Path(__file__).with_name("commands.md")
WIDTH = 100

INTRODUCTION = """\
# Commands

What `pixedge --help` and each command's `--help` print. This file is written by `docs/make_commands.py`.
"""

# tests/pixedge/commands/test_run.py compares the keys with what the command prints.
JSON = """\
## The object of `pixedge run --json`

One line, in ASCII, once the answer is complete.

| key | value |
|---|---|
| `text` | the answer |
| `finish_reason` | `stop`: the model or a `--stop` text ended it; `length`: `--max-tokens` or the context |
| `model` | the exported folder |
| `prompt_tokens` | tokens of everything that was asked, pictures included |
| `image_tokens` | those of them that stand for a patch of a picture |
| `cached_tokens` | those of the prompt that were known from an earlier request and not computed |
| `completion_tokens` | tokens of the answer |
| `kv_cache` | `bits` of a stored key or value (16 also where float32 is kept as it is), `tokens` it holds |
| `seed` | what makes the same draws again, as `--seed` |
| `seconds` | the times below |
| `tokens_per_second` | rate after the first token; `null` for a single token |
| `peak_memory_bytes` | `rss`: most RAM of the process; `cuda`: most that torch took from GPUs, or `null` |
| `logprobs` | only with `--logprobs`: for each token `id`, `text`, `logprob` and `top`, the likeliest |

| second | spent on |
|---|---|
| `load` | loading the model |
| `image_decode` | reading, decoding and resizing pictures (not on downloading them), and tokenising |
| `encode` | the vision encoder |
| `prefill` | the prompt through the decoder |
| `first_token` | everything from asking the loaded model to the first token |
| `decode` | the answer after the first token |
| `total` | the whole command |

`pixedge verify --json` prints `folder`, `ok` and `checks`, a list of `name`, `ok` and `detail`.
"""


def commands_page() -> str:
    """Give the whole page: the help of the group and of each command, at a fixed width."""
    group = click.Context(main, info_name="pixedge", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    parts = [INTRODUCTION, _section("pixedge", group)]
    for name in main.list_commands(group):
        command = main.get_command(group, name)
        assert command is not None
        parts.append(_section(f"pixedge {name}", click.Context(command, group, name, terminal_width=WIDTH)))
    return "\n".join([*parts, JSON])


def _section(title: str, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{context.command.get_help(context)}\n```\n"


if __name__ == "__main__":
    page = commands_page()
    if "--check" not in sys.argv:
        FILE.write_text(page, encoding="utf-8")
    elif page != FILE.read_text(encoding="utf-8"):
        sys.exit(f"{FILE} differs from what the commands print; run: python {sys.argv[0]}")
