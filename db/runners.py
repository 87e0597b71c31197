"""Runners: started for a pool, known by a token that a single-use code was exchanged for."""

import secrets
from collections.abc import Collection
from itertools import takewhile
from typing import NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.attempts import digest
from db.ids import new_id
from db.models import Attempt, Job, Runner
from db.session import now
from db.status import LIVE

RUNNING = ("starting", "alive", "draining")
LEFT = "left"
"""Reason of a runner that ended of its own accord."""
NEVER_SENT = "Ray does not have it"
"""Reason of a runner whose submission came to nothing."""


class Started(NamedTuple):
    """A new runner; the bootstrap code goes into the Ray job's environment, which every user of the cluster sees."""

    id: str
    bootstrap: str


def start(session: Session, pool: str, code: str, world_size: int, gpus: int) -> Started:
    """A row for a runner that is about to be submitted to Ray."""
    bootstrap = secrets.token_urlsafe(24)
    row = Runner(
        id=new_id("run-"), pool=pool, code=code, status="starting", world_size=world_size, gpus=gpus, claims=0,
        bootstrap_sha256=digest(bootstrap), created_at=now(session),
    )  # fmt: skip
    session.add(row)
    session.flush()
    return Started(row.id, bootstrap)


def register(session: Session, runner_id: str, bootstrap: str) -> str | None:
    """The runner's token for its code, once; None for a wrong or used code."""
    token = secrets.token_urlsafe(32)
    waiting = update(Runner).where(
        Runner.id == runner_id, Runner.bootstrap_sha256 == digest(bootstrap), Runner.status == "starting"
    )
    known = waiting.values(
        bootstrap_sha256=None, token_sha256=digest(token), status="alive", last_seen=now(session)
    )
    return token if session.execute(known).rowcount == 1 else None  # type: ignore[attr-defined]


def seen(session: Session, runner_id: str, token: str) -> Runner | None:
    """The runner that says it is there; None where the token is not its own or it has ended."""
    mine = update(Runner).where(Runner.id == runner_id, Runner.token_sha256 == digest(token), Runner.status != "ended")
    if session.execute(mine.values(last_seen=now(session))).rowcount != 1:  # type: ignore[attr-defined]
        return None
    return session.get_one(Runner, runner_id, populate_existing=True)


def lock(session: Session, runner_id: str) -> None:
    """Until the transaction ends, nothing is heard of the runner or of its attempt."""
    session.execute(select(Runner.id).where(Runner.id == runner_id).with_for_update())


def drain(session: Session, runner_id: str) -> None:
    """The runner is to leave after its next checkpoint, and gets no more claims."""
    here = update(Runner).where(
        Runner.id == runner_id, Runner.status.in_(("alive", "draining")), Runner.asked_at.is_(None)
    )
    session.execute(here.values(status="draining", asked_at=now(session)))


def retire(session: Session, runner_id: str) -> None:
    """The runner is to leave after the job that it has, and gets no more claims."""
    session.execute(update(Runner).where(Runner.id == runner_id, Runner.status == "alive").values(status="draining"))


def ended(session: Session, runner_id: str, reason: str) -> bool:
    """The runner is no more; False where that was known."""
    gone = update(Runner).where(Runner.id == runner_id, Runner.status.in_(RUNNING))
    gone = gone.values(status="ended", reason=reason, ended_at=now(session), bootstrap_sha256=None, token_sha256=None)
    return session.execute(gone).rowcount == 1  # type: ignore[attr-defined]


def running(session: Session, pool: str | None = None) -> list[Runner]:
    """Runners that have not ended, oldest first."""
    chosen = select(Runner).where(Runner.status.in_(RUNNING))
    if pool is not None:
        chosen = chosen.where(Runner.pool == pool)
    return list(session.scalars(chosen.order_by(Runner.id)))


def busy(session: Session) -> dict[str, int]:
    """Live attempts per runner."""
    counted = select(Attempt.runner_id, func.count()).where(Attempt.status.in_(LIVE)).group_by(Attempt.runner_id)
    return dict(session.execute(counted).all())


def loads(session: Session) -> dict[str, int]:
    """The priority of what each busy runner works on."""
    highest = select(Attempt.runner_id, func.max(Job.priority)).join(Job, Job.id == Attempt.job_id)
    found = session.execute(highest.where(Attempt.status.in_(LIVE)).group_by(Attempt.runner_id))
    return dict(found.all())


class FailedStarts(NamedTuple):
    """The newest runners of a pool, where none of them came to work."""

    count: int
    """At most 20."""
    last_at: float
    """When the last of them ended, unix seconds."""
    reason: str


def failed_starts(session: Session, pool: str) -> FailedStarts | None:
    """How many runners of the pool in a row ended before they took a job; None where the last one did, or just left.
    Those that Ray never had say nothing about the pool."""
    newest = select(Runner.claims, Runner.reason, Runner.ended_at)
    newest = newest.where(Runner.pool == pool, Runner.status == "ended", Runner.reason != NEVER_SENT)
    newest = newest.order_by(Runner.ended_at.desc()).limit(20)
    failed = list(takewhile(lambda r: r.claims == 0 and r.reason != LEFT, session.execute(newest)))
    return FailedStarts(len(failed), failed[0].ended_at, failed[0].reason or "") if failed else None


def ended_within(session: Session, seconds: float) -> bool:
    """Whether a runner ended within the last `seconds`."""
    recent = select(Runner.id).where(Runner.ended_at > now(session) - seconds).limit(1)
    return session.scalar(recent) is not None


def known_ended(session: Session, ids: Collection[str], before_s: float = 0.0) -> set[str]:
    """Those of `ids` that are runners of this service and ended, at least `before_s` seconds ago."""
    over = select(Runner.id).where(Runner.id.in_(ids), Runner.status == "ended")
    return set(session.scalars(over.where(Runner.ended_at <= now(session) - before_s)))


def live_attempts(session: Session, runner_id: str) -> list[Attempt]:
    """Attempts that the runner holds now."""
    mine = select(Attempt).where(Attempt.runner_id == runner_id, Attempt.status.in_(LIVE))
    return list(session.scalars(mine))
