"""API keys of a project, and the bases that its jobs may use."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api import schema, shapes
from api.deps import Admin, App, Reader
from api.errors import not_found
from api.shapes import seconds
from db import bases, keys
from db.models import Key

router = APIRouter(prefix="/v1", tags=["administration"])


class NewKey(BaseModel):
    """A key to issue."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=100)
    scope: Literal["read", "write", "admin"] = "write"


class NewBase(BaseModel):
    """A base to allow."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(min_length=1)
    revision: str | None = None
    licence: str = Field(min_length=1)


def _key(row: Key) -> dict[str, Any]:
    return {
        "object": "key", "id": row.id, "name": row.name, "scopes": row.scopes,
        "created_at": seconds(row.created_at), "revoked_at": seconds(row.revoked_at),
    }  # fmt: skip


@router.post("/keys", response_model=schema.IssuedKey)
def issue(body: NewKey, app: App, who: Admin) -> dict[str, Any]:
    """A new key. Its secret is in this answer and nowhere else."""
    with app.database.write() as session:
        key, secret = keys.issue(session, who.project_id, body.name, body.scope, who.actor)
        session.refresh(key)
        return {**_key(key), "secret": secret}


@router.get("/keys", response_model=schema.Page[schema.Key])
def listed(app: App, who: Admin) -> dict[str, Any]:
    """All keys of the project, without their secrets."""
    with app.database.read() as session:
        return shapes.page([_key(row) for row in keys.listed(session, who.project_id)], False)


@router.delete("/keys/{key_id}", response_model=schema.Deleted)
def revoke(key_id: str, app: App, who: Admin) -> dict[str, Any]:
    """End a key, now."""
    with app.database.write() as session:
        if not keys.revoke(session, who.project_id, key_id, who.actor):
            raise not_found("key", key_id)
    return {"object": "key", "id": key_id, "deleted": True}


@router.get("/bases", response_model=schema.Page[schema.Base])
def allowed(app: App, who: Reader) -> dict[str, Any]:
    """Bases that the project's jobs may use; none listed means any."""
    with app.database.read() as session:
        rows = bases.listed(session, who.project_id)
        data = [{"object": "base", "id": b.uri, "revision": b.revision, "licence": b.licence} for b in rows]
    return shapes.page(data, False)


@router.post("/bases", response_model=schema.Base)
def allow(body: NewBase, app: App, who: Admin) -> dict[str, Any]:
    """Allow a base; from the first one on, the project's jobs may use no others."""
    with app.database.write() as session:
        bases.allow(session, who.project_id, body.id, body.revision, body.licence)
        keys.audit(session, who.project_id, who.actor, "base.allowed", body.id)
    return {"object": "base", **body.model_dump()}


@router.delete("/bases/{uri:path}", response_model=schema.Deleted)
def forbid(uri: str, app: App, who: Admin) -> dict[str, Any]:
    """Take a base off the list; jobs that are queued keep it."""
    with app.database.write() as session:
        if not bases.forbid(session, who.project_id, uri):
            raise not_found("base", uri)
        keys.audit(session, who.project_id, who.actor, "base.forbidden", uri)
    return {"object": "base", "id": uri, "deleted": True}
