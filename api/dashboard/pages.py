"""Templates and files of the pages, and what every answer of theirs has in common."""

import hashlib
import mimetypes
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from api.dashboard import words
from api.errors import ApiError
from db.status import JOB, TERMINAL

_HERE = Path(__file__).parent

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Nothing from elsewhere, nothing inline, and no copy of what only a key may see."""

FILES = {p.relative_to(_HERE / "static").as_posix(): p.read_bytes() for p in sorted((_HERE / "static").rglob("*.*"))}
VERSION = hashlib.sha256(b"".join(name.encode() + body for name, body in FILES.items())).hexdigest()[:12]
"""Part of every file's address, so that browsers may keep files for good."""

_environment = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_environment.filters.update(words.FILTERS)
_environment.globals.update(
    static=lambda name: f"/dashboard/static/{VERSION}/{name}", statuses=list(JOB), terminal=TERMINAL
)


def render(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or part of one. Every value is escaped."""
    return HTMLResponse(_environment.get_template(template).render(**values), status)


def static_file(version: str, name: str) -> Response:
    """A file of the pages; for good, as its address changes with its content."""
    if version != VERSION or name not in FILES:
        raise ApiError(404, f"no file {name!r}", code="file_not_found")
    kind = mimetypes.guess_type(name)[0] or "text/plain"
    kind = "text/javascript" if name.endswith(".js") else kind
    return Response(FILES[name], media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})


class SignedOut(Exception):  # noqa: N818
    """Nobody is signed in."""


class Page(APIRoute):
    """A route whose errors are pages too, and whose answers carry HEADERS."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                response = await handle(request)
            except SignedOut:
                response = _to_login(request)
            except ApiError as error:
                response = render("error.html", error.status, message=error.message, who=None)
            except RequestValidationError as error:
                first = error.errors()[0]
                message = f"{first['loc'][-1]}: {first['msg']}"
                response = render("error.html", 400, message=message, who=None)
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return guarded


def _to_login(request: Request) -> Response:
    if "hx-request" in request.headers:  # part of a page that is open: the whole page must go
        return Response(status_code=401, headers={"HX-Redirect": "/dashboard/login"})
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/dashboard/login?next={quote(here)}", 303)
