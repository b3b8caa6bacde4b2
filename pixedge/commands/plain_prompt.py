"""The line that a person types into a chat on a terminal that takes no escape codes."""

import sys

from pixedge.terminal import ask


class PlainPrompt:
    """Reads lines as the terminal gives them: no history, no completion."""

    def read(self) -> str:
        r"""Return what was typed, on with the next line after a \; EOFError at the end of the input."""
        lines: list[str] = []
        while True:
            ask("  " if lines else "> ")
            data = sys.stdin.buffer.readline()
            if not data:
                raise EOFError
            line = data.decode(errors="replace").rstrip("\r\n")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
