"""Times of words (light): their form, where they stand in the transcript, where a recording is cut between them."""

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Word = dict[str, Any]
"""`{"text", "start", "end"}`, seconds from the utterance's start."""
_NUMBER = (float, int)


def faulty(words: Sequence[Any]) -> str | None:
    """What is wrong with the form of timed words, None where nothing is: texts, and times that never fall."""
    before = (0.0, 0.0)
    for n, word in enumerate(words):
        if type(word) is not dict or word.keys() != {"text", "start", "end"}:
            return f"word {n} must be {{text, start, end}}"
        if type(word["text"]) is not str or not word["text"].strip():
            return f"word {n} has no text"
        start, end = word["start"], word["end"]
        if type(start) not in _NUMBER or type(end) not in _NUMBER or not 0 <= start <= end < math.inf:
            return f"word {n} ({word['text']}) must have 0 <= start <= end in seconds"
        if start < before[0] or end < before[1]:
            return f"word {n} ({word['text']}) is before the one before it; sort them by time"
        before = (start, end)
    return None


def places(text: str, words: Sequence[Word]) -> list[int] | None:
    """Where each word begins in the transcript, and its end: (words + 1) characters, so that the text between the i-th
    and the j-th is that of words i to j - 1. Punctuation goes with the word before it, white space with the one behind
    it, as tokenizers have it. None where the words are not those of the transcript: letters and digits are compared,
    case, accents, punctuation and white space are not."""
    letters = [(c, n) for n, char in enumerate(text) for c in _letters(char)]
    found, at, ended = [], 0, 0
    for word in words:
        own = [c for char in word["text"] for c in _letters(char)]
        if not own or [c for c, _ in letters[at : at + len(own)]] != own:
            return None
        first = letters[at][1]
        if found and first < ended:  # two words within one character's letters
            return None
        found.append(_between(text, ended, first) if found else 0)
        at += len(own)
        ended = letters[at - 1][1] + 1
    return [*found, len(text)] if words and at == len(letters) else None


def in_turns(utterance) -> bool:
    """Whether some of an utterance's words can be heard and others read."""
    words = utterance.words or ()
    return bool(utterance.text) and len(words) > 1 and places(utterance.text, words) is not None


def _letters(char: str) -> str:
    """Letters and digits of a character, without case and accents."""
    if char.isascii():
        return char.lower() if char.isalnum() else ""
    return "".join(c for c in unicodedata.normalize("NFKD", char.casefold()) if c.isalnum())


def _between(text: str, ended: int, first: int) -> int:
    """Where the text is parted between a word that ended and the next one's first letter: before the last white space,
    else before the letter."""
    gap = text[ended:first]
    last = max((n for n, char in enumerate(gap) if char.isspace()), default=None)
    return first if last is None else ended + len(gap[: last + 1].rstrip())


def borders(words: Sequence[Word], rate: int, samples: int) -> list[int]:
    """Where a recording of `samples` is cut around each word: (words + 1) samples, rising; between two words in the
    middle of the gap, the first and the last with all there is before and behind them."""
    middle = [(a["end"] + b["start"]) / 2 for a, b in pairwise(words)]
    return [0, *(min(samples, round(at * rate)) for at in middle), samples]
