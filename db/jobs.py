"""Jobs: submitted, resolved, moved from status to status. `move` is the only writer of `job.status`."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Select, Text, cast, exists, func, literal, select, update
from sqlalchemy.orm import Session, defer

from db import datasets, events, metrics, outbox, records
from db.events import New
from db.ids import new_id
from db.models import Attempt, Dataset, Event, Job, Lease
from db.session import now
from db.status import HELD, JOB, TERMINAL, Command, IllegalCommand, JobStatus, command, ending
from trainer.fields import problem
from trainer.result import Result
from trainer.start import job_named
from trainer.store import Store


def create(
    session: Session,
    project_id: str,
    spec: Mapping[str, Any],
    *,
    name: str,
    priority: int,
    retries: int,
    actor: str,
    study_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    wake: bool = True,
) -> Job:
    """A new job in `validating`, its first event and the wake-up of its validation, all or nothing. `wake`: not
    where the caller validates it in the same transaction."""
    job = Job(
        id=new_id("ftjob-"), project_id=project_id, study_id=study_id, name=name, spec=dict(spec), status="validating",
        message="", wanted="run", priority=priority, retries=retries, faults=0, attempts=0, last_seq=0,
        summary={"tags": dict(tags or {})}, created_at=now(session),
    )  # fmt: skip
    session.add(job)
    session.flush()
    events.append(session, job.id, [New("job.created", {"name": name})], actor=actor)
    records.due(session, job.id)
    if wake:
        outbox.wake(session, "validate", job.id)
    return job


def find(session: Session, job_id: str, project_id: str | None = None) -> Job | None:
    """The job; None where there is none, or it is another project's."""
    job = session.get(Job, job_id, populate_existing=True)
    return job if job is not None and project_id in (None, job.project_id) else None


def home(store: Store, project_id: str) -> str:
    """Where the project's jobs lie by id, as `trainer.store.open_store` reads it."""
    return f"{store.uri.rstrip('/')}/projects/{project_id}/jobs"


def refuse_start(session: Session, project_id: str, ref: str | None) -> None:
    """SpecError where `init_from` names a job that the project does not have, or that has left no weights."""
    if (job_id := job_named(ref or "")) is None:
        return
    job = find(session, job_id, project_id)
    if job is None:
        raise problem("init_from", "no such job; `GET /v1/jobs` lists those of the project", ref)
    if job.status != "succeeded":
        raise problem("init_from", f"the job is {job.status}; a job starts from one that has succeeded", ref)


SORTS = {"created_at": Job.id, "priority": Job.priority, "name": Job.name}
"""Ids sort by time of creation."""


def page(
    session: Session,
    project_id: str,
    *,
    status: Iterable[str] = (),
    study_id: str | None = None,
    spec_hash: str | None = None,
    name: str | None = None,
    sort: str = "created_at",
    ascending: bool = False,
    after: str | None = None,
    limit: int = 20,
) -> tuple[list[Job], bool]:
    """Jobs of a project without their specs, newest first unless said otherwise, and whether there are more behind
    `after`'s page."""
    chosen: Select = select(Job).options(defer(Job.spec), defer(Job.resolved)).where(Job.project_id == project_id)
    if wanted := list(status):
        chosen = chosen.where(Job.status.in_(wanted))
    for column, value in ((Job.study_id, study_id), (Job.spec_hash, spec_hash)):
        if value is not None:
            chosen = chosen.where(column == value)
    if name:
        chosen = chosen.where(Job.name.icontains(name, autoescape=True))
    key = SORTS[sort]
    if after is not None:
        at = session.execute(select(key, Job.id).where(Job.id == after)).one_or_none()
        if at is not None:
            beyond = (key > at[0], key < at[0])[not ascending]
            same = (Job.id > at[1], Job.id < at[1])[not ascending]
            chosen = chosen.where(beyond | ((key == at[0]) & same))
    order = (key.asc(), Job.id.asc()) if ascending else (key.desc(), Job.id.desc())
    found = list(session.scalars(chosen.order_by(*order).limit(limit + 1)))
    return found[:limit], len(found) > limit


def move(
    session: Session,
    job_id: str,
    to: JobStatus,
    *,
    actor: str,
    only_from: Iterable[JobStatus] | None = None,
    reason: str | None = None,
    message: str = "",
    attempt_no: int | None = None,
    columns: Mapping[str, Any] | None = None,
) -> bool:
    """Change the status where the table of `status.JOB` allows it; False, and nothing done, where the job is
    elsewhere by now. The event goes with it; `columns` are set in the same breath."""
    sources = [s for s, targets in JOB.items() if to in targets and (only_from is None or s in only_from)]
    stamps: dict[str, Any] = {}
    if to == "queued":
        stamps["queued_at"] = now(session)
    if to == "running":
        stamps["started_at"] = func.coalesce(Job.started_at, now(session))
    if to in TERMINAL:
        stamps["finished_at"] = now(session)
    changed = (
        update(Job)
        .where(Job.id == job_id, Job.status.in_(sources))
        .values(status=to, reason=reason, message=message, **stamps, **(columns or {}))
    )
    if session.execute(changed).rowcount != 1:  # type: ignore[attr-defined]
        return False
    data = {"status": to, **({"reason": reason} if reason else {}), **({"message": message} if message else {})}
    events.append(session, job_id, [New("job.status", data)], actor=actor, attempt_no=attempt_no)
    if to in TERMINAL:
        records.due(session, job_id)
    return True


VALIDATION_RETRY_S = 30.0
"""Wait after a validation that failed for no fault of the job; as much again after every further one."""


def validating(session: Session, job_id: str) -> int | None:
    """Note that a validation begins; how many there have been, with this one. None where the job is past that."""
    if session.scalar(select(Job.status).where(Job.id == job_id).with_for_update()) != "validating":
        return None
    begun = select(func.count()).where(Event.job_id == job_id, Event.type == "validation.started")
    tries = session.execute(begun).scalar_one() + 1
    events.append(session, job_id, [New("validation.started", {"try": tries})], actor="service")
    return tries


def unvalidated(session: Session, limit: int = 10) -> list[str]:
    """Jobs to validate now, oldest first: nobody is at it (holds `validate:<job id>`), after a failure its wait is
    over, and its data sets have come to an end (submitted with one that is ready, a job may find it waiting once the
    database has been made anew)."""
    failed = Event.job_id == Job.id, Event.type == "validation.failed"
    failures = select(func.count()).where(*failed).scalar_subquery()
    last = select(func.max(Event.at)).where(*failed).scalar_subquery()
    at_it = exists().where(Lease.name == literal("validate:") + Job.id, Lease.expires_at >= now(session))
    named = Dataset.project_id == Job.project_id, cast(Job.spec, Text).contains(Dataset.id)
    early = exists().where(*named, Dataset.status.in_(datasets.UNSETTLED))
    chosen = select(Job.id).where(Job.status == "validating", ~at_it, ~early)
    chosen = chosen.where(func.coalesce(last, 0.0) + failures * VALIDATION_RETRY_S < now(session))
    return list(session.scalars(chosen.order_by(Job.id).limit(limit)))


def validated(session: Session, job_id: str, resolved: Mapping[str, Any], spec_hash: str, pool: str) -> bool:
    """The job is ready: queued, or paused where its user asked for that meanwhile."""
    pinned = {"resolved": dict(resolved), "spec_hash": spec_hash, "pool": pool}
    queued = move(session, job_id, "queued", actor="service", only_from=["validating"], columns=pinned)
    if not queued:
        return False
    if session.scalar(select(Job.wanted).where(Job.id == job_id)) == "pause":
        move(session, job_id, "paused", actor="service")
    else:
        outbox.wake(session, "scale", pool)
    return True


def refuse(session: Session, job_id: str, reason: str, message: str) -> bool:
    """The job cannot run as it was sent."""
    return move(session, job_id, "failed", actor="service", only_from=["validating"], reason=reason, message=message)


def finish(session: Session, job_id: str, scores: Mapping[str, Any] | None = None) -> bool:
    """The end of a finalizing job: its metrics folded, its status what its last attempt and its user make it.
    `scores`: what lists show of its result."""
    job = find(session, job_id)
    if job is None or job.status != "finalizing":
        return False
    last = session.get_one(Attempt, (job_id, job.attempts))
    metrics.compact(session, job_id)
    columns = {"summary": {**job.summary, "state": None, **(scores or {})}}
    to = ending(last.status, job.wanted)  # type: ignore[arg-type]
    reason, message = (None, "") if to == "succeeded" else (last.reason, last.message)
    if to == "cancelled":
        reason = "user"
    return move(session, job_id, to, actor="service", reason=reason, message=message, columns=columns)


def shown(result: Result) -> dict[str, Any]:
    """What lists show of a result."""
    scores = [score.model_dump(exclude={"method"}, exclude_none=True) for score in result.scores]
    return {"metric": result.metric, "scores": scores, "step": result.steps, "steps": result.planned_steps}


def order(session: Session, job: Job, asked: Command, actor: str) -> Job:
    """Carry out a user's command; IllegalCommand where it makes no sense now. Waits for nobody: where an attempt
    runs it is told with its next heartbeat."""
    # Lock the row first (Postgres; SQLite has the whole database), so that the status read is the one changed.
    session.execute(select(Job.id).where(Job.id == job.id).with_for_update())
    session.refresh(job)
    wanted, status = command(asked, job.status)  # type: ignore[arg-type]
    if job.wanted == wanted and job.status == status:
        return job
    if job.wanted != wanted:
        at = now(session) if wanted != "run" and job.status in HELD else None
        session.execute(update(Job).where(Job.id == job.id).values(wanted=wanted, wanted_at=at))
        events.append(session, job.id, [New(f"job.{asked}", {})], actor=actor)
    if status != job.status and not move(session, job.id, status, actor=actor,
                                         reason="user" if status in ("cancelled", "paused") else None):  # fmt: skip
        raise IllegalCommand(f"the job is {job.status}; it cannot become {status}")
    if status == "queued":
        outbox.wake(session, "scale", job.pool or "")
    if status == "cancelled":
        metrics.compact(session, job.id)
    session.refresh(job)
    return job


def attempts(session: Session, job_id: str) -> list[Attempt]:
    """All attempts of a job, oldest first."""
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.no)))


def waiting(session: Session) -> dict[str, int]:
    """Queued jobs per pool."""
    counted = select(Job.pool, func.count()).where(Job.status == "queued").group_by(Job.pool)
    return {pool: count for pool, count in session.execute(counted) if pool is not None}


class Waiting(NamedTuple):
    """The queued jobs of a pool."""

    pool: str
    jobs: int
    priority: int
    """Of the most urgent."""
    queued_at: float
    """Of the one that has waited longest among these."""
    gpus: int
    """That each of them wants."""


def queue(session: Session) -> list[Waiting]:
    """Queued jobs by pool."""
    gpus = Job.resolved[("spec", "resources", "gpus")].as_integer()
    wanted = func.coalesce(func.max(gpus), 0)
    summed = select(Job.pool, func.count(), Job.priority, func.min(Job.queued_at), wanted)
    summed = summed.where(Job.status == "queued", Job.pool.is_not(None))
    found: dict[str, Waiting] = {}
    for row in session.execute(summed.group_by(Job.pool, Job.priority).order_by(Job.priority.desc())):
        less = Waiting(*row)
        most = found.setdefault(less.pool, less)
        if most is not less:
            found[less.pool] = most._replace(jobs=most.jobs + less.jobs, gpus=max(most.gpus, less.gpus))
    return list(found.values())


def tell_queued(session: Session, pool: str, new: New, since: float, limit: int = 200) -> int:
    """Append the event to the queued jobs of a pool that have had none of its type since then; how many."""
    told = exists().where(Event.job_id == Job.id, Event.type == new.type, Event.at >= since)
    chosen = select(Job.id).where(Job.status == "queued", Job.pool == pool, ~told).order_by(Job.id).limit(limit)
    waiting = list(session.scalars(chosen))
    for job_id in waiting:
        events.append(session, job_id, [new], actor="service")
    return len(waiting)


def finalizing(session: Session) -> list[str]:
    """Jobs whose last attempt has ended and whose result is to be taken in."""
    return list(session.scalars(select(Job.id).where(Job.status == "finalizing").order_by(Job.id)))


def counts(session: Session, project_id: str | None = None) -> dict[str, int]:
    """Jobs per status."""
    counted = select(Job.status, func.count()).group_by(Job.status)
    if project_id is not None:
        counted = counted.where(Job.project_id == project_id)
    return dict(session.execute(counted).all())
