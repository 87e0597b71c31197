"""Studies: a grid of jobs in one transaction, how far they are, and what they show."""

import math
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from api import schema, shapes
from api.deps import App, Context, Reader, Writer
from api.errors import ApiError, not_found
from api.local_paths import confined
from api.routes.jobs import Limit, Spec
from api.study_table import Table, study_report, study_table
from db import bases, datasets, idempotency, jobs, studies
from db.keys import Holder
from db.models import Job, Study
from db.pools import pool_of
from db.studies import NewJob
from trainer import corpus
from trainer.estimate import estimate
from trainer.fields import problem, readable
from trainer.report_rows import describe
from trainer.resolve import Resolved
from trainer.spec import JobSpec
from trainer.strategies import Baseline
from trainer.study import Expanded, Read, StudySpec, expand

router = APIRouter(prefix="/v1/studies", tags=["studies"])

MOST_RUNS = 1000
"""A study is written in one transaction, which nobody else may write beside on SQLite."""


@router.post("", responses={200: {"model": schema.StudyInFull | dict[str, Any]}})
def submit(
    spec: Spec,
    app: App,
    who: Writer,
    dry_run: bool = False,
    key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)] = None,
) -> Any:
    """A new study with all its jobs, or what each cell would do (`dry_run`). The body is a study spec; see
    docs/spec.md. With an Idempotency-Key the same submission twice is one study."""
    study = parse_study(spec)
    read = corpus.Reader(app.settings.roots, jobs.home(app.store, who.project_id))
    expanded = expand(study, _guarded(read, app, who.project_id))
    _refuse(expanded, app, who.project_id)
    cells = [*expanded.cells, *expanded.baselines]
    if dry_run:
        first = {cell.name: (cell.runs[0], len(cell.runs)) for cell in cells}
        return {
            name: {"runs": n, "spec_hash": run.hash, **estimate(run, read(run.spec)).to_json()}
            for name, (run, n) in first.items()
        }
    cell_of = {run.hash: cell.name for cell in reversed(cells) for run in cell.runs}  # the first that has it
    new = {
        run.hash: NewJob(run.model_dump(mode="json", by_alias=True), run.hash, pool_of(run, app.settings.code),
                         f"{study.study}/{cell_of[run.hash]}{_seeded(run)}", run.spec.resources.priority,
                         run.spec.resources.retries)
        for run in expanded.jobs().values()
    }  # fmt: skip
    described = [
        {**describe(cell), "jobs": [run.hash for run in cell.runs],
         "seeds": [[run.spec.seed, run.spec.data.subset_seed] for run in cell.runs]}
        for cell in cells
    ]  # fmt: skip

    with app.database.write() as session:

        def make() -> dict[str, Any]:
            made = studies.create(
                session, who.project_id, name=study.study, spec=spec, cells=described, new=new,
                controls=expanded.controls, notes=expanded.notes, actor=who.actor,
            )  # fmt: skip
            session.flush()
            session.refresh(made)
            return in_full(made, studies.members(session, made.id))

        body, repeated = idempotency.once(session, who.project_id, "POST /v1/studies", key, spec, make)
    app.nudge()
    return JSONResponse(body, headers={"Idempotent-Replayed": "true"} if repeated else {})


def _seeded(run: Resolved) -> str:
    return "" if isinstance(run.spec.recipe, Baseline) else f" seed {run.spec.seed}"


def parse_study(spec: dict[str, Any]) -> StudySpec:
    """The study of a request's body; SpecError where it is none, or too large."""
    try:
        study = StudySpec.model_validate(spec)
    except ValidationError as error:
        raise readable(error, spec) from None
    count = sum(
        math.prod(len(v) if isinstance(v, list) else 1 for v in table.values()) for table in [study.grid, *study.also]
    )
    if count > MOST_RUNS:
        raise problem("grid", f"has {count} runs; a study has {MOST_RUNS} at most, so make several of it")
    return study


def _guarded(reader: Read, app: Context, project_id: str) -> Read:
    """Reads the data of jobs as their user wrote them, after a look whether they may name them."""

    def read(job: JobSpec) -> corpus.Corpus:
        confined(job, app.settings)
        with app.database.read() as session:
            jobs.refuse_start(session, project_id, job.init_from)
        asked = job.model_dump(mode="json", by_alias=True)
        datasets.bring(app.database, app.store, app.settings, project_id, asked)
        return reader(job)

    return read


def _refuse(expanded: Expanded, app: Context, project_id: str) -> None:
    """SpecError for a study that could not be compared, or whose jobs could not run."""
    runs = [run for cell in expanded.cells for run in cell.runs]
    if any(run.spec.tuning.encoder == "auto" for run in runs):
        message = (
            "each job of a study would settle `auto` by itself, and cells with different encoders are not comparable; "
            "run `attune check` on the recordings and say what it says: frozen or lora"
        )
        raise problem("tuning.encoder", message, "auto")
    if len({run.test.sha256 for run in runs}) > 1:
        raise problem("evaluate.on", "the cells of a study share one test set; make it two studies")
    if len({run.spec.evaluate.metric for run in runs}) > 1:
        raise problem("evaluate.metric", "the cells of a study share one main metric; make it two studies")
    with app.database.read() as session:
        for base, revision in {(run.spec.base, run.base_revision) for run in runs}:
            if refusal := bases.refusal(session, project_id, base, revision):
                raise problem("base", refusal, base)


@router.get("", response_model=schema.Page[schema.Study])
def listed(app: App, who: Reader, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """Studies of the project, newest first."""
    with app.database.read() as session:
        if after is not None and studies.find(session, after, who.project_id) is None:
            raise ApiError(400, f"after: no study {after!r}; give the last_id of a page", code="invalid_request",
                           param="after")  # fmt: skip
        rows, more = studies.page(session, who.project_id, after, limit)
        counts = studies.counts(session, [row.id for row in rows])
        return shapes.page([{**shapes.study(row), "jobs": counts[row.id]} for row in rows], more)


def found(session, study_id: str, who: Holder) -> Study:
    """The study, or 404."""
    study = studies.find(session, study_id, who.project_id)
    if study is None:
        raise not_found("study", study_id)
    return study


def in_full(study: Study, jobs: list[Job]) -> dict[str, Any]:
    """A study with its cells, and of each cell the jobs with their seeds; a note says which are missing."""
    by_id = {job.id: job for job in jobs}
    shown = ("id", "name", "status", "wanted", "reason", "message", "attempts", "progress", "metric", "scores")
    cells = [
        {**cell, "jobs": [
            {"seed": seed, "subset_seed": subset, **{k: v for k, v in shapes.job(job).items() if k in shown}}
            for job, seed, subset in studies.runs(cell, by_id)
        ]}
        for cell in study.cells
    ]  # fmt: skip
    for cell in cells:
        del cell["seeds"]
    said = shapes.study(study, jobs) | {"notes": studies.notes(study, jobs)}
    return {**said, "spec": study.spec, "cells": cells}


@router.get("/{study_id}", response_model=schema.StudyInFull)
def one(study_id: str, app: App, who: Reader) -> dict[str, Any]:
    """A study with its cells and how far each job is."""
    with app.database.read() as session:
        study = found(session, study_id, who)
        return in_full(study, studies.members(session, study_id))


@router.get("/{study_id}/table")
def table(study_id: str, app: App, who: Reader, task: str | None = None) -> Table:
    """What the study shows so far: a row per cell and control with its interval, and every question that the trainer's
    own report asks, answered from the predictions that are there. Where the test has several tasks (`tasks`) the table
    is of one, and `ranks` says how the cells stand over all."""
    with app.database.read() as session:
        study = found(session, study_id, who)
        jobs = studies.members(session, study_id)
    return study_table(study, jobs, app, task)


@router.get("/{study_id}/report", response_model=schema.StudyReport)
def report(study_id: str, app: App, who: Reader) -> Table:
    """The report of what has succeeded so far, as `python -m trainer` writes it: `report` is its `report.json`, `text`
    its `report.txt`; where the test has several tasks, those of each are in `tasks`."""
    with app.database.read() as session:
        study = found(session, study_id, who)
        jobs = studies.members(session, study_id)
    made = study_report(study, jobs, app)
    if made is None:
        raise ApiError(409, f"study {study_id}: none of its jobs has succeeded yet, so there is nothing to report",
                       code="nothing_to_report")  # fmt: skip
    return made


@router.post("/{study_id}/cancel", response_model=schema.StudyInFull)
def cancel(study_id: str, app: App, who: Writer) -> dict[str, Any]:
    """Cancel every job that has not come to its end. The same again is harmless."""
    with app.database.write() as session:
        study = found(session, study_id, who)
        studies.cancel(session, study_id, who.actor)
        body = in_full(study, studies.members(session, study_id))
    app.nudge()
    return body
