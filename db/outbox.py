"""Wake-ups for the workers: written with the row they are about, sent after the commit, by whoever comes first."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from db.models import Outbox
from db.session import Database, now

KEPT_S = 3600.0
"""How long sent rows are kept, for looking."""
RECORD = "record"
"""The one topic that is no wake-up: `db.records` works off these rows itself."""
UNSENT = (Outbox.sent_at.is_(None), Outbox.topic != RECORD)
UNRECORDED = (Outbox.sent_at.is_(None), Outbox.topic == RECORD)


class Wake(NamedTuple):
    """What is to be looked at: the name of a tick, and of what."""

    topic: str
    key: str


def wake(session: Session, topic: str, key: str) -> None:
    """Ask for a tick once this transaction has been committed."""
    session.add(Outbox(topic=topic, key=key, created_at=now(session)))


def again(session: Session, topic: str, key: str, after_s: float) -> bool:
    """`wake` for what should have been looked at by now; False where it was asked for within the last `after_s`."""
    asked = select(Outbox.id).where(Outbox.topic == topic, Outbox.key == key)
    if session.scalar(asked.where(Outbox.created_at > now(session) - after_s).limit(1)) is not None:
        return False
    wake(session, topic, key)
    return True


def waits(session: Session) -> bool:
    """Whether anything is to be sent."""
    return session.scalar(select(Outbox.id).where(*UNSENT).limit(1)) is not None


def relay(database: Database, send: Callable[[Wake], None], limit: int = 100) -> int:
    """Send what waits; returns how many. Sent before it is marked, so a crash in between sends it twice, which ticks
    bear; `send` may raise, and what it was to send waits on."""
    with database.read() as session:
        waiting = session.execute(
            select(Outbox.id, Outbox.topic, Outbox.key).where(*UNSENT).order_by(Outbox.id).limit(limit)
        ).all()
    done: list[int] = []
    try:
        for row in waiting:
            send(Wake(row.topic, row.key))
            done.append(row.id)
    finally:
        if done:
            with database.write() as session:
                sent(session, done)
    return len(done)


def sent(session: Session, ids: Sequence[int]) -> None:
    """These rows need no more looking after."""
    session.execute(update(Outbox).where(Outbox.id.in_(ids)).values(sent_at=now(session)))


def sweep(session: Session) -> int:
    """Forget what was sent long ago; returns how many rows."""
    return session.execute(delete(Outbox).where(Outbox.sent_at < now(session) - KEPT_S)).rowcount  # type: ignore[attr-defined]
