"""Projects and their API keys. A key is shown once and kept as a hash."""

import secrets
from typing import Literal, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db import records
from db.attempts import digest
from db.ids import new_id
from db.models import Audit, Key, Project
from db.session import now

Scope = Literal["read", "write", "admin"]
SCOPES: dict[Scope, tuple[Scope, ...]] = {
    "read": ("read",), "write": ("read", "write"), "admin": ("read", "write", "admin")
}  # fmt: skip
"""What each scope may do."""


class Holder(NamedTuple):
    """Who is asking."""

    key_id: str
    project_id: str
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        return f"user:{self.key_id}"


def project(session: Session, name: str) -> Project:
    """The project of that name, made where there is none."""
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        found = Project(id=new_id("proj-"), name=name, created_at=now(session))
        session.add(found)
        session.flush()
        records.due(session, found.id)
    return found


def issue(session: Session, project_id: str, name: str, scope: Scope, actor: str) -> tuple[Key, str]:
    """A new key and its secret, which is told now or never."""
    secret = "attune-" + secrets.token_urlsafe(32)
    key = Key(
        id=new_id("key-"), project_id=project_id, name=name, sha256=digest(secret), scopes=list(SCOPES[scope]),
        created_at=now(session),
    )  # fmt: skip
    session.add(key)
    session.flush()
    audit(session, project_id, actor, "key.issued", key.id)
    return key, secret


def holder(session: Session, secret: str) -> Holder | None:
    """Who holds this secret; None where nobody (any more) does."""
    key = session.scalar(select(Key).where(Key.sha256 == digest(secret), Key.revoked_at.is_(None)))
    return None if key is None else Holder(key.id, key.project_id, frozenset(key.scopes))


def revoke(session: Session, project_id: str, key_id: str, actor: str) -> bool:
    """End a key of the project; False where there is none such."""
    mine = update(Key).where(Key.id == key_id, Key.project_id == project_id, Key.revoked_at.is_(None))
    if session.execute(mine.values(revoked_at=now(session))).rowcount != 1:  # type: ignore[attr-defined]
        return False
    audit(session, project_id, actor, "key.revoked", key_id)
    return True


def listed(session: Session, project_id: str) -> list[Key]:
    """Keys of a project, oldest first."""
    return list(session.scalars(select(Key).where(Key.project_id == project_id).order_by(Key.id)))


def audit(session: Session, project_id: str | None, actor: str, what: str, target: str) -> None:
    """Write down what an administrator did."""
    session.add(
        Audit(id=new_id("audit-"), project_id=project_id, actor=actor, action=what, target=target, at=now(session))
    )
