"""Classification: accuracy and F1 over a fixed list of labels, for one label or a set per utterance.

Counts are three vectors over `task.labels`, one after the other: TP, FP, FN (3 x number of labels). They add
up, so a bootstrap re-weighs utterances without looking at labels again. An invalid answer misses its
reference labels (FN) and predicts none (no FP).

SLUE (slue-toolkit): sentiment's "macro" is `macro_f1`, dialog acts' "macro" is `macro_f1_all_labels`; what its files
call "micro" is `weighted_f1`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trainer.spec import Task


def accuracy_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[right, 1]; an invalid answer is wrong."""
    return [float(prediction is not None and reference == prediction), 1.0]


def following_counts(reference: Any, prediction: Any, task: "Task", shown: Mapping[str, str]) -> list[float]:
    """[labels answered by the name that their definition stands under, those and labels answered by their own name].

    `shown`: the name that each label went by, none its own; `prediction`: what the answer means by the definitions. A
    name that is right either way (of sets) tells nothing and is not counted, nor is an invalid answer.
    """
    expected, given = (_as_set(_intent(label)) for label in (reference, prediction))
    said, by_definition = {shown[name] for name in given}, {shown[name] for name in expected}
    followed, named = len(said & by_definition - expected), len(said & expected - by_definition)
    return [float(followed), float(followed + named)]


def _intent(label: Any) -> Any:
    return label.get("intent") if isinstance(label, dict) else label


def label_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """TP, FP, FN per label of `task.labels`, length 3 x labels. ValueError for a reference outside the
    list."""
    if not task.labels:
        raise ValueError(f"task '{task.name}': F1 and recall over labels need `labels`, all names in a list")
    expected, given = _as_set(reference), _as_set(prediction)
    if unknown := sorted(expected - set(task.labels)):
        raise ValueError(f"task '{task.name}': reference label {unknown[0]!r} is not among the task's labels")
    tp = [float(name in expected and name in given) for name in task.labels]
    fp = [float(name in given and name not in expected) for name in task.labels]
    fn = [float(name in expected and name not in given) for name in task.labels]
    return tp + fp + fn


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Unweighted mean F1 of the labels that occur, from (..., 3 x labels) summed counts.

    A label neither in the references nor predicted is left out of the mean: scikit-learn's default for single
    labels. For label sets scikit-learn keeps it, see `macro_f1_all_labels`.
    """
    f1, total, _ = _by_label(counts)
    return _mean(f1, total > 0)


def macro_f1_all_labels(counts: np.ndarray) -> np.ndarray:
    """Unweighted mean F1 of all labels of the menu, 0 for those that do not occur: scikit-learn's macro F1 of label
    sets with `zero_division=0`."""
    return _by_label(counts)[0].mean(axis=-1)


def weighted_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of labels weighted by how often the references have them; 0 when they have none."""
    f1, _, support = _by_label(counts)
    return _ratio((f1 * support).sum(axis=-1), support.sum(axis=-1))


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of TP, FP, FN summed over labels, from (..., 3 x labels) summed counts; 0 when nothing occurs."""
    tp, fp, fn = (part.sum(axis=-1) for part in np.split(counts, 3, axis=-1))
    return _ratio(2 * tp, 2 * tp + fp + fn)


def unweighted_accuracy(counts: np.ndarray) -> np.ndarray:
    """Mean recall of the labels that the references have (balanced accuracy): rare labels weigh as much as common
    ones."""
    tp, _, fn = np.split(counts, 3, axis=-1)
    return _mean(_ratio(tp, tp + fn), tp + fn > 0)


def _by_label(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F1, 2 TP + FP + FN, occurrences in the references) per label, each (..., labels)."""
    tp, fp, fn = np.split(counts, 3, axis=-1)
    total = 2 * tp + fp + fn
    return _ratio(2 * tp, total), total, tp + fn


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values chosen; 0 when none is."""
    return _ratio((values * chosen).sum(axis=-1), chosen.sum(axis=-1))


def _as_set(label: Any) -> set[str]:
    if label is None:
        return set()
    return {label} if isinstance(label, str) else set(label)
