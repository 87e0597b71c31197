"""Attempts: claimed under a lease, kept alive by heartbeats, ended once. Every write is guarded by the token."""

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, aliased

from db import datasets, events, jobs, metrics, outbox
from db.events import New
from db.models import Attempt, Job, Runner
from db.session import now
from db.status import ATTEMPT, ENDED, FAULTS, HELD, LIVE, Action, AttemptStatus, action, after_attempt
from trainer.fields import SpecError

LEASE_S = 60.0
GRACE_S = 60.0
"""Time to leave after being asked to, before the attempt is fenced."""
STALLED_S, STALLED_STEPS, LOADING_S = 600.0, 20, 1800.0
"""No step for max(600 s, 20 median steps) is a stall; loading and evaluating have their own deadline."""


class FencedError(Exception):
    """The attempt is not the caller's any more: stop, write nothing more."""


class GapError(Exception):
    """Events are missing before those sent; `acked` is the last number that is here."""

    def __init__(self, acked: int):
        super().__init__(f"events after {acked} are missing; send from {acked + 1}")
        self.acked = acked


class Claim(NamedTuple):
    """What a runner gets; the token is kept as a hash."""

    job: Job
    no: int
    token: str


def digest(secret: str) -> str:
    """What is stored of a token or key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def held(session: Session, runner: Runner, secret: str) -> Claim | None:
    """The live attempt that the runner has, told again under a new lease: the answer to its claim was lost. A runner
    has one at most, so a claim that arrives late or twice takes nothing that the runner would never hear of."""
    live = select(Attempt.job_id, Attempt.no).where(Attempt.runner_id == runner.id, Attempt.status.in_(LIVE))
    mine = session.execute(live).first()
    if mine is None:
        return None
    token = _token(secret, mine.job_id, mine.no)
    try:
        _held(session, mine.job_id, mine.no, token)
    except FencedError:  # it has ended just now
        return None
    return Claim(session.get_one(Job, mine.job_id, populate_existing=True), mine.no, token)


def _token(secret: str, job_id: str, no: int) -> str:
    """Made of the runner's own, so that it can be told again and is nowhere kept: asked twice, it is the same."""
    return hmac.new(secret.encode(), f"{job_id}/{no}".encode(), hashlib.sha256).hexdigest()


def claim(session: Session, runner: Runner, secret: str) -> Claim | None:
    """The next job of the runner's pool: highest priority, then the project with the fewest running, then age. What
    the runner has already comes first; one that is to leave gets nothing else. `secret`: the runner's token."""
    if (mine := held(session, runner, secret)) is not None or runner.status != "alive":
        return mine
    busy = aliased(Job)
    load = (
        select(func.count()).where(busy.project_id == Job.project_id, busy.status.in_(HELD)).correlate(Job)
    ).scalar_subquery()
    chosen = (
        select(Job)
        .where(Job.status == "queued", Job.pool == runner.pool)
        .order_by(Job.priority.desc(), load, Job.queued_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    job = session.scalars(chosen).first()
    while job is not None and _without_data(session, job):
        job = session.scalars(chosen).first()
    if job is None:
        return None
    no = job.attempts + 1
    token = _token(secret, job.id, no)
    who = f"runner:{runner.id}"
    if not jobs.move(session, job.id, "running", actor=who, attempt_no=no, columns={"attempts": no}):
        return None
    session.add(
        Attempt(job_id=job.id, no=no, status="claimed", message="", runner_id=runner.id,
                used_runner=runner.claims > 0, token_sha256=digest(token), lease_expires_at=now(session) + LEASE_S,
                progress_at=now(session), step=0, acked_seq=0, claimed_at=now(session))
    )  # fmt: skip
    session.execute(update(Runner).where(Runner.id == runner.id).values(claims=Runner.claims + 1))
    session.flush()
    session.refresh(job)
    return Claim(job, no, token)


def _without_data(session: Session, job: Job) -> bool:
    """Whether a data set that the job names is gone; then it fails here, for left queued it would stop its pool."""
    try:
        datasets.pins(session, job.project_id, (job.resolved or {}).get("spec", {}))
    except SpecError as error:
        jobs.move(session, job.id, "failed", actor="service", reason="invalid_data", message=str(error))
        metrics.compact(session, job.id)
        return True
    return False


def _held(session: Session, job_id: str, no: int, token: str) -> Attempt:
    """The live attempt, its lease renewed and its row locked; FencedError where the token is no longer (or never
    was) the one that may write. Locks go runner, attempt, job, here as in all that ends an attempt."""
    mine = (
        Attempt.job_id == job_id, Attempt.no == no, Attempt.token_sha256 == digest(token), Attempt.status.in_(LIVE),
    )  # fmt: skip
    whose = select(Attempt.runner_id).where(*mine).scalar_subquery()
    there = update(Runner).where(Runner.id == whose, Runner.status != "ended")
    session.execute(there.values(last_seen=now(session)))
    renewed = update(Attempt).where(*mine).values(lease_expires_at=now(session) + LEASE_S)
    if session.execute(renewed).rowcount != 1:  # type: ignore[attr-defined]
        raise FencedError(f"attempt {job_id}/{no} has ended or is not yours")
    return session.get_one(Attempt, (job_id, no), populate_existing=True)


def beat(
    session: Session, job_id: str, no: int, token: str, first_seq: int, sent: Sequence[dict[str, Any]]
) -> tuple[int, Action]:
    """A heartbeat: renews the lease, takes in the events that are new, and says what the attempt should do."""
    attempt = _held(session, job_id, no, token)
    _take_in(session, attempt, first_seq, sent)
    job = session.get_one(Job, job_id, populate_existing=True)
    runner = session.execute(select(Runner.status, Runner.asked_at).where(Runner.id == attempt.runner_id)).one()
    leaving = runner.status == "ended" or runner.asked_at is not None
    return attempt.acked_seq, action(job.wanted, leaving)  # type: ignore[arg-type]


def done(
    session: Session,
    job_id: str,
    no: int,
    token: str,
    first_seq: int,
    sent: Sequence[dict[str, Any]],
    outcome: AttemptStatus,
    reason: str | None,
    message: str = "",
    result_sha256: str | None = None,
) -> int:
    """The attempt has come to its end. The same call again changes nothing."""
    try:
        attempt = _held(session, job_id, no, token)
    except FencedError:
        ended = session.get(Attempt, (job_id, no), populate_existing=True)
        if ended is not None and ended.token_sha256 == digest(token) and ended.status == outcome:
            return ended.acked_seq
        raise
    _take_in(session, attempt, first_seq, sent)
    _end(session, attempt, outcome, reason, message, f"runner:{attempt.runner_id}", result_sha256)
    return attempt.acked_seq


def end(session: Session, job_id: str, no: int, to: AttemptStatus, reason: str, message: str) -> bool:
    """The service ends an attempt (`lost`, `fenced`): from now on its token is refused. False where it has ended. A
    caller that ends the runner too does that first."""
    attempt = session.get(Attempt, (job_id, no), populate_existing=True, with_for_update=True)
    if attempt is None or attempt.status not in LIVE:
        return False
    _end(session, attempt, to, reason, message, "service", None)
    return True


def _end(session, attempt: Attempt, to: AttemptStatus, reason: str | None, message: str, actor: str, result) -> None:
    if to not in ATTEMPT[attempt.status] & set(ENDED):  # type: ignore[index]
        raise ValueError(f"an attempt that is {attempt.status} cannot become {to}")
    message = plain(message)
    attempt.status, attempt.reason, attempt.message, attempt.result_sha256 = to, reason, message, result
    session.flush()
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == attempt.job_id, Attempt.no == attempt.no)
        .values(ended_at=now(session))
    )
    job = session.get_one(Job, attempt.job_id, populate_existing=True, with_for_update=True)
    past = select(Attempt.reason, Attempt.used_runner).where(Attempt.job_id == job.id)
    tried = session.execute(past).all()
    faults = sum(r.reason in FAULTS for r in tried)
    fresh = any(r.reason == "out_of_memory" and not r.used_runner for r in tried)
    again = attempt.used_runner and not fresh
    status = after_attempt(to, reason, job.wanted, faults, job.retries, again)  # type: ignore[arg-type]
    data = {"outcome": to, "reason": reason, "message": message, "step": attempt.step}
    events.append(session, job.id, [New("attempt.ended", data)], actor=actor, attempt_no=attempt.no)
    jobs.move(session, job.id, status, actor=actor, reason=reason, message=message, attempt_no=attempt.no,
              columns={"faults": faults, "wanted_at": None})  # fmt: skip
    if status == "finalizing":
        outbox.wake(session, "finalize", job.id)
    if status == "queued":
        outbox.wake(session, "scale", job.pool or "")


def _take_in(session: Session, attempt: Attempt, first_seq: int, sent: Sequence[dict[str, Any]]) -> None:
    """Events that are new, each to where it belongs: steps to the metrics, the rest to the history."""
    if first_seq > attempt.acked_seq + 1:
        raise GapError(attempt.acked_seq)
    new = [plain(event) for event in sent[attempt.acked_seq + 1 - first_seq :]]
    if not new:
        return
    actor, history, columns = f"runner:{attempt.runner_id}", [], {}
    steps, retold = ([e for e in new if e["kind"] == kind] for kind in ("step", "retold"))
    if retold:
        metrics.complete(session, attempt, retold)
    for event in new:
        match event["kind"]:
            case "step" | "retold":
                continue
            case "state":
                if event["state"] in ATTEMPT[attempt.status] & set(LIVE):  # type: ignore[index]  # `done` ends it
                    columns["status"] = attempt.status = event["state"]
                    columns["progress_at"] = now(session)
                if event["state"] == "training":
                    columns["start_step"] = columns["step"] = event["step"]
                history.append(New(f"attempt.{event['state']}", _rest(event)))
            case "progress":
                columns["progress_at"] = now(session)
            case "checkpoint":
                metrics.checkpoint(session, attempt, event["step"], event["prefix"])
                history.append(New("checkpoint", _rest(event)))
            case kind:
                history.append(New(kind, _rest(event)))
    if steps:
        metrics.record(session, attempt, steps)
        columns |= {"step": steps[-1]["step"], "progress_at": now(session),
                    "step_seconds": sorted(e["seconds"] for e in steps)[len(steps) // 2]}  # fmt: skip
    columns["acked_seq"] = first_seq + len(sent) - 1
    mine = update(Attempt).where(Attempt.job_id == attempt.job_id, Attempt.no == attempt.no)
    session.execute(mine.values(**columns))
    if history:
        events.append(session, attempt.job_id, history, actor=actor, attempt_no=attempt.no)
    _summarise(session, attempt, new, [*retold, *steps])
    session.refresh(attempt)


def plain(value: Any) -> Any:
    """What both databases can hold: messages are foreign text, and JSON has no nan."""
    match value:
        case dict():
            return {key: plain(v) for key, v in value.items()}
        case list():
            return [plain(v) for v in value]
        case str():
            return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        case float() if not math.isfinite(value):
            return None
    return value


def _rest(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("kind", "state")}


def _summarise(session: Session, attempt: Attempt, new: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    """What lists show of a running job."""
    said: dict[str, Any] = {}
    for event in new:
        if event["kind"] == "progress":
            said["progress"] = _rest(event)
        if event["kind"] == "state":
            said |= {"state": event["state"], **{k: event[k] for k in ("step", "steps") if k in event}}
    if steps:
        said |= {key: steps[-1][key] for key in ("step", "stage", "loss") if key in steps[-1]}
    if said:
        job = session.get_one(Job, attempt.job_id, populate_existing=True)
        if steps:
            said["curve"] = metrics.preview(job.summary.get("curve", []), steps)
        session.execute(update(Job).where(Job.id == job.id).values(summary={**job.summary, **said}))


class Overdue(NamedTuple):
    """A live attempt that must be ended by the service."""

    job_id: str
    no: int
    runner_id: str
    to: AttemptStatus
    reason: str
    message: str


def overdue(session: Session, runner_id: str | None = None) -> list[Overdue]:
    """Live attempts (of the runner) whose lease has run out, that were asked to stop and did not, or that no longer get
    on."""
    at: float = session.execute(select(now(session))).scalar_one()
    live = select(Attempt, Job.wanted, Job.wanted_at, Runner.asked_at).where(Attempt.status.in_(LIVE))
    live = live.join(Job, Job.id == Attempt.job_id).join(Runner, Runner.id == Attempt.runner_id)
    if runner_id is not None:
        live = live.where(Attempt.runner_id == runner_id)
    found = []
    for a, wanted, wanted_at, asked_at in session.execute(live):
        idle = at - a.progress_at
        patience = max(STALLED_S, STALLED_STEPS * (a.step_seconds or 0)) if a.status == "training" else LOADING_S
        if a.lease_expires_at < at:
            late = at - a.lease_expires_at + LEASE_S
            found.append((a, "lost", "lost_heartbeat", f"no heartbeat for {late:.0f} s"))
        elif wanted != "run" and wanted_at is not None and at > wanted_at + GRACE_S:
            found.append((a, "fenced", "user", f"asked to {wanted}, it did not stop within {GRACE_S:.0f} s"))
        elif asked_at is not None and at > asked_at + GRACE_S:
            found.append((a, "fenced", "yielded", f"asked to make room, it did not leave within {GRACE_S:.0f} s"))
        elif idle > patience:
            found.append((a, "fenced", "stalled", f"{a.status} without progress for {idle:.0f} s"))
    return [Overdue(a.job_id, a.no, a.runner_id, to, reason, message) for a, to, reason, message in found]
