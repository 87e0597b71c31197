"""One utterance as the model gets it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np


class Clip:
    """A recording that is decoded when its samples are asked for. Their number and key are known from the first time
    on: who needs no more of it decodes nothing. Numpy takes it as an array (samples,) float32."""

    __slots__ = ("_key", "_read", "_samples")

    def __init__(self, read: Callable[[], np.ndarray]):
        self._read = read
        self._samples: int | None = None
        self._key: str | None = None

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        wave = self._read()
        self._samples = len(wave)
        return np.array(wave, dtype, copy=copy)

    def __len__(self) -> int:
        return len(np.asarray(self)) if self._samples is None else self._samples

    @property
    def key(self) -> str:
        """`wave_key` of its samples."""
        if self._key is None:
            self._key = wave_key(np.asarray(self))
        return self._key


def wave_key(wave: np.ndarray | Clip) -> str:
    """sha256 of the samples as the encoder gets them: after decoding, resampling, cutting, trimming."""
    if isinstance(wave, Clip):
        return wave.key
    return hashlib.sha256(np.ascontiguousarray(wave, dtype=np.float32).tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A recording, or a segment of one, up to its encoder: all that is made of it without weights."""

    samples: int
    key: str | None = None
    """Its `wave_key`, where its encoder states are kept for later."""
    frames: Sequence[np.ndarray] = ()
    """What the encoder gets of it, as its family says (`Family.frames`)."""
    states: np.ndarray | None = None
    """Its encoder states (vectors, width), where they were known already: there are no frames then."""


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one utterance under a view, and what stands for its placeholders."""

    name: str
    """Utterance id, for messages."""
    prompt: tuple[int, ...]
    """Ids up to the answer, audio placeholders expanded."""
    answer: tuple[int, ...]
    """Ids that are supervised: the answer and its end. Running text: everything from the first supervised token on."""
    wave: np.ndarray | Clip | None
    """Recording (samples,) float32 at the base's rate; None in the text view."""
    asked: str = ""
    """What examples have in common that may share a prefix: the instruction. Only a hint of where to look."""
    twin: Optional["Example"] = None
    """What the objective holds it against, where it is not the example itself."""
    cuts: tuple[int, ...] = ()
    """Samples of the segments that the recording is made of, each heard by itself; empty: it is heard whole."""
    context: tuple[tuple[int, int], ...] = ()
    """Spans of the answer (first, behind the last) that are not supervised: what is heard between predicted words."""
    heard: tuple[Heard, ...] = ()
    """Each of `waves` up to the encoder, where that was made ahead of the step."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def waves(self) -> Sequence[np.ndarray | Clip]:
        """What is heard, in the order of the placeholders."""
        if self.wave is None:
            return []
        return np.split(np.asarray(self.wave), np.cumsum(self.cuts[:-1])) if self.cuts else [self.wave]

    @property
    def supervised(self) -> Sequence[int]:
        """Places in the answer that are predicted, rising."""
        if not self.context:
            return range(len(self.answer))
        heard = {place for span in self.context for place in range(*span)}
        return [place for place in range(len(self.answer)) if place not in heard]
