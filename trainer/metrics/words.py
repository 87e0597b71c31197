"""Edit distance, word error rate and character error rate, as counts that add up over a corpus."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.metrics.normalise import normalise

if TYPE_CHECKING:
    from trainer.spec import Task


def edit_distance(reference: Sequence[Any], hypothesis: Sequence[Any]) -> int:
    """Levenshtein distance: the fewest substitutions, deletions and insertions, each costing 1."""
    # Equal ends cost nothing and are most of a good hypothesis.
    start, end = 0, 0
    shorter = min(len(reference), len(hypothesis))
    while start < shorter and reference[start] == hypothesis[start]:
        start += 1
    while end < shorter - start and reference[-1 - end] == hypothesis[-1 - end]:
        end += 1
    reference = reference[start : len(reference) - end]
    hypothesis = hypothesis[start : len(hypothesis) - end]
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, given in enumerate(hypothesis, start=1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != given))
            diagonal, row[j] = row[j], best
    return row[-1]


def wer_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[S + D + I, reference words] after `task.normaliser`. An invalid answer (None) is an empty
    hypothesis."""
    expected, given = _texts(reference, prediction, task)
    words = expected.split()
    return [float(edit_distance(words, given.split())), float(len(words))]


def cer_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[S + D + I, reference characters] after `task.normaliser`; one space between words counts as a
    character.

    Characters are Unicode code points: a combining mark is a character of its own.
    """
    expected, given = _texts(reference, prediction, task)
    return [float(edit_distance(expected, given)), float(len(expected))]


def wer_utterance_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[this utterance's WER, 1]: the mean over utterances weighs a one-word utterance like a long one.

    An empty reference has WER 0 when the hypothesis is empty too, else the number of inserted words.
    """
    errors, length = wer_counts(reference, prediction, task)
    return [errors / max(length, 1.0), 1.0]


def _texts(reference: Any, prediction: Any, task: "Task") -> tuple[str, str]:
    if not isinstance(reference, str):
        raise ValueError(f"task '{task.name}': word and character error need a text, got {reference!r}")
    return normalise(reference, task.normaliser), normalise(prediction or "", task.normaliser)
