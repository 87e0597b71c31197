"""The table of a study from stored predictions: the trainer's own report, with rows for what is not finished yet."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from api.bodies import finite
from api.deps import Context
from api.routes.predictions import scored
from db import datasets
from db.models import Job, Study
from trainer.corpus import read_corpus
from trainer.fields import SpecError, problem
from trainer.majority import majority
from trainer.metrics import score
from trainer.predictions import limited, read_lines, to_lines
from trainer.report import ReportRow, Scored, score_rows
from trainer.report_rows import Run, ScoredCell, control_row, report_rows
from trainer.report_text import findings, methods, questions_note
from trainer.resolve import Resolved
from trainer.spec import Task
from trainer.study import Control

Table = dict[str, Any]

NEED_A_MODEL: tuple[Control, ...] = ("untuned", "linear_probe")
"""Controls that answer by a model, which only the trainer has: `python -m trainer` offers them."""
CONFIDENCE = 0.95
_DESCRIBED = ("name", "scheme", "settings", "recordings", "speech_fraction", "speech_presentations")

_answered: OrderedDict[tuple, Table] = OrderedDict()
_KEPT = 64
"""Tables kept: predictions never change, so what they say together does not either."""


def study_table(study: Study, jobs: Sequence[Job], app: Context) -> Table:
    """Rows and comparisons of a study as far as its jobs have succeeded."""
    by_id = {job.id: job for job in jobs}
    metric = jobs[0].resolved["spec"]["evaluate"]["metric"]  # type: ignore[index]  # a study's jobs are resolved
    done = frozenset(job.id for job in jobs if job.status == "succeeded")
    key = (app.store.uri, study.id, done)
    if key not in _answered:
        _answered[key] = _answer(study, by_id, metric, app)
        while len(_answered) > _KEPT:
            _answered.popitem(last=False)
    answered = _answered[key]
    rows = []
    for cell in study.cells:
        known = {k: cell[k] for k in _DESCRIBED} | {"kind": "cell", "metric": metric}
        values = answered["values"].get(cell["name"], dict.fromkeys(("value", "ci_low", "ci_high", "n", "metrics")))
        runs_done = sum(job_id in done for job_id in cell["jobs"])
        rows.append({**known, **values, "runs_done": runs_done, "runs": len(cell["jobs"])})
    failed = [
        {"row": cell["name"], "seed": seed, "job_id": job_id, "status": by_id[job_id].status,
         "reason": by_id[job_id].reason, "message": by_id[job_id].message}
        for cell in study.cells
        for job_id, (seed, _) in zip(cell["jobs"], cell["seeds"], strict=True)
        if by_id[job_id].status in ("failed", "cancelled")
    ]  # fmt: skip
    said = {key: answered[key] for key in ("reference", "comparisons", "findings", "notes", "unavailable")}
    return {
        "object": "study_table", "study_id": study.id, "name": study.name, "metric": metric, "confidence": CONFIDENCE,
        "rows": [*rows, *answered["controls"]], "failed": failed, **said,
    }  # fmt: skip


def _answer(study: Study, jobs: dict[str, Job], metric: str, app: Context) -> Table:
    cells = []
    for cell in study.cells:
        runs = [
            Run(seed, subset, scored(app.store, jobs[job_id]))
            for job_id, (seed, subset) in zip(cell["jobs"], cell["seeds"], strict=True)
            if jobs[job_id].status == "succeeded"
        ]
        if runs:
            cells.append(ScoredCell(**{key: cell[key] for key in _DESCRIBED}, runs=runs))
    rows = report_rows(cells)
    missing = dict.fromkeys(NEED_A_MODEL, "needs a model; the service does not offer it yet")
    unavailable = [{"control": name, "why": missing[name]} for name in study.controls if name in missing]
    if "majority" in study.controls:
        try:
            rows.append(control_row("majority", _majority(study, jobs, app)))
        except (SpecError, OSError) as error:
            unavailable.append({"control": "majority", "why": str(error)})
    values, controls, said = {}, [], {"reference": None, "comparisons": [], "findings": [], "notes": study.notes}
    if rows:
        answered = score_rows(rows, metric, confidence=CONFIDENCE)
        values = {row.name: _values(row, answered) for row in rows}
        controls = [_control(row, values, metric) for row in rows if row.kind == "control"]
        intervals = [f"Intervals: {how}." for how in methods(answered)]
        said = {
            "reference": answered.reference.name,
            "comparisons": [_comparison(q) for q in answered.questions],
            "findings": findings(answered),
            "notes": [*study.notes, *intervals, *questions_note(answered)],
        }
    return finite({"values": values, "controls": controls, "unavailable": unavailable, **said})


def _values(row: ReportRow, answered: Scored) -> Table:
    at = answered.pooled[row.name]
    every = score(r for run in row.cell() for r in run)
    return {
        "value": at.value, "ci_low": at.ci_low, "ci_high": at.ci_high, "n": at.n, "method": at.method,
        "metrics": every,
    }  # fmt: skip


def _control(row: ReportRow, values: dict[str, Table], metric: str) -> Table:
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


def _majority(study: Study, jobs: dict[str, Job], app: Context) -> list[dict[str, Any]]:
    """The majority's answers, made once from the data of the cell that has the most of them. SpecError where the data
    are no longer those of the study."""
    key = f"projects/{study.project_id}/studies/{study.id}/controls/majority.jsonl"
    if not app.store.exists(key):
        firsts = [Resolved.model_validate(jobs[cell["jobs"][0]].resolved) for cell in study.cells]
        widest = max(firsts, key=lambda run: sum(pin.rows for pin in run.sources.values()))
        datasets.bring(app.database, app.store, app.settings, study.project_id, widest.spec.model_dump(mode="json"))
        corpus = read_corpus(widest.spec, app.settings.roots)
        assert corpus.test is not None
        pins = [(corpus.sources[name], pin) for name, pin in widest.sources.items()] + [(corpus.test, widest.test)]
        for source, pin in pins:
            if source.sha256 != pin.sha256:
                raise problem("data", f"{pin.ref} has changed since the study was submitted")
        train = [u for name in widest.sources for u in corpus.sources[name].rows]
        test = limited(corpus.test.rows, widest.spec.evaluate.limit)
        task = next(t for t in widest.spec.tasks or [] if isinstance(t, Task) and t.name == test[0].task)
        app.store.put(key, to_lines(majority(train, test, task)))
    return read_lines(app.store.get(key))
