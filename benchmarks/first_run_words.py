"""Takes a person's words out of what is sent: names of folders, files, users, machines and other programs."""

import getpass
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

# Absolute paths, but for those of the system; what stands in quotes is hidden up to the closing one.
_PATH = (
    r"(?:(?<![\w./~-])/(?!(?:usr|proc|sys|dev|lib|lib64|etc|bin|sbin|run)/)[\w.@+-]+/"
    r"|(?<!\w)[A-Za-z]:\\+(?!Windows\\)[\w.@+ -]+\\)"
)
_QUOTED = re.compile(rf"""(?P<quote>["']){_PATH}.*?(?P=quote)""")
_PERSONAL = re.compile(rf"""{_PATH}[^\s'":,;)\]}}>]*""")
_HOLDERS = re.compile(r"; held by [^\"\n]*")
_SMI_PROCESSES = re.compile(r"^\+?[-|+]*\n\|\s*Processes:.*", re.MULTILINE | re.DOTALL)


class Words:
    """Replaces known places by their kind, and hides what else looks like a person's."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """Take places by path; longer ones are replaced first, so what lies in the home keeps its kind."""
        known = {
            sys.prefix: "ENVIRONMENT",
            sys.base_prefix: "PYTHON",
            str(Path.home()): "HOME",
            **{place: kind for place, kind in places.items() if place},
        }
        forms = {form: kind for place, kind in known.items() for form in (place, str(Path(place).resolve()))}
        self._places = sorted((each for each in forms.items() if len(each[0]) > 3), key=_longest)
        names = {_user(): "USER", platform.node(): "HOST"}
        self._names = [
            (re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])"), kind)
            for name, kind in names.items()
            if len(name) > 2 and name != "root"
        ]

    def replace(self, text: str) -> str:
        """Return text without a person's words."""
        for place, kind in self._places:
            text = text.replace(place, kind)
        text = _HOLDERS.sub("", _SMI_PROCESSES.sub("", text))
        text = _PERSONAL.sub("PATH", _QUOTED.sub(r"\g<quote>PATH\g<quote>", text))
        for name, kind in self._names:
            text = name.sub(kind, text)
        return text


def _longest(pair: tuple[str, str]) -> int:
    return -len(pair[0])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return ""
