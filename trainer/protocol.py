"""Runner protocol v1, the runner's side: one call over HTTP, and what its answer means."""

from typing import Any

import httpx2

VERSION = 1
TIMEOUT_S = 10.0
"""Longest wait for an answer, beyond what the call itself asks the service to wait."""


class AwayError(Exception):
    """The service cannot be reached, or cannot answer now; the same call may succeed later."""


class GoneError(Exception):
    """What the call was about is no longer the caller's (410): the attempt was fenced, the runner is to leave."""


class RefusedError(AwayError):
    """The service answers, but not as the protocol says. For the caller it is away: only 410 takes an
    attempt from it, never a proxy's 404 or a service half updated."""

    def __init__(self, status: int, body: dict[str, Any], path: str):
        error = body.get("error") or {}
        super().__init__(f"{path}: {status} {error.get('message', 'without a message')}")
        code, _, acked = str(error.get("code")).partition(":")
        self.status = status
        self.gap = int(acked) if code == "gap" and acked.isdecimal() else None
        """Number of the last event that the service has, where those sent leave a gap after it (`gap:<number>`)."""


class Api:
    """Calls of the service at `url`. Safe to use from several threads."""

    def __init__(self, url: str):
        # A connection per call: heartbeats come about as seldom as servers drop idle connections, and one that is
        # dropped just while it is used looks like a service that is away.
        self._http = httpx2.Client(
            base_url=f"{url.rstrip('/')}/internal/v1", limits=httpx2.Limits(max_keepalive_connections=0)
        )

    def post(self, path: str, body: dict[str, Any], token: str | None = None, wait_s: float = 0) -> dict[str, Any]:
        """The answer's JSON, empty for 204. `wait_s`: how long the service may take on purpose.
        AwayError, GoneError, RefusedError."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx2.Timeout(TIMEOUT_S, read=wait_s + TIMEOUT_S)
        try:
            answer = self._http.post(path, json=body, headers=headers, timeout=timeout)
        except httpx2.TransportError as error:
            raise AwayError(f"{path}: {type(error).__name__} {error}".rstrip()) from None
        if answer.status_code == 410:
            raise GoneError(path)
        if answer.status_code == 204:
            return {}
        try:
            found = answer.json()
        except ValueError:  # a proxy's page
            found = None
        if answer.is_success and isinstance(found, dict):
            return found
        raise RefusedError(answer.status_code, found if isinstance(found, dict) else {}, path)

    def close(self) -> None:
        """Ends all connections."""
        self._http.close()
