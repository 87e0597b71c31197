"""What `attune.Client` raises."""

from typing import Any


class AttuneError(Exception):
    """The service did not do what it was asked.

    AttuneError
    ├── UnavailableError      no answer, or 5xx: it may work later
    ├── UnauthorizedError     401: no valid key
    ├── ForbiddenError        403: the key may not
    ├── NotFoundError         404
    ├── ConflictError         409: not in this status
    └── BadRequestError       400, 422 and what else is wrong with the request
    """

    def __init__(self, message: str, status: int | None = None, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    def to_json(self) -> dict[str, Any]:
        """The service's one shape for errors."""
        kind = "invalid_request_error" if (self.status or 500) < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class UnavailableError(AttuneError):
    """No answer, or one that says not now (5xx)."""


class UnauthorizedError(AttuneError):
    """No valid key."""


class ForbiddenError(AttuneError):
    """The key's scope does not reach so far."""


class NotFoundError(AttuneError):
    """There is none such in the key's project."""


class ConflictError(AttuneError):
    """Illegal in the present status."""


class BadRequestError(AttuneError):
    """The request is wrong; `param` names the field."""


class NoServiceError(ValueError):
    """Nobody said where the service is."""
