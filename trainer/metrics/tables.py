"""Prediction rows by group: per language, per duration of the recording, per slot type.

Values without intervals: a group's `n` says how far they can be trusted, and groups are not compared here.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trainer.metrics import Metric, named, score
from trainer.metrics.slu import slots

Row = Mapping[str, Any]

SECONDS = (1, 2, 4, 8, 16, 30)
"""Where durations are cut; 30 s is what most audio encoders hear at once."""
OF_SLOTS = ("entity_f1", "slu_f1_strict")
"""What is told per slot type: both match slots within a type only, so the counts of all types add up to the whole."""
UNKNOWN = "unknown"


def tables(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """By what is grouped, the groups in order, each {"group", "n", "metrics"}; what has one group only is left out.

    rows: prediction rows of one task and modality, of any number of seeds. n: utterances of the group; of a slot type
    the slots in the references.
    """
    rows = list(rows)
    found = {
        "language": _grouped(rows, [row["language"] for row in rows]),
        "duration": _grouped(rows, [duration_group(row.get("duration_s")) for row in rows], _DURATIONS),
        "slot": _by_slot(rows),
    }
    return {name: groups for name, groups in found.items() if len(groups) > 1}


def duration_group(seconds: float | None) -> str:
    """'2–4 s' and the like, the lower end included; 'unknown' where the manifest does not say."""
    if seconds is None:
        return UNKNOWN
    return _DURATIONS[sum(seconds >= edge for edge in SECONDS)]


_DURATIONS = [
    f"under {SECONDS[0]} s",
    *(f"{low}–{high} s" for low, high in itertools.pairwise(SECONDS)),
    f"{SECONDS[-1]} s and more",
    UNKNOWN,
]


def _grouped(rows: Sequence[Row], keys: Sequence[str], order: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows by their key, in `order`, else by name."""
    groups: dict[str, list[Row]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(key, []).append(row)
    return [
        {"group": key, "n": len({row["utterance"] for row in groups[key]}), "metrics": score(groups[key])}
        for key in order or sorted(groups)
        if key in groups
    ]


def _by_slot(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Slot types of references and answers by name. An invalid answer misses all slots of its reference."""
    metrics = [named(name) for name in OF_SLOTS if rows and name in rows[0]["counts"]]
    # By type, how often which values were wanted and given: most repeat, over utterances and seeds, and count alike.
    cases: dict[str, Counter[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    asked: Counter[str] = Counter()
    seen: set[str] = set()
    for row in rows if metrics else ():
        wanted, given = _by_type(row["reference"]), _by_type(row["parsed"] if row["valid"] else None)
        for kind in wanted | given:
            cases.setdefault(kind, Counter())[tuple(wanted.get(kind, ())), tuple(given.get(kind, ()))] += 1
            asked[kind] += len(wanted.get(kind, ())) * (row["utterance"] not in seen)
        seen.add(row["utterance"])
    return [
        {
            "group": kind,
            "n": asked[kind],
            "metrics": {metric.name: metric.value(_summed(metric, cases[kind])) for metric in metrics},
        }
        for kind in sorted(cases)
    ]


def _by_type(label: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, value in slots(label):
        found.setdefault(kind, []).append(value)
    return found


def _summed(metric: Metric, cases: Counter[tuple[tuple[str, ...], tuple[str, ...]]]) -> np.ndarray:
    def one_type(values: tuple[str, ...]) -> dict[str, Any]:
        return {"slots": [{"type": "", "value": value} for value in values]}

    counted = ((metric.counts(one_type(a), one_type(b), None), times) for (a, b), times in cases.items())
    return np.sum([np.asarray(counts) * times for counts, times in counted], axis=0)
