"""Answers that went wrong as text, whatever they were to say: empty, caught in a loop, or much too long.

arXiv 2601.12494 speaks of unstable generative decoding without saying how to count it; what counts is inferred: no
word at all, the same words four times running, or more than three times the reference's words (and at least ten).
"""

from typing import TYPE_CHECKING, Any

from trainer.metrics.normalise import one_text
from trainer.metrics.summaries import tokens

if TYPE_CHECKING:
    from trainer.spec import Task

TIMES = 4
"""The same words so often in a row are a loop."""
LONGEST = 4
"""Words of which a loop is made, at most."""
TOO_LONG, FEWEST = 3, 10
"""An answer of more than so many times the reference's words, and of at least so many, is too long."""


def failed_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[1 if the answer went wrong in any of the three ways, 1]."""
    ways = (empty_counts, repeated_counts, overlong_counts)
    return [max(way(reference, prediction, task)[0] for way in ways), 1.0]


def empty_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[1 for an answer without a word where the reference has one, 1]."""
    return [float(not tokens(prediction or "") and bool(tokens(one_text(reference, task)))), 1.0]


def repeated_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[1 for an answer in which words repeat TIMES in a row more often than in the reference, 1]."""
    usual = longest_run(tokens(one_text(reference, task)))
    return [float(longest_run(tokens(prediction or "")) >= max(TIMES, usual + 1)), 1.0]


def overlong_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[1 for an answer that is much longer than the reference, 1]."""
    given, expected = len(tokens(prediction or "")), len(tokens(one_text(reference, task)))
    return [float(given >= FEWEST and given > TOO_LONG * expected), 1.0]


def longest_run(words: list[str]) -> int:
    """How often the same one to LONGEST words stand in a row, at most."""
    best = min(1, len(words))
    for n in range(1, LONGEST + 1):
        run = 0  # words in a row that are like those n before
        for a, b in zip(words, words[n:], strict=False):
            run = run + 1 if a == b else 0
            best = max(best, 1 + run // n)
    return best
