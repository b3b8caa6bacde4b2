"""Standard output for a check's one JSON object, whatever the engines print."""

import json
import os
import sys
from typing import Any


class Result:
    """Takes standard output away from everybody else, subprocesses included, until the result is written."""

    def __init__(self) -> None:
        """Send what is printed from now on to standard error."""
        self._stdout = os.dup(1)
        os.dup2(2, 1)

    def write(self, result: dict[str, Any]) -> None:
        """Print the result on the real standard output."""
        sys.stdout.flush()
        os.write(self._stdout, (json.dumps(result) + "\n").encode())
