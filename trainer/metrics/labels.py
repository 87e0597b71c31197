"""Classification: accuracy, macro and micro F1 over a fixed list of labels, for one label or a set per
utterance.

Counts are three vectors over `task.labels`, one after the other: TP, FP, FN (3 x number of labels). They add
up, so a bootstrap re-weighs utterances without looking at labels again. An invalid answer misses its
reference labels (FN) and predicts none (no FP).
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trainer.spec import Task


def accuracy_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """[right, 1]; an invalid answer is wrong."""
    return [float(prediction is not None and reference == prediction), 1.0]


def label_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    """TP, FP, FN per label of `task.labels`, length 3 x labels. ValueError for a reference outside the
    list."""
    if not task.labels:
        raise ValueError(f"task '{task.name}': macro_f1 and micro_f1 need `labels`, all names in a list")
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
    labels. For label sets scikit-learn gives such a label 0, which differs only when a label of the menu
    never occurs in the test split. SLUE's "macro" is this number; SLUE's "micro" is a weighted mean and is
    not here.
    """
    tp, fp, fn = np.split(counts, 3, axis=-1)
    total = 2 * tp + fp + fn
    f1 = np.divide(2 * tp, total, out=np.zeros_like(total), where=total > 0)
    occurring = (total > 0).sum(axis=-1)
    return np.divide(f1.sum(axis=-1), occurring, out=np.zeros(occurring.shape), where=occurring > 0)


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of TP, FP, FN summed over labels, from (..., 3 x labels) summed counts; 0 when nothing occurs."""
    tp, fp, fn = (part.sum(axis=-1) for part in np.split(counts, 3, axis=-1))
    total = 2 * tp + fp + fn
    return np.divide(2 * tp, total, out=np.zeros(total.shape), where=total > 0)


def _as_set(label: Any) -> set[str]:
    if label is None:
        return set()
    return {label} if isinstance(label, str) else set(label)
