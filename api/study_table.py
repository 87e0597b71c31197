"""The table and the report of a study from stored predictions: the trainer's own, with rows for what is not finished
yet."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from api.bodies import finite
from api.deps import Context
from api.routes.predictions import scored
from db import studies
from db.models import Job, Study
from trainer.metrics import score
from trainer.report import ReportRow, Scored, document, score_rows
from trainer.report_rows import Run, ScoredCell, report_rows
from trainer.report_text import findings, methods, questions_note, whole

Table = dict[str, Any]

CONFIDENCE = 0.95
_DESCRIBED = ("name", "scheme", "settings", "recordings", "speech_fraction", "speech_presentations", "kind")
_LATER = ("source_recordings", "languages")
"""What cells that were stored by earlier versions are without."""

_answered: OrderedDict[tuple, Table] = OrderedDict()
_KEPT = 64
"""Tables kept: predictions never change, so what they say together does not either."""


def study_table(study: Study, jobs: Sequence[Job], app: Context) -> Table:
    """Rows and comparisons of a study as far as its jobs have succeeded."""
    by_id = {job.id: job for job in jobs}
    spec = _spec(jobs)
    metric = None if spec is None else spec["evaluate"]["metric"]
    done = frozenset(job.id for job in jobs if job.status == "succeeded")
    key = (app.store.uri, study.id, done)
    if key not in _answered:
        _answered[key] = _answer(study, by_id, metric, app)
        while len(_answered) > _KEPT:
            _answered.popitem(last=False)
    answered = _answered[key]
    rows = []
    for cell in study.cells:
        known = {k: cell[k] for k in _DESCRIBED} | {"metric": metric}
        values = answered["values"].get(cell["name"], dict.fromkeys(("value", "ci_low", "ci_high", "n", "metrics")))
        runs_done = sum(job_id in done for job_id in cell["jobs"])
        rows.append({**known, **values, "runs_done": runs_done, "runs": len(cell["jobs"])})
    said = {key: answered[key] for key in ("reference", "comparisons", "findings")}
    return {
        "object": "study_table", "study_id": study.id, "name": study.name, "metric": metric, "confidence": CONFIDENCE,
        "rows": [*(r for r in rows if r["kind"] == "cell"), *answered["beside"],
                 *(r for r in rows if r["kind"] == "control")],
        "failed": _failed(study, by_id), **said, "notes": [*studies.notes(study, jobs), *answered["notes"]],
    }  # fmt: skip


def study_report(study: Study, jobs: Sequence[Job], app: Context) -> Table | None:
    """`report.json` and `report.txt` as `python -m trainer` writes them, of what has succeeded; None where nothing has.
    A study's jobs share base, task and metric."""
    by_id = {job.id: job for job in jobs}
    rows, spec = _rows(study, by_id, app), _spec(jobs)
    if not rows or spec is None:
        return None
    metric, task = spec["evaluate"]["metric"], spec["tasks"][0]
    answered = score_rows(rows, metric, confidence=CONFIDENCE)
    notes = studies.notes(study, jobs)
    said = {**document(answered, study.name, spec["base"], notes), "failed": _failed(study, by_id), "dev": {}}
    beside = [m for m in task["metrics"] if m not in (metric, "invalid_rate")][:3]
    return {
        "object": "study_report", "study_id": study.id, "report": finite(said), "text": whole(answered, said, beside)
    }  # fmt: skip


def _spec(jobs: Sequence[Job]) -> Table | None:
    """As resolved, of one of the jobs: after a reingest some wait for that again, or are missing."""
    return next((job.resolved["spec"] for job in jobs if job.resolved is not None), None)


def _failed(study: Study, jobs: dict[str, Job]) -> list[Table]:
    return [
        {"row": cell["name"], "seed": seed, "job_id": job.id, "status": job.status, "reason": job.reason,
         "message": job.message}
        for cell in study.cells
        for job, seed, _ in studies.runs(cell, jobs)
        if job.status in ("failed", "cancelled")
    ]  # fmt: skip


def _rows(study: Study, jobs: dict[str, Job], app: Context) -> list[ReportRow]:
    """Of what has succeeded."""
    cells = []
    for cell in study.cells:
        runs = [
            Run(seed, subset, scored(app.store, job))
            for job, seed, subset in studies.runs(cell, jobs)
            if job.status == "succeeded"
        ]
        if runs:
            cells.append(ScoredCell(**{key: cell[key] for key in (*_DESCRIBED, *_LATER) if key in cell}, runs=runs))
    return report_rows(cells)


def _answer(study: Study, jobs: dict[str, Job], metric: str | None, app: Context) -> Table:
    rows = _rows(study, jobs, app)
    values, beside, said = {}, [], {"reference": None, "comparisons": [], "findings": [], "notes": []}
    if rows and metric is not None:
        answered = score_rows(rows, metric, confidence=CONFIDENCE)
        values = {row.name: _values(row, answered) for row in rows}
        own = {cell["name"] for cell in study.cells}
        beside = [_beside(row, values, metric) for row in rows if row.name not in own]
        intervals = [f"Intervals: {how}." for how in methods(answered)]
        said = {
            "reference": answered.reference.name,
            "comparisons": [_comparison(q) for q in answered.questions],
            "findings": findings(answered),
            "notes": [*intervals, *questions_note(answered)],
        }
    return finite({"values": values, "beside": beside, **said})


def _values(row: ReportRow, answered: Scored) -> Table:
    at = answered.pooled[row.name]
    every = score(r for run in row.cell() for r in run)
    return {
        "value": at.value, "ci_low": at.ci_low, "ci_high": at.ci_high, "n": at.n, "method": at.method,
        "metrics": every,
    }  # fmt: skip


def _beside(row: ReportRow, values: dict[str, Table], metric: str) -> Table:
    """A text twin or a cascade: what the jobs of a cell answered in another way."""
    return {
        "name": row.name, "scheme": row.scheme, "settings": dict(row.settings), "recordings": row.recordings,
        "speech_fraction": row.speech_fraction, "speech_presentations": row.speech_presentations, "kind": row.kind,
        "metric": metric, **values[row.name], "runs_done": len(row.runs), "runs": len(row.runs),
    }  # fmt: skip


def _comparison(question) -> Table:
    c = question.answer
    return {
        "a": question.a.name, "b": question.b.name, "effect": c.effect, "ci_low": c.ci_low, "ci_high": c.ci_high,
        "p": c.p, "p_holm": question.p_holm if question.asked else None, "verdict": c.verdict, "method": c.method,
    }  # fmt: skip
