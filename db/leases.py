"""Leases on names: of any number of schedulers one acts, and a stale one notices by its epoch."""

from sqlalchemy import case, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.models import Lease
from db.session import now

API_ALIVE = "api-alive"
"""Held while an API serves, that is while heartbeats can arrive."""
WORKER_ALIVE = "worker-alive"
"""Held while some worker does its rounds."""

KEPT_S = 3600.0
"""How long leases on a single thing, named `<what>:<id>`, are remembered after their end."""


def take(session: Session, name: str, holder: str, seconds: float) -> int | None:
    """The epoch, where the lease was free, run out or already the holder's; None where another holds it."""
    until = now(session) + seconds
    epoch = case((Lease.holder == holder, Lease.epoch), else_=Lease.epoch + 1)
    free = update(Lease).where(Lease.name == name, (Lease.expires_at < now(session)) | (Lease.holder == holder))
    renewed = free.values(holder=holder, epoch=epoch, expires_at=until).returning(Lease.epoch)
    if (taken := session.execute(renewed).scalar()) is not None:
        return taken
    if session.scalar(select(Lease.name).where(Lease.name == name)):
        return None
    try:
        with session.begin_nested():
            session.add(Lease(name=name, holder=holder, epoch=1, expires_at=until))
    except IntegrityError:  # another was first
        return None
    return 1


def held(session: Session, name: str) -> bool:
    """Whether anybody holds it now."""
    return session.scalar(select(Lease.name).where(Lease.name == name, Lease.expires_at >= now(session))) is not None


def give_back(session: Session, name: str, holder: str) -> None:
    """End the lease now, if it is still the holder's."""
    session.execute(update(Lease).where(Lease.name == name, Lease.holder == holder).values(expires_at=0.0))


def sweep(session: Session) -> None:
    """Forget leases on single things that ended long ago. The others' epochs go on rising for ever."""
    old = Lease.name.contains(":"), Lease.expires_at < now(session) - KEPT_S
    session.execute(delete(Lease).where(*old))
