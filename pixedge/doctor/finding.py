"""What a check found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["green", "yellow", "red"]
LEVELS: tuple[Level, ...] = ("green", "yellow", "red")


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    level: "green" is as it should be, "yellow" works but not as well as it could, "red" does not work.
    advice: what to do about it, in one line; empty for green.
    """

    name: str
    level: Level
    detail: str
    advice: str = ""

    def __post_init__(self) -> None:
        """Hold checks to what they promise."""
        assert self.level in LEVELS and self.detail
        assert bool(self.advice) == (self.level != "green"), f"{self.name}: advice {self.advice!r}"


def green(name: str, detail: str) -> Finding:
    """Make a finding that all is well."""
    return Finding(name, "green", detail)


def yellow(name: str, detail: str, advice: str) -> Finding:
    """Make a finding of something that could be better."""
    return Finding(name, "yellow", detail, advice)


def red(name: str, detail: str, advice: str) -> Finding:
    """Make a finding of something that does not work."""
    return Finding(name, "red", detail, advice)


@dataclass(frozen=True)
class Subject:
    """What is examined.

    device: "cpu" leaves GPUs out of it, "auto" and "cuda" do not. model: the folder to prove, None for none.
    cards: names of the NVIDIA cards that the driver knows. prove: whether kernels and model are tried out.
    """

    device: str = "auto"
    model: Path | None = None
    cards: tuple[str, ...] = ()
    prove: bool = True

    @property
    def gpu(self) -> bool:
        """Whether a GPU is there to be used."""
        return bool(self.cards) and self.device != "cpu"
