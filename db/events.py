"""A job's history: appended in the transaction of what it tells, numbered without gaps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.models import Event, Job
from db.session import now


class New(NamedTuple):
    """An event to append."""

    type: str
    data: dict[str, Any] = {}


def append(session: Session, job_id: str, events: Sequence[New], *, actor: str, attempt_no: int | None = None) -> int:
    """Append events; returns the last number. The job's row is locked by this until the transaction ends, so numbers
    follow commit order, which a sequence would not."""
    counted = update(Job).where(Job.id == job_id).values(last_seq=Job.last_seq + len(events)).returning(Job.last_seq)
    last = session.execute(counted).scalar_one()
    at = session.execute(select(now(session))).scalar_one()
    session.add_all(
        Event(job_id=job_id, seq=last - len(events) + n, attempt_no=attempt_no, at=at, actor=actor, type=e.type,
              data=e.data)
        for n, e in enumerate(events, 1)
    )  # fmt: skip
    return last


def after(session: Session, job_id: str, seq: int = 0, limit: int = 100) -> list[Event]:
    """Events with a number above `seq`, oldest first."""
    chosen = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    return list(session.scalars(chosen))


def newest(session: Session, job_id: str, before: int | None = None, limit: int = 20) -> list[Event]:
    """Events with a number below `before`, newest first."""
    chosen = select(Event).where(Event.job_id == job_id)
    if before is not None:
        chosen = chosen.where(Event.seq < before)
    return list(session.scalars(chosen.order_by(Event.seq.desc()).limit(limit)))
