"""Calibration: whether answers given with probability p are right in a share p of the cases."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trainer.spec import Task

BINS = 15
"""Equal bins of the probability, as in Guo et al. 2017."""


def calibration_counts(reference: Any, prediction: Any, task: "Task", confidence: float | None) -> list[float]:
    """One answer as BINS counts of answers, BINS sums of confidence, BINS counts of right answers (length 45).

    `confidence`: probability in [0, 1] that the model gave to its answer among all answers of the task. ValueError
    where there is none, which is so for every answer that was generated and not scored.
    """
    if confidence is None:
        raise ValueError(
            f"task '{task.name}': ece needs the probability of each answer, which generated answers have not; "
            "score the answers by likelihood, or leave ece out"
        )
    if not 0 <= confidence <= 1:
        raise ValueError(f"task '{task.name}': ece needs a probability between 0 and 1, got {confidence!r}")
    right = prediction is not None and prediction == reference
    counts = np.zeros((3, BINS))
    # Bins are open to the left, (0, 1/15], ..., as Guo et al. cut them; 0 itself falls into the first.
    counts[:, max(int(np.ceil(confidence * BINS)) - 1, 0)] = 1.0, confidence, float(right)
    return counts.ravel().tolist()


def expected_calibration_error(counts: np.ndarray) -> np.ndarray:
    """Mean distance between confidence and accuracy of a bin, weighted by its answers, from (..., 45) summed counts;
    nan without answers. Guo et al. 2017, equation 3."""
    answers, confidence, right = np.split(counts, 3, axis=-1)
    total = answers.sum(axis=-1)
    distance = np.abs(right - confidence).sum(axis=-1)
    return np.divide(distance, total, out=np.full(np.shape(total), np.nan), where=total > 0)
