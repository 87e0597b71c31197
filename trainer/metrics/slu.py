"""Intents and slots: intent accuracy, entity F1, SLU-F1 as SLURP defines it, and whole-answer match.

SLU-F1: Bastianelli et al. 2020 (SLURP, EMNLP), section 6, in the exact form of the corpus's own
`scripts/evaluation/metrics/metrics.py` (pswietojanski/slurp, commit 8eb1654). Golden values of that script
are in `tests/golden/slurp.json`.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.metrics.normalise import normalise
from trainer.metrics.words import edit_distance

if TYPE_CHECKING:
    from trainer.spec import Task


def intent_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[right, 1]; [0, 0] for a reference without intent. Equals SLURP's micro F1 of the intent."""
    intent = reference.get("intent")
    if intent is None:
        return [0.0, 0.0]
    return [float(prediction is not None and prediction.get("intent") == intent), 1.0]


def entity_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[TP, FP, FN] of exact (type, value) pairs, repeated pairs matched one to one.

    An invalid answer leaves every reference slot a false negative.
    Also the named-entity F1 of SLUE-VoxPopuli, whose script numbers repeated pairs to the same effect.
    """
    expected, given = Counter(_pairs(reference)), Counter(_pairs(prediction))
    hits = (expected & given).total()
    return [float(hits), float(given.total() - hits), float(expected.total() - hits)]


def slu_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[TP, FP, FN] by word distance, then [TP, FP, FN] by character distance, of lower-cased values.

    Each predicted slot, in the order predicted, takes the unmatched reference slot of its type at the lowest
    distance d (the first at a tie): TP += 1, FP += d, FN += d; without such a slot FP += 1. Every reference
    slot left over: FN += 1. Word d is the WER of the value and may exceed 1 (it is not clamped in the
    original either); character d is Levenshtein over the longer length.

    An invalid answer (None) counts nothing at all, as the official script drops recordings that are missing
    from the prediction file: this is the number papers report, and it flatters models that often fail to
    answer. `slu_strict_counts` closes that hole. The original lower-cases references only; both sides here,
    which is the same for lower-case predictions.
    """
    if prediction is None:
        return [0.0] * 6
    return _distance_counts(reference, prediction, word_distance) + _distance_counts(
        reference, prediction, character_distance
    )


def slu_strict_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """As `slu_counts`, but an invalid answer leaves every reference slot a false negative in both tables."""
    return slu_counts(reference, {"slots": []} if prediction is None else prediction, task)


def exact_match_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[whole answer right, 1]: intent and all slots (in any order), or the label, the label set, the text.

    A text is compared after the task's normaliser; everything else as it stands.
    """
    if prediction is None:
        return [0.0, 1.0]
    if isinstance(reference, dict):
        same = reference.get("intent") == prediction.get("intent") and Counter(_pairs(reference)) == Counter(
            _pairs(prediction)
        )
    elif isinstance(reference, list):
        same = set(reference) == set(prediction)
    elif task.answer == "text":
        same = normalise(reference, task.normaliser) == normalise(prediction, task.normaliser)
    else:
        same = reference == prediction
    return [float(same), 1.0]


def word_distance(expected: str, given: str) -> float:
    """WER of `given`; may exceed 1. From an empty reference value, which the original refuses: insertions."""
    words = expected.split()
    return edit_distance(words, given.split()) / max(len(words), 1)


def character_distance(expected: str, given: str) -> float:
    """Levenshtein distance over the longer of the two lengths, in [0, 1]; 0 for two empty strings."""
    longest = max(len(expected), len(given))
    return edit_distance(expected, given) / longest if longest else 0.0


def _pairs(label: Any) -> list[tuple[str, str]]:
    return [(slot["type"], slot["value"]) for slot in (label or {}).get("slots") or []]


def _distance_counts(reference: Any, prediction: Any, distance: Callable[[str, str], float]) -> list[float]:
    unmatched = [(kind, value.lower()) for kind, value in _pairs(reference)]
    tp = fp = fn = 0.0
    for kind, value in _pairs(prediction):
        candidates = [i for i, (expected_kind, _) in enumerate(unmatched) if expected_kind == kind]
        if not candidates:
            fp += 1.0
            continue
        distances = {i: distance(unmatched[i][1], value.lower()) for i in candidates}
        nearest = min(candidates, key=lambda i: distances[i])
        tp += 1.0
        fp += distances[nearest]
        fn += distances[nearest]
        unmatched.pop(nearest)
    return [tp, fp, fn + len(unmatched)]
