"""What routes are given: the app's database and store, and who is asking."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import State

from api.errors import ApiError
from api.stream import Tailer
from db import keys
from db.keys import Holder, Scope
from db.session import Database
from db.settings import Settings
from trainer.store import FolderStore, S3Store

COOKIE = "attune_key"
SAFE = ("GET", "HEAD", "OPTIONS")


class Context(State):
    """What the app holds."""

    settings: Settings
    database: Database
    store: FolderStore | S3Store
    links: FolderStore | S3Store
    """The store where users reach it."""
    tailer: Tailer
    nudge: Callable[[], None]


def context(request: Request) -> Context:
    """The app's own state."""
    return request.app.state


def bearer(request: Request) -> str | None:
    """The token of the Authorization header."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None


def _holder(request: Request, _: Annotated[object, Depends(HTTPBearer(auto_error=False))]) -> Holder:
    secret = bearer(request)
    if secret is None and (secret := request.cookies.get(COOKIE)) and request.method not in SAFE:
        # a browser sends the cookie from any page; what changes something must come from ours
        origin = request.headers.get("origin")
        if origin is None or origin.split("://", 1)[-1] != request.headers.get("host"):
            raise ApiError(403, "a request with a cookie must come from the dashboard's own page", code="cross_origin")
    if secret is not None:
        with context(request).database.read() as session:
            found = keys.holder(session, secret)
        if found is not None:
            return found
    raise ApiError(401, "no valid API key; send it as 'Authorization: Bearer attune-…'", code="invalid_api_key")


def needs(scope: Scope):
    """A dependency that lets in keys with this scope only."""

    def check(holder: Annotated[Holder, Depends(_holder)]) -> Holder:
        if scope not in holder.scopes:
            message = f"this key may {', '.join(sorted(holder.scopes))}, not {scope}; use a key with scope {scope}"
            raise ApiError(403, message, code="insufficient_scope")
        return holder

    return check


def known_query(request: Request) -> None:
    """Refuses a parameter that the route does not know: a filter with a typing error would show everything."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    if unknown := sorted(set(request.query_params) - set(known)):
        message = f"{unknown[0]}: no such parameter here; known: {', '.join(known) or 'none'}"
        raise ApiError(400, message, code="invalid_request", param=unknown[0])


App = Annotated[Context, Depends(context)]
Reader = Annotated[Holder, Depends(needs("read"))]
Writer = Annotated[Holder, Depends(needs("write"))]
Admin = Annotated[Holder, Depends(needs("admin"))]
