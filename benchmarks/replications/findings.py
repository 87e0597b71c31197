"""A published finding as data, and what our rows say to it: reproduced, not reproduced, or not testable here.

A finding of `suites/replications/PAPER.findings.yaml` has checks, fixed before the study ran; it is reproduced if all
of them hold. A check names rows as the study's report does (`curriculum speech_fraction=5%`; `… on TASK` for a
further test set):

    better: [a, b]               b is better than a: the interval of b - a lies on the better side of 0
    no_better: [a, b]            b is not better than a by `margin` or more: the interval lies below it
    close: [a, b]                b - a lies within ± `margin`, with its whole interval
    lower: [a, b], of: FIELD     the last value of FIELD in b's runs is lower than in a's
    falls: a, of: FIELD          from the first measurement to the last, in a's runs; `rises` likewise
    small: a, of: FIELD          the last value lies below `margin`, with its whole interval
    …, take: spread              the standard deviation of FIELD over the steps instead of its last value (`lower`)
    opposed: [a, …], of: FIELD   over the runs of these rows FIELD and the main metric correlate negatively;
                                 `modality: text` takes the metric of their text twins

Rows are compared by `trainer.compare` (speakers or utterances as blocks, seeds as independent draws), fields of the log
by t intervals over runs (Welch's where two rows differ), correlations by Fisher's z; all 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from trainer.compare import Rows, compare
from trainer.metrics import Metric, named
from trainer.report import ReportRow
from trainer.report_text import number

Verdict = Literal["reproduced", "not reproduced", "not testable here", "not run yet"]
Curves = Mapping[str, Sequence[tuple[int, float]]]
"""(step, value) by field of the log."""
KINDS = ("better", "no_better", "close", "lower", "falls", "rises", "small", "opposed")


@dataclass(frozen=True)
class Evidence:
    """What a study left behind."""

    metric: str
    rows: Mapping[str, ReportRow]
    curves: Mapping[str, Mapping[Any, Curves]] = field(default_factory=dict)
    """By row and seed."""


class Checked(NamedTuple):
    """A check and its answer."""

    says: str
    value: float | None
    """Difference, change, value or correlation; None: its rows are not there."""
    low: float | None
    high: float | None
    holds: bool | None


def judge(finding: Mapping[str, Any], evidence: Evidence) -> tuple[Verdict, list[Checked]]:
    """The verdict on a finding and the checks behind it. KeyError for a check of no known kind."""
    if "untestable" in finding:
        return "not testable here", []
    checks = [check(said, evidence) for said in finding["checks"]]
    if any(c.holds is None for c in checks):
        return "not run yet", checks
    return ("reproduced" if all(c.holds for c in checks) else "not reproduced"), checks


def check(said: Mapping[str, Any], evidence: Evidence) -> Checked:
    """Whether one check holds."""
    kind = next(k for k in said if k in KINDS)
    names = said[kind] if isinstance(said[kind], list) else [said[kind]]
    words = _words(kind, said, names)
    by_field = "of" in said
    there = evidence.curves if by_field else evidence.rows
    if any(name not in there or len(evidence.rows[name].runs) < least(name, evidence) for name in names):
        return Checked(words, None, None, None, None)
    margin = float(said.get("margin", 0.0))
    if not by_field:
        a, b = (evidence.rows[name] for name in names)
        found = compare(a.cell(), b.cell(), said.get("metric", evidence.metric), subsets=(a.drawn(), b.drawn()))
        effect, low, high = found.effect, found.ci_low, found.ci_high
        if not named(said.get("metric", evidence.metric)).higher_is_better:
            effect, low, high = -effect, -high, -low
    else:
        effect, low, high = _of_field(kind, said, names, evidence)
    holds = {
        "better": low > 0,
        "no_better": high < margin,
        "close": -margin < low and high < margin,
        "lower": high < 0,
        "falls": high < 0,
        "rises": low > 0,
        "small": high < margin,
        "opposed": high < 0,
    }[kind]
    return Checked(words, effect, low, high, bool(holds))


def least(name: str, evidence: Evidence) -> int:
    """Runs that a row needs before it says anything: two, but for baselines, which have no seed."""
    return 1 if evidence.rows[name].kind == "control" else 2


def _of_field(
    kind: str, said: Mapping[str, Any], names: Sequence[str], evidence: Evidence
) -> tuple[float, float, float]:
    runs = [[curves[said["of"]] for curves in evidence.curves[name].values()] for name in names]
    last = [np.array([_taken(curve, said) for curve in row]) for row in runs]
    if kind == "opposed":
        twin = ", text twin" if said.get("modality") == "text" else ""
        y = [_scores(evidence, name, f"{name}{twin}") for name in names]
        return _correlation(np.concatenate(last), np.concatenate(y))
    if kind == "lower":
        a, b = last
        found = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
        return float(b.mean() - a.mean()), float(found.low), float(found.high)
    first = np.array([curve[0][1] for curve in runs[0]])
    return _mean(last[0] if kind == "small" else last[0] - first)


def _taken(curve: Sequence[tuple[int, float]], said: Mapping[str, Any]) -> float:
    values = [value for _, value in curve]
    return float(np.std(values)) if said.get("take") == "spread" else values[-1]


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(stats.sem(values))
    return float(values.mean()), float(values.mean()) - half, float(values.mean()) + half


def _scores(evidence: Evidence, name: str, scored: str) -> np.ndarray:
    """The main metric in the row `scored` of each run of `name`."""
    meter, row = named(evidence.metric), evidence.rows[scored]
    return np.array([value(row.runs[seed], meter) for seed in evidence.curves[name]])


def value(run: Rows, meter: Metric) -> float:
    """A metric of one run."""
    return float(meter.values(np.array([row["counts"][meter.name] for row in run], dtype=float).sum(0)))


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Pearson's r with Fisher's interval; without spread or with fewer than four runs nothing is known."""
    if len(x) < 4 or not x.std() or not y.std():
        return 0.0, -1.0, 1.0
    r = float(np.corrcoef(x, y)[0, 1])
    half = 1.959964 / math.sqrt(len(x) - 3)
    z = math.atanh(max(-0.999999, min(0.999999, r)))
    return r, math.tanh(z - half), math.tanh(z + half)


def _words(kind: str, said: Mapping[str, Any], names: Sequence[str]) -> str:
    of = f"spread of {said['of']}" if said.get("take") == "spread" else f"{said.get('of', '')} at the end"
    margin = number(float(said.get("margin", 0)))
    rows = [f"*{name}*" for name in names]
    return {
        "better": lambda: f"{rows[1]} better than {rows[0]}",
        "no_better": lambda: f"{rows[1]} better than {rows[0]} by less than {margin}",
        "close": lambda: f"{rows[1]} and {rows[0]} within {margin} of each other",
        "lower": lambda: f"{of} lower in {rows[1]} than in {rows[0]}",
        "falls": lambda: f"{said['of']} falls in {rows[0]}",
        "rises": lambda: f"{said['of']} rises in {rows[0]}",
        "small": lambda: f"{of} below {margin} in {rows[0]}",
        "opposed": lambda: f"{said['of']} against the metric over the runs of {', '.join(rows)}: correlation below 0",
    }[kind]()
