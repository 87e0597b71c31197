"""Metrics as counts: what one utterance contributes, and the value of the summed contributions.

Every corpus number is `value(sum of counts)`, so prediction rows are scored once and tables, bootstraps and
re-groupings only add. To add a metric: a count function (reference, prediction, task) -> list of numbers, a
value function over the last axis, a line in METRICS, and golden numbers of the scorer it claims to equal.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.metrics.labels import accuracy_counts, label_counts, macro_f1, micro_f1
from trainer.metrics.normalise import NORMALISERS, normalise
from trainer.metrics.slu import (
    entity_counts,
    exact_match_counts,
    intent_counts,
    slu_counts,
    slu_strict_counts,
)
from trainer.metrics.words import cer_counts, wer_counts, wer_utterance_counts

if TYPE_CHECKING:
    from trainer.spec import Task

__all__ = [
    "METRICS",
    "NORMALISERS",
    "Metric",
    "count",
    "default_metrics",
    "named",
    "normalise",
    "score",
]


@dataclass(frozen=True)
class Metric:
    """One metric. Values are fractions (0.873, not 87.3)."""

    name: str
    counts: Callable[[Any, Any, "Task"], list[float]]
    """(reference, prediction, task) -> contributions of one utterance; prediction None = invalid answer."""
    values: Callable[[np.ndarray], np.ndarray]
    """(..., k) summed counts -> (...) values."""
    answers: frozenset[str]
    """The answer forms it is defined for: json, label, label_set, text."""
    higher_is_better: bool = True
    upper: float | None = 1.0
    """Largest possible value; None = unbounded (WER). The smallest is 0 for all."""

    def value(self, summed: Iterable[float]) -> float:
        """The metric of counts summed over utterances (and seeds); nan when nothing was counted."""
        return float(self.values(np.asarray(list(summed), dtype=float)))


def _ratio(counts: np.ndarray) -> np.ndarray:
    """Events over opportunities; nan (not 0, not 1) when there was no opportunity."""
    events, total = counts[..., 0], counts[..., 1]
    return np.divide(events, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def _error_rate(counts: np.ndarray) -> np.ndarray:
    """Errors over reference length; with no reference words at all, the number of insertions (as jiwer)."""
    return counts[..., 0] / np.maximum(counts[..., 1], 1.0)


def _f1(counts: np.ndarray) -> np.ndarray:
    """Micro F1 of one or more (TP, FP, FN) tables summed; 0 when there is nothing to find and nothing found.

    2 TP / (2 TP + FP + FN) is the harmonic mean of precision and recall.
    """
    tp, fp, fn = counts[..., 0::3].sum(-1), counts[..., 1::3].sum(-1), counts[..., 2::3].sum(-1)
    total = 2 * tp + fp + fn
    return np.divide(2 * tp, total, out=np.zeros(np.shape(total)), where=total > 0)


def _invalid_counts(reference: Any, prediction: Any, task: "Task") -> list[float]:
    return [float(prediction is None), 1.0]


_JSON, _LABEL, _SET, _TEXT = (frozenset({a}) for a in ("json", "label", "label_set", "text"))
_ANY = _JSON | _LABEL | _SET | _TEXT

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("intent_accuracy", intent_counts, _ratio, _JSON),
        Metric("entity_f1", entity_counts, _f1, _JSON),
        Metric("slu_f1", slu_counts, _f1, _JSON),
        Metric("slu_f1_strict", slu_strict_counts, _f1, _JSON),
        Metric("exact_match", exact_match_counts, _ratio, _ANY),
        Metric("accuracy", accuracy_counts, _ratio, _LABEL),
        Metric("macro_f1", label_counts, macro_f1, _LABEL | _SET),
        Metric("micro_f1", label_counts, micro_f1, _LABEL | _SET),
        Metric("wer", wer_counts, _error_rate, _TEXT, higher_is_better=False, upper=None),
        Metric("cer", cer_counts, _error_rate, _TEXT, higher_is_better=False, upper=None),
        Metric("wer_utterance_mean", wer_utterance_counts, _ratio, _TEXT, higher_is_better=False, upper=None),
        Metric("invalid_rate", _invalid_counts, _ratio, _ANY, higher_is_better=False),
    )
}


def named(name: str) -> Metric:
    """The metric called `name`; ValueError with the known names when there is none."""
    if name not in METRICS:
        raise ValueError(f"metric '{name}' is unknown; known: {', '.join(METRICS)}")
    return METRICS[name]


def default_metrics(task: "Task") -> list[str]:
    """The metrics a task is scored by when it names none.

    A json task without slots leaves out what would only say 0; macro and micro F1 need a label list.
    """
    if task.answer == "json":
        slots = ["slu_f1", "slu_f1_strict", "entity_f1"] if task.slots else []
        return [*slots, "intent_accuracy", "exact_match", "invalid_rate"]
    if task.answer == "label":
        return ["accuracy", *(["macro_f1"] if task.labels else []), "invalid_rate"]
    if task.answer == "label_set":
        return [*(["macro_f1", "micro_f1"] if task.labels else []), "exact_match", "invalid_rate"]
    return ["wer", "cer"]


def count(reference: Any, prediction: Any, task: "Task") -> dict[str, list[float]]:
    """The `counts` field of a prediction row: contributions to each of the task's metrics (or its defaults).

    ValueError when a metric named by the task is unknown or not defined for its answer form.
    """
    counts = {}
    for name in task.metrics or default_metrics(task):
        metric = named(name)
        if task.answer not in metric.answers:
            raise ValueError(
                f"task '{task.name}': metric '{name}' is not defined for answer '{task.answer}'; "
                f"those that are: {', '.join(m.name for m in METRICS.values() if task.answer in m.answers)}"
            )
        counts[name] = metric.counts(reference, prediction, task)
    return counts


def score(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The value of every metric counted in all `rows` (prediction rows of one task).

    A metric for which nothing was counted (intent accuracy of references without intent) is left out.
    """
    summed: dict[str, np.ndarray] = {}
    for n, row in enumerate(rows):
        counts = {name: np.asarray(given, dtype=float) for name, given in row["counts"].items()}
        if n == 0:
            summed = counts
        else:
            summed = {name: summed[name] + given for name, given in counts.items() if name in summed}
    values = {name: named(name).value(given) for name, given in summed.items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}
