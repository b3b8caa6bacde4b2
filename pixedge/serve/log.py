"""A log that strangers cannot fill: of each kind of line a few a minute."""

import logging
import time

_LINES = 5
_SECONDS = 60.0

# Whoever writes lines while the server runs.
_LOGGERS = ("pixedge.serve", "uvicorn.error", "asyncio", "concurrent.futures")


class FewLines(logging.Filter):
    """Lets _LINES lines of a kind through in _SECONDS; the next one afterwards says how many it left out."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        super().__init__()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}  # when it began, and how many there were

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is written; lines of one kind have the same text before values are put in."""
        kind = (record.name, str(record.msg)[:80])
        now = time.monotonic()
        began, count = self._kinds.get(kind, (now, 0))
        if now - began >= _SECONDS:
            if count > _LINES:
                record.msg = f"{record.msg} ({count - _LINES:,} more lines like this were left out)"
            began, count = now, 0
        self._kinds[kind] = (began, count + 1)
        return count < _LINES


def keep_log_short() -> None:
    """Filter what the server and its libraries log."""
    few = FewLines()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(few)
    # what strangers send is no reason to fill a log
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
