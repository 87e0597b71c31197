"""One shape for every error: `{"error": {"message", "type", "param", "code"}}`, and nothing without it."""

import errno
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError as UnstorableError
from starlette.exceptions import HTTPException

from db.attempts import FencedError, GapError
from db.idempotency import ReusedError
from db.status import IllegalCommand
from trainer.fields import SpecError
from trainer.manifest import ManifestError
from trainer.store import MissingError
from trainer.tokens import BaseError, DataError

_log = logging.getLogger("attune.api")


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def not_found(what: str, name: str) -> ApiError:
    """404, also for what belongs to another project: nobody learns what others have."""
    return ApiError(404, f"no {what} {name!r}", code=f"{what.replace(' ', '_')}_not_found")


def answer(
    status: int, message: str, *, code: str | None, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as a response."""
    kind = "server_error" if status >= 500 else "authentication_error" if status == 401 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    # the same request would fail again: clients that retry a 409 by habit are told not to
    final = {"x-should-retry": "false"} if status == 409 else {}
    return JSONResponse(body, status, headers={**final, **(headers or {})})


def install(app: FastAPI) -> None:
    """Make every failure of the app answer in the one shape."""

    def on(kind: type[Exception], respond: Any) -> None:
        app.add_exception_handler(kind, lambda request, error: respond(error))

    on(ApiError, lambda e: answer(e.status, e.message, code=e.code, param=e.param))
    on(SpecError, lambda e: answer(400, str(e), code="invalid_spec", param=e.problems[0].param))
    on(ManifestError, lambda e: answer(400, str(e), code="invalid_data", param="data"))
    on(DataError, lambda e: answer(400, str(e), code="invalid_data", param="data"))
    on(BaseError, lambda e: answer(400, str(e), code="invalid_spec", param="base"))
    on(IllegalCommand, lambda e: answer(409, str(e), code="illegal_status"))
    on(ReusedError, lambda e: answer(422, str(e), code="idempotency_key_reused", param="Idempotency-Key"))
    on(FencedError, lambda e: answer(410, str(e), code="fenced"))
    on(GapError, lambda e: answer(409, str(e), code=f"gap:{e.acked}"))
    on(MissingError, lambda e: answer(404, "no such artifact", code="artifact_not_found"))
    # a number beyond 64 bits (SQLite's driver, Postgres) or a text with a NUL character
    on(OverflowError, lambda e: answer(400, "a number is too large", code="invalid_request"))
    on(UnstorableError, lambda e: answer(400, "a value is too large, or no text", code="invalid_request"))
    on(RequestValidationError, _invalid)
    on(UnicodeEncodeError, lambda e: answer(400, "a text holds half of a character", code="invalid_request"))
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]

    @app.exception_handler(OSError)
    def _named(request: Request, error: OSError) -> JSONResponse:
        if error.errno == errno.ENAMETOOLONG:
            return answer(400, "a name is longer than names of files may be", code="invalid_request")
        return _unexpected(request, error)

    @app.exception_handler(Exception)
    def _unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(500, "something went wrong on our side; the log has more", code="internal_error")


def _invalid(error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    # the first part says where the value came from (query, body, path), the rest is its place
    path = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    if first["type"] == "json_invalid":
        message = f"body: no JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
        return answer(400, message, code="invalid_request", param="body")
    given = first.get("input")
    shown = "" if isinstance(given, dict | list | bytes) or given is None else f" (given: {_short(repr(given))})"
    return answer(400, f"{path}: {first['msg']}{shown}", code="invalid_request", param=path)


def _short(value: str) -> str:
    return value if len(value) <= 200 else f"{value[:200]}…"


_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""Of what the framework itself refuses."""


def _http(request: Request, error: HTTPException) -> JSONResponse:
    code, message = _CODES.get(error.status_code), str(error.detail)
    if error.status_code in (404, 405):
        message = f"{request.method} {request.url.path}: {message.lower()}; /openapi.json has every route"
    return answer(error.status_code, message, code=code, headers=error.headers)
