"""The table and the report of a study from stored predictions: the trainer's own, with rows for what is not finished
yet."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from api.bodies import finite
from api.deps import Context
from api.errors import ApiError
from api.routes.predictions import final, scored
from db import studies
from db.models import Job, Study
from trainer.dev_curves import dev_report, sentences
from trainer.metrics import named, score
from trainer.report import ReportRow, Scored, document, score_rows
from trainer.report_rows import Run, ScoredCell, report_rows
from trainer.report_text import findings, methods, questions_note, whole
from trainer.result import DevScore
from trainer.spec import Task
from trainer.task_reports import Asked, asked, of_task, over_tasks

Table = dict[str, Any]

CONFIDENCE = 0.95
_DESCRIBED = ("name", "scheme", "settings", "recordings", "speech_fraction", "speech_presentations", "kind")
_LATER = ("source_recordings", "languages")
"""What cells that were stored by earlier versions are without."""

_answered: OrderedDict[tuple, Table] = OrderedDict()
_KEPT = 64
"""Studies kept: predictions never change, so what they say together does not either."""
_NOTHING = {"values": {}, "beside": [], "reference": None, "comparisons": [], "findings": [], "notes": []}


def study_table(study: Study, jobs: Sequence[Job], app: Context, task: str | None = None) -> Table:
    """Rows and comparisons of a study as far as its jobs have succeeded, for one task of its test (default: the first).
    With several, `ranks` says how the cells stand over all of them. ApiError 404 for a task that was not tested."""
    by_id = {job.id: job for job in jobs}
    spec = _spec(jobs)
    done = frozenset(job.id for job in jobs if job.status == "succeeded")
    key = (app.store.uri, study.id, done)
    if key not in _answered:
        _answered[key] = _answer(study, by_id, app)
        while len(_answered) > _KEPT:
            _answered.popitem(last=False)
    tasks = _answered[key]["tasks"]
    if task is not None and task not in tasks:
        there = f"there is {', '.join(tasks)}" if tasks else "none of its jobs has succeeded yet"
        raise ApiError(404, f"study {study.id} says nothing of a task {task!r}; {there}", code="task_not_found",
                       param="task")  # fmt: skip
    chosen = task or next(iter(tasks), None)
    answered = tasks[chosen] if chosen else {"metric": spec and spec["evaluate"]["metric"], **_NOTHING}
    metric, rows = answered["metric"], []
    for cell in study.cells:
        known = {k: cell[k] for k in _DESCRIBED} | {"metric": metric}
        values = answered["values"].get(cell["name"], dict.fromkeys(("value", "ci_low", "ci_high", "n", "metrics")))
        runs_done = sum(job_id in done for job_id in cell["jobs"])
        rows.append({**known, **values, "runs_done": runs_done, "runs": len(cell["jobs"])})
    said = {key: answered[key] for key in ("reference", "comparisons", "findings")}
    return {
        "object": "study_table", "study_id": study.id, "name": study.name, "task": chosen, "tasks": list(tasks),
        "metric": metric, "confidence": CONFIDENCE,
        "rows": [*(r for r in rows if r["kind"] == "cell"), *answered["beside"],
                 *(r for r in rows if r["kind"] == "control")],
        "ranks": _answered[key]["ranks"], "failed": _failed(study, by_id), **said,
        "notes": [*studies.notes(study, jobs), *_answered[key]["notes"], *answered["notes"]],
    }  # fmt: skip


def study_report(study: Study, jobs: Sequence[Job], app: Context) -> Table | None:
    """`report.json` and `report.txt` as `python -m trainer` writes them, of what has succeeded, and where the test has
    several tasks those of each in `tasks`; None where nothing has succeeded. A study's jobs share base, tasks, test."""
    by_id = {job.id: job for job in jobs}
    cells, spec = _cells(study, by_id, app), _spec(jobs)
    if not cells or spec is None:
        return None
    tasks, few = _asked(cells, spec)
    if not tasks:
        return None
    notes, failed, several = [*studies.notes(study, jobs), *few], _failed(study, by_id), len(tasks) > 1
    curves, made = _dev_curves(study, by_id, app), {}
    for task, (metric, beside) in tasks.items():
        dev = dev_report(curves, task if several else None, higher_is_better=named(metric).higher_is_better)
        answered = score_rows(report_rows(of_task(cells, task)), metric, confidence=CONFIDENCE)
        title = f"{study.name}, {task}" if several else study.name
        said = {**document(answered, title, spec["base"], [*notes, *sentences(dev)]), "failed": failed, "dev": dev}
        made[task] = {"report": finite(said), "text": whole(answered, said, beside)}
    about = {"object": "study_report", "study_id": study.id}
    if not several:
        return {**about, **made.popitem()[1], "tasks": {}}
    over, text = over_tasks({task: one["report"] for task, one in made.items()}, study.name, spec["base"], notes)
    return {**about, "report": over, "text": text, "tasks": made}


def _asked(cells: Sequence[ScoredCell], spec: Table) -> tuple[dict[str, Asked], list[str]]:
    return asked(cells, [Task.model_validate(task) for task in spec["tasks"]], spec["evaluate"]["metric"])


def _dev_curves(study: Study, jobs: dict[str, Job], app: Context) -> dict[str, dict[int | str, list[DevScore]]]:
    """What the runs of each cell scored on the dev set, by seed."""
    found: dict[str, dict[int | str, list[DevScore]]] = {}
    for cell in (c for c in study.cells if c["kind"] == "cell"):
        runs = list(studies.runs(cell, jobs))
        several = len({subset for _, _, subset in runs}) > 1
        found[cell["name"]] = {
            f"{subset}/{seed}" if several else seed: [DevScore(**at) for at in final(app.store, job).get("dev", [])]
            for job, seed, subset in runs
            if job.status == "succeeded"
        }
    return found


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


def _cells(study: Study, jobs: dict[str, Job], app: Context) -> list[ScoredCell]:
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
    return cells


def _answer(study: Study, jobs: dict[str, Job], app: Context) -> Table:
    """All that a table says of what has succeeded, by task, and the cells' ranks over several."""
    cells, spec = _cells(study, jobs, app), _spec(list(jobs.values()))
    if not cells or spec is None:
        return {"tasks": {}, "ranks": [], "notes": []}
    own = {cell["name"]: cell["kind"] for cell in study.cells}
    known, notes = _asked(cells, spec)
    tasks = {task: _one(report_rows(of_task(cells, task)), metric, own) for task, (metric, _) in known.items()}
    if len(tasks) < 2:
        return {"tasks": tasks, "ranks": [], "notes": notes}
    documents = {
        task: {"metric": said["metric"], "pooled": [
            {"row": name, "kind": own.get(name, "control"), "value": at["value"]} for name, at in said["values"].items()
        ]}
        for task, said in tasks.items()
    }  # fmt: skip
    return {"tasks": tasks, "ranks": over_tasks(documents, study.name, "", [])[0]["rows"], "notes": notes}


def _one(rows: list[ReportRow], metric: str, own: Mapping[str, str]) -> Table:
    answered = score_rows(rows, metric, confidence=CONFIDENCE)
    values = {row.name: _values(row, answered) for row in rows}
    intervals = [f"Intervals: {how}." for how in methods(answered)]
    return finite({
        "metric": metric, "values": values,
        "beside": [_beside(row, values, metric) for row in rows if row.name not in own],
        "reference": answered.reference.name,
        "comparisons": [_comparison(q) for q in answered.questions],
        "findings": findings(answered),
        "notes": [*intervals, *questions_note(answered)],
    })  # fmt: skip


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
