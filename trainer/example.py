"""One utterance as the model gets it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one utterance under a view, and what stands for its placeholders."""

    name: str
    """Utterance id, for messages."""
    prompt: tuple[int, ...]
    """Ids up to the answer, audio placeholders expanded."""
    answer: tuple[int, ...]
    """Ids that are supervised: the answer and its end. Running text: everything from the first supervised token on."""
    wave: np.ndarray | None
    """Recording (samples,) float32 at the base's rate; None in the text view."""
    asked: str = ""
    """What examples have in common that may share a prefix: the instruction. Only a hint of where to look."""
    twin: Optional["Example"] = None
    """What the objective holds it against, where it is not the example itself."""
    cuts: tuple[int, ...] = ()
    """Samples of the segments that the recording is made of, each heard by itself; empty: it is heard whole."""
    context: tuple[tuple[int, int], ...] = ()
    """Spans of the answer (first, behind the last) that are not supervised: what is heard between predicted words."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def waves(self) -> list[np.ndarray]:
        """What is heard, in the order of the placeholders."""
        if self.wave is None:
            return []
        return np.split(self.wave, np.cumsum(self.cuts[:-1])) if self.cuts else [self.wave]

    @property
    def supervised(self) -> Sequence[int]:
        """Places in the answer that are predicted, rising."""
        if not self.context:
            return range(len(self.answer))
        heard = {place for span in self.context for place in range(*span)}
        return [place for place in range(len(self.answer)) if place not in heard]
