"""Intents and slots: intent accuracy, entity F1, SLU-F1 as SLURP defines it, and whole-answer match.

SLU-F1: Bastianelli et al. 2020 (SLURP, EMNLP), section 6, in the exact form of the corpus's own
`scripts/evaluation/metrics/metrics.py` (pswietojanski/slurp, commit 8eb1654). What that script says of generated cases
is in `tests/golden/slurp.json`.

The script leaves recordings out that are missing from the prediction file, which is where answers go that cannot be
parsed: papers report that number, and it flatters models that often fail to answer. So each measure is counted both
ways, and either is recorded with the other: as the script does, and strictly, where an invalid or missing answer is an
error.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.metrics.normalise import normalise
from trainer.metrics.words import edit_distance

if TYPE_CHECKING:
    from trainer.spec import Task

Distance = Callable[[str, str], float]

_SPACES = re.compile(r"\s\s+")


def intent_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[right, 1]; [0, 0] for a reference without intent. An invalid answer is wrong.

    SLURP's intent is scenario and action joined (`alarm_query`), which its own `intent` column is not always.
    """
    intent = reference.get("intent")
    if intent is None:
        return [0.0, 0.0]
    return [float(prediction is not None and prediction.get("intent") == intent), 1.0]


def intent_answered_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`intent_counts` of the valid answers alone: SLURP's micro F1 of the intent."""
    return [0.0, 0.0] if prediction is None else intent_counts(reference, prediction, task)


def entity_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[TP, FP, FN] of exact (type, value) pairs, repeated pairs matched one to one.

    An invalid answer leaves every reference slot a false negative.
    """
    return pair_counts(slots(reference), slots(prediction))


def entity_answered_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`entity_counts` of the valid answers alone: SLURP's span F1."""
    return [0.0] * 3 if prediction is None else entity_counts(reference, prediction, task)


def slu_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`slu_word_counts`, then `slu_character_counts`: SLU-F1 is the F1 of both tables summed, not the mean of two.

    An invalid answer (None) counts nothing at all, as in the official script.
    """
    return slu_word_counts(reference, prediction, task) + slu_character_counts(reference, prediction, task)


def slu_word_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[TP, FP, FN] by word distance of lower-cased values; nothing for an invalid answer.

    Each predicted slot, in the order predicted, takes the unmatched reference slot of its type at the lowest
    distance d (the first at a tie): TP += 1, FP += d, FN += d; without such a slot FP += 1. Every reference
    slot left over: FN += 1. d is the WER of the value and may exceed 1 (it is not clamped in the original either).
    The original lower-cases references only; both sides here, which is the same for lower-case predictions.
    """
    return [0.0] * 3 if prediction is None else _distance_counts(reference, prediction, word_distance)


def slu_character_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """As `slu_word_counts` with d the Levenshtein distance over the longer length."""
    return [0.0] * 3 if prediction is None else _distance_counts(reference, prediction, character_distance)


def slu_strict_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`slu_counts`, but an invalid answer leaves every reference slot a false negative in both tables."""
    return slu_counts(reference, _or_nothing(prediction), task)


def slu_word_strict_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`slu_word_counts`, but an invalid answer leaves every reference slot a false negative."""
    return slu_word_counts(reference, _or_nothing(prediction), task)


def slu_character_strict_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """`slu_character_counts`, but an invalid answer leaves every reference slot a false negative."""
    return slu_character_counts(reference, _or_nothing(prediction), task)


def exact_match_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[whole answer right, 1]: intent and all slots (in any order), or the label, the label set, the text.

    A text is compared after the task's normaliser, with each where several are right; everything else as it stands.
    """
    if prediction is None:
        return [0.0, 1.0]
    if isinstance(reference, dict):
        same = reference.get("intent") == prediction.get("intent") and Counter(slots(reference)) == Counter(
            slots(prediction)
        )
    elif task.answer == "text":
        given = normalise(prediction, task.normaliser)
        right = [reference] if isinstance(reference, str) else reference
        same = any(normalise(answer, task.normaliser) == given for answer in right)
    elif isinstance(reference, list):
        same = set(reference) == set(prediction)
    else:
        same = reference == prediction
    return [float(same), 1.0]


def word_distance(expected: str, given: str) -> float:
    """WER of `given`; may exceed 1. From an empty reference value, which the original refuses: insertions."""
    words = _words(expected)
    return edit_distance(words, _words(given)) / max(len(words), 1)


def character_distance(expected: str, given: str) -> float:
    """Levenshtein distance over the longer of the two lengths, in [0, 1]; 0 for two empty strings."""
    longest = max(len(expected), len(given))
    return edit_distance(expected, given) / longest if longest else 0.0


def slots(label: Any) -> list[tuple[str, str]]:
    """(type, value) of the label's slots, in order; none of an invalid answer."""
    return [(slot["type"], slot["value"]) for slot in (label or {}).get("slots") or []]


def pair_counts(reference: list[tuple[str, str]], prediction: list[tuple[str, str]]) -> list[float]:
    """[TP, FP, FN] of pairs that are equal, repeated ones matched one to one."""
    expected, given = Counter(reference), Counter(prediction)
    hits = (expected & given).total()
    return [float(hits), float(given.total() - hits), float(expected.total() - hits)]


def _words(value: str) -> list[str]:
    """What jiwer 2.0, which the script pins, takes for words: only a plain space, or several of any kind, part them."""
    return [word for word in _SPACES.sub(" ", value).strip().split(" ") if word]


def _or_nothing(prediction: Any) -> Any:
    return {"slots": []} if prediction is None else prediction


def _distance_counts(reference: Any, prediction: Any, distance: Distance) -> list[float]:
    unmatched = [(kind, value.lower()) for kind, value in slots(reference)]
    # Summed by type first, as the original does: floats depend on the order of their sum.
    tp, fp, fn = (defaultdict[str, float](float) for _ in range(3))
    for kind, value in slots(prediction):
        candidates = [i for i, (expected_kind, _) in enumerate(unmatched) if expected_kind == kind]
        if not candidates:
            fp[kind] += 1
            continue
        distances = {i: distance(unmatched[i][1], value.lower()) for i in candidates}
        nearest = min(candidates, key=lambda i: distances[i])
        tp[kind] += 1
        fp[kind] += distances[nearest]
        fn[kind] += distances[nearest]
        unmatched.pop(nearest)
    for kind, _ in unmatched:
        fn[kind] += 1
    return [float(sum(table.values())) for table in (tp, fp, fn)]
