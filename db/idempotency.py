"""The same submission twice is one: a key remembers what was asked and answered."""

import hashlib
from collections.abc import Callable
from typing import Any

import rfc8785
from sqlalchemy import delete
from sqlalchemy.orm import Session

from db.metrics import insert_new
from db.models import Idempotency
from db.session import now

KEPT_S = 7 * 86400.0


class ReusedError(Exception):
    """The key belongs to another request."""


def once(
    session: Session, project_id: str, route: str, key: str | None, request: Any, make: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The answer to a request and whether it was given before. With the same key `make` runs once, however many ask
    at the same time: the row is written first and locks out the others until the transaction ends."""
    if key is None:
        return make(), False
    asked = hashlib.sha256(rfc8785.dumps(request)).hexdigest()
    row = {"project_id": project_id, "route": route, "key": key, "request_sha256": asked, "response": {}}
    new = insert_new(session, Idempotency).values(**row, created_at=now(session))
    first = session.scalar(new.returning(Idempotency.key)) is not None  # an INSERT's row count is not told on Postgres
    found = session.get_one(Idempotency, (project_id, route, key), populate_existing=True)
    if first:
        found.response = make()
        return found.response, False
    if found.request_sha256 != asked:
        raise ReusedError(f"the idempotency key {key!r} was used for another request; use a new one")
    return found.response, True


def sweep(session: Session) -> None:
    """Forget old keys."""
    session.execute(delete(Idempotency).where(Idempotency.created_at < now(session) - KEPT_S))
