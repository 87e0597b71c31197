"""Studies: a grid of jobs written in one transaction, and what became of them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import jobs, records
from db.ids import new_id
from db.models import Job, Study
from db.session import now
from db.status import IllegalCommand


class NewJob(NamedTuple):
    """A resolved job of a study."""

    resolved: Mapping[str, Any]
    spec_hash: str
    pool: str
    name: str
    priority: int
    retries: int


def create(
    session: Session,
    project_id: str,
    *,
    name: str,
    spec: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    new: Mapping[str, NewJob],
    controls: Sequence[str],
    notes: Sequence[str],
    actor: str,
) -> Study:
    """The study and all its jobs, queued. `cells` name their `jobs` by spec hash, as `new` does; a job that several
    cells share is one."""
    study = Study(
        id=new_id("study-"), project_id=project_id, name=name, spec=dict(spec), cells=[], controls=list(controls),
        notes=list(notes), created_at=now(session),
    )  # fmt: skip
    session.add(study)
    session.flush()
    ids = {}
    for key, job in new.items():
        made = jobs.create(
            session, project_id, job.resolved["spec"], name=job.name, priority=job.priority, retries=job.retries,
            actor=actor, study_id=study.id, tags=job.resolved["spec"].get("tags"), wake=False,
        )  # fmt: skip
        jobs.validated(session, made.id, job.resolved, job.spec_hash, job.pool)
        ids[key] = made.id
    study.cells = [{**cell, "jobs": [ids[key] for key in cell["jobs"]]} for cell in cells]
    records.due(session, study.id)
    return study


def find(session: Session, study_id: str, project_id: str | None = None) -> Study | None:
    """The study; None where there is none, or it is another project's."""
    study = session.get(Study, study_id)
    return study if study is not None and project_id in (None, study.project_id) else None


def members(session: Session, study_id: str) -> list[Job]:
    """Jobs of a study in order of creation."""
    return list(session.scalars(select(Job).where(Job.study_id == study_id).order_by(Job.id)))


def runs(cell: Mapping[str, Any], jobs: Mapping[str, Job]) -> list[tuple[Job, int, int]]:
    """Jobs of a cell that are there, each with its seed and subset seed. `jobs`: the study's by id."""
    seeded = zip(cell["jobs"], cell["seeds"], strict=True)
    return [(jobs[job_id], seed, subset) for job_id, (seed, subset) in seeded if job_id in jobs]


def notes(study: Study, jobs: Iterable[Job]) -> list[str]:
    """What is to be said of a study; also which jobs are missing, as after a reingest that could not take them in."""
    there = {job.id for job in jobs}
    missing = [
        f"{cell['name']} seed {seed}: its job {job_id} is missing since the database was made anew from the store"
        for cell in study.cells
        for job_id, (seed, _) in zip(cell["jobs"], cell["seeds"], strict=True)
        if job_id not in there
    ]
    return [*study.notes, *missing]


def page(session: Session, project_id: str, after: str | None = None, limit: int = 20) -> tuple[list[Study], bool]:
    """Studies of a project, newest first, and whether there are more."""
    chosen = select(Study).where(Study.project_id == project_id)
    if after is not None:
        chosen = chosen.where(Study.id < after)
    found = list(session.scalars(chosen.order_by(Study.id.desc()).limit(limit + 1)))
    return found[:limit], len(found) > limit


def counts(session: Session, study_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Jobs per status of each of these studies."""
    counted = (
        select(Job.study_id, Job.status, func.count())
        .where(Job.study_id.in_(study_ids))
        .group_by(Job.study_id, Job.status)
    )
    found: dict[str, dict[str, int]] = {study_id: {} for study_id in study_ids}
    for study_id, status, count in session.execute(counted):
        found[str(study_id)][status] = count
    return found


def cancel(session: Session, study_id: str, actor: str) -> None:
    """Cancel every job of the study that has not come to its end."""
    for job in members(session, study_id):
        with suppress(IllegalCommand):  # it has ended meanwhile
            jobs.order(session, job, "cancel", actor)
