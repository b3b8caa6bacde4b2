"""HTML in pieces: what is not marked as HTML is escaped, so that no name can break out of its place."""

from html import escape

_VOID = ("meta", "wbr")


class Markup(str):
    """Text that is HTML already."""


def element(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """Give an element around its children, escaped unless they are Markup.

    Attributes lose a final underscore (class_), and the others become hyphens (stroke_width).
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """Put parts one after the other, escaped unless they are Markup."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))
