"""Running text of which segments are heard instead of read, and its twin that is read throughout (arXiv 2510.13632,
section 3; arXiv 2412.15712). Every read token but the first of all is predicted from what stands before it, heard or
read.

The recording is cut at word times and each segment heard by itself: features of the whole would have heard the words
that are to be predicted. Segments carry neither prompt nor marks around them, and both sequences are made of the same
pieces, so that the tokens predicted are the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.example import Example
from trainer.stage import Interleaved
from trainer.tokens import DataError, Tokens, transcript
from trainer.words import borders, places


class Segment(NamedTuple):
    """Words `first` to `last` - 1, heard or read."""

    heard: bool
    first: int
    last: int


def segments(count: int, view: Interleaved, draws: Sequence[int]) -> list[Segment]:
    """`count` >= 2 words in turns of random length. `draws`: count + 2 random words; the first decides how it begins.

    Words that are too few for a read segment behind a heard one are heard up to a random place and read from there; a
    heard segment at the end is left out, for nothing is predicted from it (both inferred)."""
    heard = bool(int(draws[0]) & 1)
    found: list[Segment] = []
    at, n = 0, 1
    while at < count:
        low, high = view.speech_words if heard else view.text_words
        length = low + int(draws[n]) % (high - low + 1)
        found.append(Segment(heard, at, min(count, at + length)))
        at, n, heard = at + length, n + 1, not heard
    if not any(segment.heard for segment in found[:-1]):
        cut = 1 + int(draws[n]) % min(count - 1, view.speech_words[1])
        return [Segment(True, 0, cut), Segment(False, cut, count)]
    return found[:-1] if found[-1].heard else found


def interleaved(
    utterance, view: Interleaved, tokens: Tokens, wave: np.ndarray, draws: Sequence[int]
) -> tuple[Example, Example]:
    """The example of an utterance with timed words, and its twin. `wave`: its recording at the base's rate; `draws`: as
    of `segments`. A segment too short for one audio token is read instead. DataError names the utterance."""
    text, words = transcript(utterance), utterance.words or ()
    parts = places(text, words)
    if parts is None or len(words) < 2:
        message = "its words are not those of the transcript" if words else "it has no times of words"
        message = "one word cannot be heard and read in turns" if len(words) == 1 else message
        raise DataError(f"utterance {utterance.id}: {message}, which the view interleaved needs")
    cuts = borders(words, tokens.shape.sampling_rate, len(wave))
    mixed, read, heard = _Sequence(), _Sequence(), []
    for segment in segments(len(words), view, draws):
        ids = tokens.text_ids(text[parts[segment.first] : parts[segment.last]], name=utterance.id)
        clip = wave[cuts[segment.first] : cuts[segment.last]]
        if segment.heard and tokens.shape.audio_tokens(len(clip)):
            heard.append(clip)
            mixed.add((tokens.audio_id,) * tokens.audio_tokens(len(clip), name=utterance.id), predicted=False)
            read.add(ids, predicted=False)
        else:
            mixed.add(ids, predicted=True)
            read.add(ids, predicted=True)
    tokens.check_length(max(len(mixed.ids), len(read.ids)), 0, name=utterance.id)
    return mixed.example(utterance.id, heard), read.example(utterance.id, [])


def running(utterance, tokens: Tokens) -> Example:
    """The transcript as running text: every token but the first is predicted."""
    made = _Sequence()
    made.add(tokens.text_ids(transcript(utterance), name=utterance.id), predicted=True)
    tokens.check_length(len(made.ids), 0, name=utterance.id)
    if len(made.ids) < 2:
        raise DataError(f"utterance {utterance.id}: one token of text, so there is none to predict; leave it out")
    return made.example(utterance.id, [])


class _Sequence:
    """Tokens in the making, and which of them are predicted."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.predicted: list[bool] = []

    def add(self, ids: Sequence[int], *, predicted: bool) -> None:
        self.ids += ids
        self.predicted += [predicted] * len(ids)

    def example(self, name: str, heard: Sequence[np.ndarray]) -> Example:
        first = self.predicted.index(True, 1)  # nothing stands before the very first token
        answer = self.predicted[first:]
        edges = [n for n in range(1, len(answer)) if answer[n] != answer[n - 1]] + [len(answer)]
        return Example(
            name, tuple(self.ids[:first]), tuple(self.ids[first:]), np.concatenate(heard) if heard else None,
            cuts=tuple(map(len, heard)), context=tuple(zip(edges[::2], edges[1::2], strict=False)),
        )  # fmt: skip
