"""What a study's rows say: values, questions, answers (light).

Everything is computed from prediction rows. A control (majority, untuned, linear probe, ...) is a row like any
other, and a sentence says so where a control is better than what was tuned. Values and questions are here,
their words in `report_text`, the chart in `learning_curve`, the files in `write_report`.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from trainer.compare import Cell, Comparison, Interval, Rows, Subsets, compare, holm, interval
from trainer.metrics import Metric, named, score
from trainer.metrics.tables import tables
from trainer.report_text import findings, methods, questions_note

Seed = int | str | None
SHOTS = "shots"
"""The setting that says how many demonstrations stood before each query."""


@dataclass(frozen=True)
class ReportRow:
    """One way of answering the test set."""

    name: str
    """Unique in the report."""
    scheme: str
    """What it is: `direct_mix`, `curriculum`, `linear_probe`, ..."""
    recordings: int
    """Distinct recordings of real speech it was trained on, in the target language."""
    speech_fraction: float | None
    """The share of all recordings that these are; None where that says nothing."""
    speech_presentations: float
    """How often each of them was to be shown, on average (requested)."""
    runs: Mapping[Seed, Rows]
    """Prediction rows by training seed; None for what has no seed. One task and one modality."""
    kind: Literal["cell", "control"] = "cell"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else tells cells apart, by field; scheme and share of the recordings may be among it."""
    subsets: Mapping[Seed, int] = field(default_factory=dict)
    """By training seed, which subset of the recordings the run was trained on; empty: the same in all runs."""
    source_recordings: int = 0
    """Those in the languages that lend theirs."""
    languages: tuple[str, ...] = ()
    """Languages that it was trained on; empty: none, or not known."""
    apart: str = ""
    """What tells a further condition of the test from the main one (`3-shot`); '' of the main one."""
    of: str = ""
    """The name of the row under the main condition."""

    @property
    def shots(self) -> int | None:
        """Demonstrations before every query, where the job shows any."""
        return next((r.get("shots") for run in self.runs.values() for r in run), None)

    def others(self) -> frozenset[tuple[str, str]]:
        """Settings besides scheme and recordings."""
        told = ("scheme", "speech_fraction", "speech_per_label", "speech_rows")
        tails = {k: k if k.startswith("source.") else k.split(".")[-1] for k in self.settings}
        return frozenset((k, repr(v)) for k, v in self.settings.items() if tails[k] not in told)

    def seeds(self) -> list[Seed]:
        """Seeds in a fixed order."""
        return sorted(self.runs, key=lambda seed: (str(type(seed)), seed))

    @property
    def modality(self) -> str:
        """`speech`, `text` or `cascade`."""
        return next((r.get("modality", "speech") for run in self.runs.values() for r in run), "speech")

    def cell(self) -> Cell:
        """The runs in the order of `seeds`."""
        return [self.runs[seed] for seed in self.seeds()]

    def drawn(self) -> Subsets:
        """The subset of each run, in the order of `seeds`."""
        return [self.subsets[seed] for seed in self.seeds()] if self.subsets else None


@dataclass(frozen=True)
class Question:
    """Does b do better than a?"""

    a: ReportRow
    b: ReportRow
    answer: Comparison
    p_holm: float = math.nan
    """p adjusted for all that is asked of the study; nan for what only fills the table's difference column."""

    @property
    def asked(self) -> bool:
        """Whether it is one of the study's questions."""
        return not math.isnan(self.p_holm)


@dataclass(frozen=True)
class Scored:
    """The rows with what they reach."""

    metric: Metric
    rows: Sequence[ReportRow]
    pooled: Mapping[str, Interval]
    """By row name, seeds pooled."""
    reference: ReportRow
    """Row that the difference column is against."""
    questions: Sequence[Question]
    confidence: float

    def baselines(self) -> list[ReportRow]:
        """Controls that answer what the cells answer: not the text twins of a speech test."""
        asked = {row.modality for row in self.rows if row.kind == "cell"}
        rows = (row for row in self.rows if row.kind == "control" and not row.apart)
        return [row for row in rows if row.modality != "text" or "text" in asked]


def score_rows(
    rows: Sequence[ReportRow],
    metric: str,
    *,
    reference: str | None = None,
    confidence: float = 0.95,
    paired_seeds: bool = False,
) -> Scored:
    """Intervals of all rows and answers to all questions.

    rows: cells in the order of the study, controls anywhere. reference: name of the row that the difference
    column is against; default: the linear probe, else the first cell. paired_seeds: as of `compare`, used where two
    rows have the same three or more seeds.

    Asked of every study: each scheme with more recordings against itself with fewer; schemes against each other on
    the same recordings, the curriculum also against direct mixing with its exposure; the next value of any other
    setting, every other one where values are names, the ends of a curve over demonstrations; each cell against the
    linear probe on as many recordings. Rows that answer alike are not asked about. The p values are also given after
    Holm's adjustment, `p_holm`. Raises ValueError for repeated names, an unknown reference or metric, a row that mixes
    tasks or modalities, and rows over different utterances.
    """
    if not rows:
        raise ValueError("a report needs at least one row")
    by_name = {row.name: row for row in rows}
    if len(by_name) < len(rows):
        names = [row.name for row in rows]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"row name {repeated!r} appears twice; names must be unique")
    for row in rows:
        kinds = {(r["task"], r.get("modality", "speech")) for run in row.runs.values() for r in run}
        if len(kinds) > 1:
            raise ValueError(f"row {row.name!r} mixes {sorted(kinds)}; give one task and modality per row")
    if reference is not None and reference not in by_name:
        raise ValueError(f"reference {reference!r} is not a row; rows: {', '.join(by_name)}")
    first = next((row for row in rows if row.kind == "cell"), rows[0])
    against = by_name[reference] if reference else probe_for(first, rows) or first
    meter = named(metric)
    pooled = {row.name: interval(row.cell(), meter, confidence=confidence, subsets=row.drawn()) for row in rows}

    def asked(a: ReportRow, b: ReportRow) -> Question:
        paired = paired_seeds and a.seeds() == b.seeds() and len(a.runs) > 2
        subsets = (a.drawn(), b.drawn())
        answer = compare(
            a.cell(), b.cell(), meter, confidence=confidence, paired_seeds=paired, subsets=subsets
        )  # fmt: skip
        return Question(a, b, answer)

    found = [asked(a, b) for a, b in _pairs(rows)]
    adjusted = holm([q.answer.p for q in found])
    found = [replace(q, p_holm=p) for q, p in zip(found, adjusted, strict=True)]
    have = {frozenset((q.a.name, q.b.name)) for q in found}
    found += [
        asked(against, row)
        for row in rows
        if row is not against and frozenset((against.name, row.name)) not in have
    ]
    return Scored(meter, rows, pooled, against, found, confidence)


def probe_for(cell: ReportRow, rows: Sequence[ReportRow]) -> ReportRow | None:
    """The linear probe on as many recordings as `cell`, else the one on fewest."""
    probes = sorted((r for r in rows if r.scheme == "linear_probe"), key=lambda r: r.recordings)
    return next((p for p in probes if p.recordings == cell.recordings), probes[0] if probes else None)


def _pairs(rows: Sequence[ReportRow]) -> list[tuple[ReportRow, ReportRow]]:
    """What is asked of a study, each pair once: rows that differ in one thing, and in what they answer."""
    cells = [row for row in rows if row.kind == "cell"]
    alike: dict[tuple, list[ReportRow]] = {}
    for row in cells:
        alike.setdefault((row.scheme, row.recordings, row.others()), []).append(row)
    firsts = [members[0] for members in alike.values()]
    wanted = [(members[0], b) for members in alike.values() for b in members[1:]]
    # The same with more recordings, and with the next value of one other setting.
    steps: dict[tuple, list[ReportRow]] = {}
    for row in sorted(firsts, key=lambda row: row.recordings):
        steps.setdefault((row.scheme, row.others()), []).append(row)
    for row in sorted(firsts, key=lambda row: row.shots or 0):
        for setting in row.others():
            steps.setdefault((row.scheme, row.recordings, setting[0], row.others() - {setting}), []).append(row)
    for key, members in steps.items():
        wanted += _neighbours(members, key[2] if len(key) > 2 else "")
    # Schemes on the same recordings; one without any against the fewest that another has.
    fewest = {key: min(m.recordings for m in members) for key, members in steps.items()}
    for a, b in itertools.combinations(firsts, 2):
        if a.scheme != b.scheme and a.others() == b.others():
            few = max(fewest[a.scheme, a.others()], fewest[b.scheme, b.others()])
            apart = {a.recordings, b.recordings}
            wanted += [(a, b)] if len(apart) == 1 or apart == {0, few} else []
    # Every direct mixing (one may be the control with the curriculum's exposure) against the curriculum.
    for (scheme, *rest), members in alike.items():
        rivals = alike.get(("direct_mix", *rest), []) if scheme == "curriculum" else []
        wanted += [(a, members[0]) for a in rivals if a is rivals[0] or not _same(a, rivals[0])]
    probes = {row.recordings: row for row in rows if row.scheme == "linear_probe"}
    tuned = [b for b in cells if b.scheme != "linear_probe" and not b.apart]
    wanted += [(probes[b.recordings], b) for b in tuned if b.recordings in probes]
    once: dict[frozenset[str], tuple[ReportRow, ReportRow]] = {}
    for a, b in wanted:
        if not _same(a, b):
            once.setdefault(frozenset((a.name, b.name)), (a, b))
    return list(once.values())


def _neighbours(members: list[ReportRow], setting: str) -> Iterable[tuple[ReportRow, ReportRow]]:
    """What is asked of rows that differ in one setting ('': in their recordings): each value and the next; of names,
    which have no order, each and every other; of a curve over demonstrations its ends, or its questions were most."""
    values = [dict(row.others()).get(setting, "") for row in members]
    if setting == SHOTS:
        return [(members[0], members[-1])]
    return itertools.combinations(members, 2) if values[0].startswith("'") else itertools.pairwise(members)


def _same(a: ReportRow, b: ReportRow) -> bool:
    """Whether two rows answer alike run by run, as where a study shows one job in two places."""
    return a.seeds() == b.seeds() and a.cell() == b.cell()


# -------------------------------------------------------------------------------------------- by language


def transfer(scored: Scored) -> dict[str, Any] | None:
    """Every row on every language of the test, where there are several: value and interval, and whether the row was
    trained on the language. `mean`: over all languages, each weighing the same; `unseen`: over those that the row was
    not trained on (None where that is not known, or there is none)."""
    tested = sorted({r["language"] for row in scored.rows for run in row.cell() for r in run if "language" in r})
    if len(tested) < 2:
        return None
    rows = []
    for row in scored.rows:
        known = {tag.split("-")[0] for tag in row.languages}
        cells = [_in_language(row, tag, scored) | {"seen": tag.split("-")[0] in known} for tag in tested]
        values = [cell["value"] for cell in cells]
        unseen = [cell["value"] for cell in cells if known and not cell["seen"]]
        means = {"mean": fmean(values), "unseen": fmean(unseen) if unseen else None}
        rows.append({"row": row.name, "trained_on": list(row.languages), "languages": cells, **means})
    return {"languages": tested, "rows": rows}


def _in_language(row: ReportRow, tag: str, scored: Scored) -> dict[str, Any]:
    cell = [[r for r in run if r["language"] == tag] for run in row.cell()]
    if len(cell[0]) > 1:
        found = interval(cell, scored.metric, confidence=scored.confidence, subsets=row.drawn())
        return {"language": tag, **_values(found)}
    value = score(r for run in cell for r in run).get(scored.metric.name, math.nan)  # one utterance has no interval
    return {"language": tag, "value": value, "ci_low": math.nan, "ci_high": math.nan, "n": len(cell[0])}


# ---------------------------------------------------------------------------------------------- report.json


def document(scored: Scored, study: str, base: str, notes: Sequence[str]) -> dict[str, Any]:
    """The content of `report.json`."""
    metric, confidence = scored.metric, scored.confidence
    speakers = {r.get("speaker") for row in scored.rows for run in row.cell() for r in run}
    rows, pooled = [], []
    for row in scored.rows:
        at, answers = scored.pooled[row.name], [r for run in row.cell() for r in run]
        pooled.append({
            **_settings(row), "seeds": row.seeds(), "metric": metric.name, **_values(at),
            "method": at.method, "metrics": score(answers), "tables": tables(answers),
        })  # fmt: skip
        for seed in row.seeds():
            alone = interval([row.runs[seed]], metric, confidence=confidence)
            rows.append({**_settings(row), "seed": seed, "metric": metric.name, **_values(alone)})
    whole = {
        "study": study,
        "base": base,
        "metric": metric.name,
        "unit": metric.unit,
        "normaliser": metric.normalised(scored.rows[0].cell()[0][0]),
        "higher_is_better": metric.higher_is_better,
        "confidence": confidence,
        "n": scored.pooled[scored.rows[0].name].n,
        "speakers": None if None in speakers else len(speakers),
        "reference": scored.reference.name,
        "method": methods(scored),
        "rows": rows,
        "pooled": pooled,
        "comparisons": [_comparison(q) for q in scored.questions],
        "transfer": transfer(scored),
        "findings": findings(scored),
        "notes": [*notes, *(f"Intervals: {how}." for how in methods(scored)), *questions_note(scored)],
    }
    return _finite(whole)


def _settings(row: ReportRow) -> dict[str, Any]:
    return {
        "row": row.name,
        "kind": row.kind,
        "modality": row.modality,
        "scheme": row.scheme,
        "recordings": row.recordings,
        "source_recordings": row.source_recordings,
        "speech_fraction": row.speech_fraction,
        "speech_presentations": row.speech_presentations,
        "shots": row.shots,
        "condition": row.apart,
        "of": row.of or row.name,
    }


def _values(at: Interval) -> dict[str, Any]:
    return {"value": at.value, "ci_low": at.ci_low, "ci_high": at.ci_high, "n": at.n}


def _comparison(q: Question) -> dict[str, Any]:
    c = q.answer
    return {
        "a": q.a.name,
        "b": q.b.name,
        "effect": c.effect,
        "ci": [c.ci_low, c.ci_high],
        "p": c.p,
        "p_holm": q.p_holm if q.asked else None,
        "verdict": c.verdict,
        "method": c.method,
    }


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
