"""Word, character and mixed error rates, as counts that add up over a corpus.

Edit distances are rapidfuzz's, which is what jiwer counts with; `tests/golden/texts.json` holds jiwer's rates. Each
rate is defined twice: after the task's normaliser, and (`…_raw`) on the text as written, because between normalisers
the same hypotheses differ by ten points and more.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from rapidfuzz.distance import Levenshtein

from trainer.metrics.normalise import apart, normalise, one_text

if TYPE_CHECKING:
    from trainer.spec import Task


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest substitutions, deletions and insertions, each costing 1."""
    return Levenshtein.distance(reference, hypothesis)


def wer_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[S + D + I, reference words] after `task.normaliser`. An invalid answer (None) is an empty
    hypothesis."""
    return _errors(*_texts(reference, prediction, task, task.normaliser), str.split)


def wer_raw_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`wer_counts` of the text as written."""
    return _errors(*_texts(reference, prediction, task, "raw"), str.split)


def cer_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[S + D + I, reference characters] after `task.normaliser`; one space between words counts as a
    character.

    Characters are Unicode code points: a combining mark is a character of its own.
    """
    return _errors(*_texts(reference, prediction, task, task.normaliser), str)


def cer_raw_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`cer_counts` of the text as written (white space collapsed)."""
    return _errors(*_texts(reference, prediction, task, "raw"), str)


def mer_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[S + D + I, reference units] after `task.normaliser`: the mixed error rate of code-switched speech.

    A unit is a character where the script has no word spaces (Han, kana, Thai, Lao, Burmese, Khmer), else a word. Not
    jiwer's `mer`, the match error rate, which depends on which of several equally short alignments is taken.
    """
    return _errors(*_texts(reference, prediction, task, task.normaliser), _units)


def mer_raw_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`mer_counts` of the text as written."""
    return _errors(*_texts(reference, prediction, task, "raw"), _units)


def wer_utterance_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[this utterance's WER, 1]: the mean over utterances weighs a one-word utterance like a long one.

    An empty reference has WER 0 when the hypothesis is empty too, else the number of inserted words.
    """
    errors, length = wer_counts(reference, prediction, task)
    return [errors / max(length, 1.0), 1.0]


def _units(text: str) -> list[str]:
    return apart(text).split()


def _errors(expected: str, given: str, cut: Callable[[str], Sequence[str]]) -> list[float]:
    units = cut(expected)
    return [float(edit_distance(units, cut(given))), float(len(units))]


def _texts(reference: Any, prediction: Any, task: "Task", normaliser: str) -> tuple[str, str]:
    return normalise(one_text(reference, task), normaliser), normalise(prediction or "", normaliser)
