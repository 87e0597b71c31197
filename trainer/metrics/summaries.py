"""Summaries: ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), mean F1 over utterances.

Equal to the package rouge-score without stemming, but for its tokeniser, which drops every letter outside a–z and so
scores Arabic or Chinese as empty. Here a token is a run of letters, marks and digits of any script, lower-cased; where
a script has no word spaces, every character. On ASCII text both are the same.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rapidfuzz.distance import LCSseq

from trainer.metrics.normalise import apart, one_text

if TYPE_CHECKING:
    from trainer.spec import Task


def rouge1_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[F1 of words in common, 1]; an invalid answer is an empty summary."""
    return _overlap(one_text(reference, task), prediction, 1)


def rouge2_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[F1 of word pairs in common, 1]; 0 for a summary of one word."""
    return _overlap(one_text(reference, task), prediction, 2)


def rouge_l_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[F1 of the longest common subsequence, 1], the summary taken as one sentence."""
    expected, given = tokens(one_text(reference, task)), tokens(prediction or "")
    return [_f1(LCSseq.similarity(expected, given), len(given), len(expected)), 1.0]


def tokens(text: str) -> list[str]:
    """The words of a text in any script; rouge-score takes an object with this as its `tokenize`."""
    composed = unicodedata.normalize("NFKC", text).lower()
    return apart("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in composed)).split()


def _overlap(reference: str, prediction: str | None, n: int) -> list[float]:
    expected, given = (_grams(tokens(text), n) for text in (reference, prediction or ""))
    return [_f1((expected & given).total(), given.total(), expected.total()), 1.0]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _f1(common: int, given: int, expected: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / given, common / expected
    return 2 * precision * recall / (precision + recall)
