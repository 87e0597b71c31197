"""The bases that a project's jobs may use, with their licences. An empty list allows any."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from db.models import BaseModel
from db.session import now


def listed(session: Session, project_id: str) -> list[BaseModel]:
    """All allowed bases by name."""
    return list(session.scalars(select(BaseModel).where(BaseModel.project_id == project_id).order_by(BaseModel.uri)))


def allow(session: Session, project_id: str, uri: str, revision: str | None, licence: str) -> None:
    """Add a base, or change what is said of it."""
    row = BaseModel(project_id=project_id, uri=uri, revision=revision, licence=licence, created_at=now(session))
    session.merge(row)


def forbid(session: Session, project_id: str, uri: str) -> bool:
    """Take a base off the list; False where it was not on it."""
    ours = BaseModel.project_id == project_id, BaseModel.uri == uri
    return session.execute(delete(BaseModel).where(*ours)).rowcount == 1  # type: ignore[attr-defined]


def refusal(session: Session, project_id: str, uri: str, revision: str | None) -> str | None:
    """Why a job must not use this base; None where it may."""
    known = {base.uri: base for base in listed(session, project_id)}
    if not known:
        return None
    if uri not in known:
        return f"not among the allowed bases ({', '.join(known)}); ask an administrator to allow it"
    if known[uri].revision not in (None, revision):
        return f"allowed at revision {known[uri].revision} only; set revision"
    return None
