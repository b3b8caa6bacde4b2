"""One thing to ask in a batch, and what the reading of it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pixedge.model import Model
from pixedge.sampling import SamplingParams
from pixedge.tokenizer import Prompt


@dataclass(frozen=True)
class Item:
    """Its id, which is unique in the batch, and a digest of everything that is asked of it.

    The digest, hexadecimal, tells on a later run whether an answer in the file is one to the same question.
    """

    id: str
    digest: str


@dataclass(frozen=True)
class Asked:
    """A prompt that is ready for the engine, with the sampling of each answer that is wanted to it.

    logprobs: whether the answer's line is to hold the tokens' log-probabilities. seconds: what reading took.
    """

    prompt: Prompt
    params: tuple[SamplingParams, ...]
    logprobs: bool
    seconds: float

    @property
    def bytes(self) -> int:
        """Memory that the pictures take."""
        return sum(image.nbytes for image in self.prompt.images)


class Inputs(Protocol):
    """Where the questions come from; any thread may read any of them."""

    @property
    def items(self) -> Sequence[Item]:
        """All of them, in their order."""
        ...

    def read(self, index: int, model: Model) -> Asked:
        """Read one: pictures decoded, prompt built.

        Raises PixedgeError, or Refusal of pixedge.serve.errors, where the question cannot be asked.
        """
        ...
