"""Metrics as counts: what one utterance contributes, and the value of the summed contributions.

Every corpus number is `value(sum of counts)`, so prediction rows are scored once and tables, bootstraps and
re-groupings only add. To add a metric: a count function (reference, prediction, task) -> list of numbers, a
value function over the last axis, a line in METRICS, and golden numbers of the scorer it claims to equal.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainer.metrics import failures, labels, named_entities, questions, slu, summaries, translation, words
from trainer.metrics.calibration import calibration_counts, expected_calibration_error
from trainer.metrics.normalise import NORMALISERS, normalise

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
    """One metric. Values are fractions (0.873, not 87.3), those of BLEU and chrF too."""

    name: str
    counts: Callable[..., list[float]]
    """(reference, prediction, task) -> contributions of one utterance; prediction None = invalid answer. With
    `of_confidence` the answer's probability is the fourth argument."""
    values: Callable[[np.ndarray], np.ndarray]
    """(..., k) summed counts -> (...) values."""
    answers: frozenset[str]
    """The answer forms it is defined for: json, label, label_set, choice, text."""
    unit: str
    """What a value of 1 is: a share of what, or how many of what per what."""
    higher_is_better: bool = True
    upper: float | None = 1.0
    """Largest possible value; None = unbounded (WER). The smallest is 0 for all."""
    beside: str | None = None
    """Another metric that is counted wherever this one is: neither number is to be read without the other."""
    normaliser: Literal["task", "raw"] | None = None
    """Of an error rate: counted after the task's normaliser, or on the text as written."""
    of_confidence: bool = False
    """Whether it asks for the probability that the model gave to its answer."""
    of_names: bool = False
    """Whether it asks for the names that labels were shown under, the fourth argument: counted by `trainer.predictions`
    where they were permuted."""

    def value(self, summed: Iterable[float]) -> float:
        """The metric of counts summed over utterances (and seeds); nan when nothing was counted."""
        return float(self.values(np.asarray(list(summed), dtype=float)))

    def normalised(self, row: Mapping[str, Any]) -> str | None:
        """The name of the normaliser that a prediction row was counted after; None where that says nothing."""
        return row.get("normaliser") if self.normaliser == "task" else self.normaliser


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


_JSON, _LABEL, _SET, _CHOICE, _TEXT = (frozenset({a}) for a in ("json", "label", "label_set", "choice", "text"))
_ANY = _JSON | _LABEL | _SET | _CHOICE | _TEXT
_SHARE, _F1, _MEAN_F1 = "share of utterances", "F1, 0 to 1", "mean F1 of utterances, 0 to 1"


def _error(name: str, counts: Callable[..., list[float]], of: str, beside: str | None = None) -> Metric:
    return Metric(
        name, counts, _error_rate, _TEXT, f"errors per reference {of}", higher_is_better=False, upper=None,
        beside=beside, normaliser="task" if beside else "raw",
    )  # fmt: skip


def _failure(name: str, counts: Callable[..., list[float]]) -> Metric:
    return Metric(name, counts, _ratio, _TEXT, _SHARE, higher_is_better=False)


def _both_ways(
    name: str, counts: Callable[..., list[float]], values: Callable[[np.ndarray], np.ndarray],
    answers: frozenset[str], unit: str,
) -> tuple[Metric, Metric]:  # fmt: skip
    """A metric to which an invalid answer is wrong, and beside it the same of the valid answers alone."""

    def answered(reference: Any, prediction: Any, task: "Task") -> list[float]:
        found = counts(reference, prediction, task)
        return [0.0] * len(found) if prediction is None else found

    alone = f"{name}_answered"
    strict = Metric(name, counts, values, answers, unit, beside=alone)
    return strict, Metric(alone, answered, values, answers, f"{unit}, of valid answers", beside=name)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("intent_accuracy", slu.intent_counts, _ratio, _JSON, _SHARE, beside="intent_accuracy_answered"),
        Metric(
            "intent_accuracy_answered", slu.intent_answered_counts, _ratio, _JSON, "share of valid answers",
            beside="intent_accuracy",
        ),
        Metric("entity_f1", slu.entity_counts, _f1, _JSON, _F1, beside="entity_f1_answered"),
        Metric("entity_f1_answered", slu.entity_answered_counts, _f1, _JSON, _F1, beside="entity_f1"),
        Metric("slu_f1", slu.slu_counts, _f1, _JSON, _F1, beside="slu_f1_strict"),
        Metric("slu_f1_strict", slu.slu_strict_counts, _f1, _JSON, _F1, beside="slu_f1"),
        Metric("slu_f1_word", slu.slu_word_counts, _f1, _JSON, _F1, beside="slu_f1_word_strict"),
        Metric("slu_f1_word_strict", slu.slu_word_strict_counts, _f1, _JSON, _F1, beside="slu_f1_word"),
        Metric("slu_f1_character", slu.slu_character_counts, _f1, _JSON, _F1, beside="slu_f1_character_strict"),
        Metric(
            "slu_f1_character_strict", slu.slu_character_strict_counts, _f1, _JSON, _F1, beside="slu_f1_character"
        ),
        Metric("slue_ner_f1", named_entities.ner_counts, _f1, _JSON, _F1, beside="slue_ner_label_f1"),
        Metric("slue_ner_label_f1", named_entities.ner_label_counts, _f1, _JSON, _F1, beside="slue_ner_f1"),
        Metric("exact_match", slu.exact_match_counts, _ratio, _ANY, _SHARE),
        *_both_ways("accuracy", labels.accuracy_counts, _ratio, _LABEL | _CHOICE, _SHARE),
        *_both_ways(
            "unweighted_accuracy", labels.label_counts, labels.unweighted_accuracy, _LABEL, "mean recall of labels"
        ),
        *_both_ways("macro_f1", labels.label_counts, labels.macro_f1, _LABEL | _SET, _F1),
        *_both_ways("macro_f1_all_labels", labels.label_counts, labels.macro_f1_all_labels, _LABEL | _SET, _F1),
        *_both_ways("micro_f1", labels.label_counts, labels.micro_f1, _LABEL | _SET, _F1),
        *_both_ways("weighted_f1", labels.label_counts, labels.weighted_f1, _LABEL | _SET, _F1),
        Metric(
            "definition_following", labels.following_counts, _ratio, _JSON | _LABEL | _SET,
            "share of labels that follow a definition or a name", of_names=True,
        ),
        Metric(
            "ece", calibration_counts, expected_calibration_error, _LABEL | _CHOICE, "distance of probabilities",
            higher_is_better=False, of_confidence=True,
        ),
        _error("wer", words.wer_counts, "word", beside="wer_raw"),
        _error("wer_raw", words.wer_raw_counts, "word"),
        _error("cer", words.cer_counts, "character", beside="cer_raw"),
        _error("cer_raw", words.cer_raw_counts, "character"),
        _error("mer", words.mer_counts, "word or character", beside="mer_raw"),
        _error("mer_raw", words.mer_raw_counts, "word or character"),
        Metric(
            "wer_utterance_mean", words.wer_utterance_counts, _ratio, _TEXT, "mean WER of utterances",
            higher_is_better=False, upper=None, normaliser="task",
        ),
        Metric("bleu", translation.bleu_counts, translation.bleu, _TEXT, "BLEU / 100"),
        Metric("bleu_zh", translation.bleu_zh_counts, translation.bleu, _TEXT, "BLEU / 100"),
        Metric("bleu_character", translation.bleu_character_counts, translation.bleu, _TEXT, "BLEU / 100"),
        Metric("chrf", translation.chrf_counts, translation.chrf, _TEXT, "chrF / 100"),
        Metric("rouge1", summaries.rouge1_counts, _ratio, _TEXT, _MEAN_F1),
        Metric("rouge2", summaries.rouge2_counts, _ratio, _TEXT, _MEAN_F1),
        Metric("rouge_l", summaries.rouge_l_counts, _ratio, _TEXT, _MEAN_F1),
        Metric("qa_exact_match", questions.qa_exact_counts, _ratio, _TEXT, _SHARE, beside="qa_f1"),
        Metric("qa_f1", questions.qa_f1_counts, _ratio, _TEXT, _MEAN_F1, beside="qa_exact_match"),
        _failure("decode_failure_rate", failures.failed_counts),
        _failure("empty_rate", failures.empty_counts),
        _failure("repetition_rate", failures.repeated_counts),
        _failure("overlong_rate", failures.overlong_counts),
        Metric("invalid_rate", _invalid_counts, _ratio, _ANY, _SHARE, higher_is_better=False),
    )
}  # fmt: skip


def named(name: str) -> Metric:
    """The metric called `name`; ValueError with the known names when there is none."""
    if name not in METRICS:
        raise ValueError(f"metric '{name}' is unknown; known: {', '.join(METRICS)}")
    return METRICS[name]


def default_metrics(task: "Task") -> list[str]:
    """The metrics a task is scored by when it names none.

    A json task without slots leaves out what would only say 0; macro and micro F1 need a label list, which choices of
    each row are none of.
    """
    if task.answer == "json":
        slots = ["slu_f1", "slu_f1_strict", "entity_f1"] if task.slots else []
        return [*slots, "intent_accuracy", "exact_match", "invalid_rate"]
    if task.answer == "label":
        return ["accuracy", *(["macro_f1"] if task.labels else []), "invalid_rate"]
    if task.answer == "choice":
        return ["accuracy", "invalid_rate"]
    if task.answer == "label_set":
        return [*(["macro_f1", "micro_f1"] if task.labels else []), "exact_match", "invalid_rate"]
    return ["wer", "cer"]


def count(reference: Any, prediction: Any, task: "Task", confidence: float | None = None) -> dict[str, list[float]]:
    """The `counts` field of a prediction row: contributions to each of the task's metrics (or its defaults), and to
    those that belong beside them. `confidence`: the probability of the answer, where answers are scored by likelihood.

    ValueError when a metric named by the task is unknown, not defined for its answer form or asks for a confidence that
    there is not.
    """
    counts: dict[str, list[float]] = {}
    wanted = [named(name) for name in task.metrics or default_metrics(task)]
    for metric in wanted + [named(m.beside) for m in wanted if m.beside]:
        if task.answer not in metric.answers:
            raise ValueError(
                f"task '{task.name}': metric '{metric.name}' is not defined for answer '{task.answer}'; "
                f"those that are: {', '.join(m.name for m in METRICS.values() if task.answer in m.answers)}"
            )
        if metric.name not in counts and not metric.of_names:
            given = (reference, prediction, task, *((confidence,) if metric.of_confidence else ()))
            counts[metric.name] = metric.counts(*given)
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
