"""Jobs: submit, look, command."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query
from fastapi.responses import JSONResponse
from pydantic import AfterValidator

from api import schema, shapes
from api.bodies import plain
from api.deps import App, Context, Reader, Writer
from api.errors import ApiError, not_found
from api.local_paths import confined
from db import datasets, events, idempotency, jobs, metrics
from db.keys import Holder
from db.models import Job
from db.status import JOB, Command
from trainer.estimate import estimate
from trainer.refusals import refuse_unbuilt
from trainer.resolve import read_and_resolve
from trainer.spec import JobSpec, parse_job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Spec = Annotated[dict[str, Any], AfterValidator(plain), Body(description="A job spec; see docs/spec.md")]
Limit = Annotated[int, Query(ge=1, le=100)]


def checked(spec: dict[str, Any], app: Context) -> JobSpec:
    """The spec, refused where it cannot run whatever its data are."""
    job = parse_job(spec)
    refuse_unbuilt(job)
    confined(job, app.settings)
    return job


@router.post("", responses={200: {"model": schema.Job | dict[str, Any]}})
def submit(
    spec: Spec,
    app: App,
    who: Writer,
    dry_run: bool = False,
    key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)] = None,
) -> Any:
    """A new job, or what it would do (`dry_run`). With an Idempotency-Key the same submission twice is one job."""
    job = checked(spec, app)
    with app.database.read() as session:
        datasets.pins(session, who.project_id, spec)
        jobs.refuse_start(session, who.project_id, job.init_from)
    if dry_run:
        datasets.bring(app.database, app.store, app.settings, who.project_id, spec)
        resolved, corpus = read_and_resolve(job, app.settings.roots, jobs.home(app.store, who.project_id))
        return {"spec_hash": resolved.hash, **estimate(resolved, corpus).to_json()}

    with app.database.write() as session:

        def make() -> dict[str, Any]:
            made = jobs.create(
                session, who.project_id, spec, name=job.name, priority=job.resources.priority,
                retries=job.resources.retries, actor=who.actor, tags=job.tags,
            )  # fmt: skip
            session.refresh(made)
            return shapes.job(made)

        body, repeated = idempotency.once(session, who.project_id, "POST /v1/jobs", key, spec, make)
    app.nudge()
    return JSONResponse(body, headers={"Idempotent-Replayed": "true"} if repeated else {})


@router.get("", response_model=schema.Page[schema.Job])
def listed(
    app: App,
    who: Reader,
    status: Annotated[list[str] | None, Query()] = None,
    study: str | None = None,
    spec_hash: str | None = None,
    name: str | None = None,
    sort: Literal["created_at", "priority", "name"] = "created_at",
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Jobs of the project; filters add up. `name`: part of it, case ignored."""
    if unknown := set(status or ()) - set(JOB):
        message = f"no such status: {', '.join(sorted(unknown))}; known: {', '.join(JOB)}"
        raise ApiError(400, message, code="invalid_request", param="status")
    with app.database.read() as session:
        if after is not None and jobs.find(session, after, who.project_id) is None:
            raise ApiError(400, f"after: no job {after!r}; give the last_id of a page", code="invalid_request",
                           param="after")  # fmt: skip
        rows, more = jobs.page(
            session, who.project_id, status=status or (), study_id=study, spec_hash=spec_hash, name=name, sort=sort,
            ascending=order == "asc", after=after, limit=limit,
        )  # fmt: skip
        return shapes.page([shapes.job(row) for row in rows], more)


def found(session, job_id: str, who: Holder) -> Job:
    """The job, or 404."""
    job = jobs.find(session, job_id, who.project_id)
    if job is None:
        raise not_found("job", job_id)
    return job


@router.get("/{job_id}", response_model=schema.JobInFull)
def one(job_id: str, app: App, who: Reader) -> dict[str, Any]:
    """A job with its spec, attempts and checkpoints."""
    with app.database.read() as session:
        job = found(session, job_id, who)
        return shapes.job_in_full(job, jobs.attempts(session, job_id), metrics.checkpoints(session, job_id))


@router.get("/{job_id}/events", response_model=schema.Page[schema.Event])
def history(
    job_id: str, app: App, who: Reader, after: str | None = None, limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:  # fmt: skip
    """The job's history, newest first; `after`: the id of an event."""
    seq = None
    if after is not None:
        if not after.rpartition("-")[2].isdecimal():
            raise ApiError(400, f"after: {after!r} is no event id", code="invalid_request", param="after")
        seq = int(after.rpartition("-")[2])
    with app.database.read() as session:
        found(session, job_id, who)
        if order == "desc":
            rows = events.newest(session, job_id, seq, limit + 1)
        else:
            rows = events.after(session, job_id, seq or 0, limit + 1)
        return shapes.page([shapes.event(row) for row in rows[:limit]], len(rows) > limit)


@router.get("/{job_id}/metrics", response_model=schema.Metrics)
def curves(
    job_id: str,
    app: App,
    who: Reader,
    name: Annotated[list[str] | None, Query()] = None,
    after_step: Annotated[int, Query(ge=0)] = 0,
    points: Annotated[int, Query(ge=2, le=10_000)] = 1000,
) -> dict[str, Any]:
    """Series by name as [step, value] points, at most `points` each: the lowest and highest of every stretch."""
    with app.database.read() as session:
        found(session, job_id, who)
        read = metrics.series(session, job_id, name or (), after_step)
    return {
        "object": "metrics", "job_id": job_id,
        "series": {k: metrics.thinned(steps, values, points) for k, (steps, values) in sorted(read.items())},
        "total_steps": {k: len(steps) for k, (steps, _) in sorted(read.items())},
    }  # fmt: skip


def _command(asked: Command):
    def run(job_id: str, app: App, who: Writer) -> dict[str, Any]:
        with app.database.write() as session:
            job = jobs.order(session, found(session, job_id, who), asked, who.actor)
            body = shapes.job(job)
        app.nudge()
        return body

    run.__doc__ = f"{asked.capitalize()} the job. The same again is harmless; where it makes no sense, 409."
    run.__name__ = asked
    router.post(f"/{{job_id}}/{asked}", response_model=schema.Job)(run)


_command("cancel")
_command("pause")
_command("resume")
