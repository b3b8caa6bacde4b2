"""A conversation in turns: what was asked, about which pictures, and what was answered."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True, eq=False)
class Attachment:
    """What one file or address gave: RGB pictures, several where it is a document.

    source is a path, ``report.pdf[2-5]`` or an address; hash tells whether the same is found there later.
    """

    source: str
    hash: str
    pictures: tuple[Image.Image, ...]


@dataclass(frozen=True, eq=False)
class Exchange:
    """A question with the pictures before it, and its answer.

    Read from a transcript, one of them may be None: messages of one role follow each other, or the assistant
    begins. tokens: of the whole conversation up to here, as the model counted them; None where it has not.
    """

    question: str | None
    attachments: tuple[Attachment, ...]
    answer: str | None
    tokens: int | None = None


@dataclass
class Conversation:
    """An instruction, the exchanges so far, and pictures that wait for the next question."""

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    waiting: list[Attachment] = field(default_factory=list)

    @property
    def attachments(self) -> list[Attachment]:
        """All attachments in order, the waiting ones last."""
        return [each for exchange in self.exchanges for each in exchange.attachments] + self.waiting

    @property
    def n_pictures(self) -> int:
        """The number of pictures, the waiting ones included."""
        return sum(len(each.pictures) for each in self.attachments)

    def ask(self, question: str) -> list[dict[str, Any]]:
        """Give the messages, as in OpenAI's chat API, that ask a question about the waiting pictures too."""
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for each in self.exchanges:
            if each.question is not None:
                messages.append(_user_message(each.question, each.attachments))
            if each.answer is not None:
                messages.append({"role": "assistant", "content": each.answer})
        return [*messages, _user_message(question, tuple(self.waiting))]

    def add(self, question: str, answer: str, tokens: int | None = None) -> None:
        """Add what was asked with ``ask`` and its answer; the waiting pictures belong to it now."""
        self.exchanges.append(Exchange(question, tuple(self.waiting), answer, tokens))
        self.waiting = []

    def take_back(self) -> Exchange:
        """Remove the last exchange and return it; its pictures are not put among the waiting ones."""
        return self.exchanges.pop()

    def clear(self) -> None:
        """Forget all but the instruction."""
        self.exchanges, self.waiting = [], []


def _user_message(question: str, attachments: tuple[Attachment, ...]) -> dict[str, Any]:
    pictures = [picture for each in attachments for picture in each.pictures]
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}
