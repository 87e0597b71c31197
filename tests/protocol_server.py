"""The service's side of runner protocol v1 over real HTTP, in memory: what tests of the runner speak with.

It keeps the promises that the runner builds on: a code is good once, events are numbered and taken once, `done` is
idempotent, a fenced attempt gets 410 for ever, and a runner that asks while it has an attempt gets it again.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Returns when the condition holds; a failed test after a deadline that no working machine needs."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@dataclass
class Attempt:
    """What the service knows of an attempt."""

    token: str
    next_seq: int
    action: str | None = "continue"
    """None: the answer lacks it, which no service of this protocol does."""
    fenced: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    beats: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] | None = None

    @property
    def acked(self) -> int:
        return self.next_seq - 1 + len(self.events)

    def steps(self) -> list[int]:
        """Numbers of the steps whose events are here, in the order of their arrival."""
        return [event["step"] for event in self.events if event["kind"] == "step"]


class ProtocolServer:
    """Serves at `url` between `open` and `close`, at the same port every time."""

    def __init__(self, code: str = "code-1"):
        self.codes = {code}
        self.token = ""
        self.claims: list[dict[str, Any]] = []
        self.attempts: dict[str, Attempt] = {}
        self.calls: list[str] = []
        self.queue: list[dict[str, Any]] = []
        self.drained = False
        self.lost_replies = 0
        """So many answers to calls for attempts are lost on the way, after the call has taken effect."""
        self.lost_claims = 0
        """So many answers with a claim are lost."""
        self.held: dict[str, Any] | None = None
        """The claim that the runner has not ended."""
        self.lock = threading.Lock()
        self.port, self._http = 0, None
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
                status, answer = server.answer(self.path, body, token)
                if status == 0:
                    return  # the connection ends without an answer
                self.send_response(status)
                data = b"" if answer is None else json.dumps(answer).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """Connections are refused from now on."""
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()  # waits for calls that are being answered

    def submit(
        self, resolved, job: str, attempt: int = 1, next_seq: int = 1, inputs: dict[str, str] | None = None
    ) -> Attempt:
        """Queues an attempt at a job."""
        found = Attempt(f"token of {job}/{attempt}", next_seq)
        claim = {
            "job_id": job, "attempt": attempt, "kind": "train", "token": found.token, "lease_s": 60,
            "resolved": resolved.model_dump(mode="json", by_alias=True), "spec_hash": resolved.hash,
            "inputs": inputs or {}, "prefix": f"projects/p/jobs/{job}", "next_seq": next_seq,
        }  # fmt: skip
        with self.lock:
            self.attempts[f"{job}/{attempt}"] = found
            self.queue.append(claim)
        return found

    # ---- the protocol

    def answer(self, path: str, body: dict[str, Any], token: str) -> tuple[int, dict[str, Any] | None]:
        with self.lock:
            self.calls.append(path)
            if re.fullmatch(r"/internal/v1/runners/run-[^/]+/register", path):
                return self._register(body)
            if re.fullmatch(r"/internal/v1/runners/run-[^/]+/claim", path):
                answered = self._claim(body, token)
                if answered[0] == 200 and self.lost_claims:
                    self.lost_claims -= 1
                    return 0, None
                return answered
            if found := re.fullmatch(r"/internal/v1/attempts/(.+/\d+)/(beat|done)", path):
                answered = self._attempt(self.attempts[found[1]], found[2], body, token)
                if self.lost_replies:
                    self.lost_replies -= 1
                    return 0, None
                return answered
            return 404, error("not_found")

    def _register(self, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        if body["code"] not in self.codes:
            return 401, error("unknown_code")
        self.codes.discard(body["code"])
        self.token = "token of the runner"
        return 200, {"token": self.token}

    def _claim(self, body: dict[str, Any], token: str) -> tuple[int, dict[str, Any] | None]:
        if token != self.token or self.drained:
            return 410, error("gone")
        self.claims.append(body)
        if self.held is None or self._over(self.held):
            self.held = self.queue.pop(0) if self.queue else None
        return (200, {"claims": [self.held]}) if self.held else (204, None)

    def _over(self, claim: dict[str, Any]) -> bool:
        attempt = self.attempts[f"{claim['job_id']}/{claim['attempt']}"]
        return attempt.fenced or attempt.done is not None

    def _attempt(
        self, attempt: Attempt, what: str, body: dict[str, Any], token: str
    ) -> tuple[int, dict[str, Any] | None]:
        if attempt.fenced or token != attempt.token:
            return 410, error("fenced")
        if attempt.done is not None:
            return (200, {"acked_seq": attempt.acked}) if what == "done" else (410, error("fenced"))
        if body["first_seq"] > attempt.acked + 1:
            return 409, error(f"gap:{attempt.acked}")
        attempt.events += body["events"][attempt.acked + 1 - body["first_seq"] :]
        if what == "done":
            attempt.done = body
            return 200, {"acked_seq": attempt.acked}
        attempt.beats.append(body)
        action = {"action": attempt.action} if attempt.action else {}
        return 200, {"acked_seq": attempt.acked, "lease_s": 60, **action}


def error(code: str) -> dict[str, Any]:
    """The service's one shape of an error."""
    return {"error": {"message": code, "type": "invalid_request_error", "param": None, "code": code}}
