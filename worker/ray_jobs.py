"""Ray as the worker sees it: one cluster's Jobs REST, over HTTP. Nothing here imports ray.

Ray starts and stops runners and is asked for nothing else. What Ray 2.60 does that one would not guess:

- A submission id that is taken is refused as HTTP 500, like any trouble: so after any 5xx, and after a lost answer, the
  job itself is asked for.
- The stop of a PENDING job answers `true` and leaves it PENDING. Ray keeps the wish: when the job gets its resources it
  is started and sent SIGTERM at once, before it may have a handler. Until then it cannot be deleted either.
- A stopped job is killed after 3 s unless RAY_JOB_STOP_WAIT_TIME_S says otherwise.
- A faulty runtime_env is accepted with 200; the job is FAILED a moment later, and `message` says why.
- An id that was deleted is free again, and a job under it fails while the old one is cleared away: ids are used once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx2

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
Stopped = Literal["stopping", "pending", "ended", "unknown"]

STOP_WAIT_S = 60
"""Seconds between SIGTERM and SIGKILL of a stopped job, unless its `env` sets RAY_JOB_STOP_WAIT_TIME_S itself."""

CONNECT_S, ANSWER_S = 2.0, 5.0
REQUEST_S = CONNECT_S + ANSWER_S
"""What a request to a Ray that hangs takes."""
TICK_S = 30.0 - 3 * REQUEST_S
"""A tick that begins nothing after so long, where one thing is three requests at most, ends within 30 s."""

OURS = {"attune": "1"}
"""Metadata of every job submitted here. A cluster may run other people's jobs."""

NO_SUCH_JOB = "does not exist"
"""What Ray's 404 says, "Job run-… does not exist"."""


class RayError(Exception):
    """Ray did not do what it was asked."""


class RayUnavailableError(RayError):
    """No answer, or one that says not now (5xx). The same call may be made again."""


class RayRefusedError(RayError):
    """Ray will answer the same however often it is asked: a wrong token (401, 403), a request it cannot read (4xx)."""


@dataclass(frozen=True, slots=True)
class RayJob:
    """One job, as Ray tells it."""

    submission_id: str
    status: Status
    message: str
    """Ray's words on the status; of a FAILED job also the last lines it printed, up to 20,000 characters."""
    metadata: Mapping[str, str]

    @property
    def ended(self) -> bool:
        """Nothing follows."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class RayJobs:
    """The jobs of the cluster at `address`, the URL of its dashboard. Threads may share it; `close` it or use `with`.

    Every method may raise RayUnavailableError and RayRefusedError. `timeout_s` bounds the wait for each answer,
    `CONNECT_S` that for a connection. `submit`, `stop` and `delete` make up to two requests.
    """

    def __init__(self, address: str, token: str | None = None, timeout_s: float = ANSWER_S):
        if not address.startswith(("http://", "https://")):
            raise ValueError(
                f"Ray address {address!r}: give the URL of the dashboard, as in ATTUNE_RAY_ADDRESS=http://127.0.0.1:8265"
            )
        self.address = address.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_S)
        self._http = httpx2.Client(base_url=self.address, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def version(self) -> str:
        """Version of Ray that runs there."""
        return str(self._json(self._ask("GET", "/api/version"))["ray_version"])

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        *,
        env: Mapping[str, str],
        num_cpus: float = 0,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        working_dir: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Have the shell command `entrypoint` run once. Made again with the same id it changes nothing.

        Returns when Ray has the job, of this call or of an earlier one. After RayUnavailableError it may still come to
        have it: call again with the same id. `env` is shown to everyone who may read the cluster's jobs. What is asked
        for (CPUs, GPUs, other resources) is held by the command itself, apart from its Ray tasks; with nothing asked
        for it runs on the head node.
        """
        if working_dir is not None and "://" not in working_dir:
            raise ValueError(
                f"working_dir {working_dir!r}: over REST Ray takes no local folder; give the URI of an archive "
                "(s3://…/code.zip, https://…/code.zip)"
            )
        runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **env}}
        if working_dir is not None:
            runtime_env["working_dir"] = working_dir
        request = {
            "submission_id": submission_id,
            "entrypoint": entrypoint,
            "runtime_env": runtime_env,
            "metadata": {**(metadata or {}), **OURS},
            "entrypoint_num_cpus": num_cpus,
            "entrypoint_num_gpus": num_gpus,
            "entrypoint_resources": dict(resources or {}),
        }
        try:
            self._ask("POST", "/api/jobs/", request)
        except RayUnavailableError as error:
            sent = not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
            if not sent or self.info(submission_id) is None:
                raise

    def info(self, submission_id: str) -> RayJob | None:
        """The job, or None where Ray does not know the id."""
        answer = self._ask("GET", _path(submission_id))
        return None if answer.status_code == 404 else _job(self._json(answer))

    def list(self) -> list[RayJob]:
        """All jobs with our metadata that Ray remembers, ended ones too, in no order."""
        answer = self._json(self._ask("GET", "/api/jobs/"))
        found = [job for job in answer if OURS.items() <= (job["metadata"] or {}).items()]
        return [_job(job) for job in found if job["submission_id"]]

    def stop(self, submission_id: str) -> Stopped:
        """Ask the job to end, SIGTERM first; what came of it, as the job stood afterwards.

        `stopping`: accepted, the job ends within its stop wait. `pending`: it has not started, and still may; ask
        again. `ended`: it had, or its process is gone. `unknown`: Ray does not know the id.
        """
        answer = self._ask("POST", f"{_path(submission_id)}/stop")
        job = None if answer.status_code == 404 else self.info(submission_id)
        if job is None:
            return "unknown"
        if job.status == "PENDING":
            return "pending"
        return "stopping" if self._json(answer)["stopped"] and not job.ended else "ended"

    def delete(self, submission_id: str) -> bool:
        """Have Ray forget an ended job; False where it cannot yet, for the job has not ended.

        The id is then free for a second run: delete nothing whose `submit` might still be made again.
        """
        try:
            self._ask("DELETE", _path(submission_id))
        except RayUnavailableError:
            job = self.info(submission_id)
            if job is not None and job.ended:
                raise
            return job is None
        return True

    def logs(self, submission_id: str, tail: int = 100) -> str | None:
        """The last `tail` lines the job printed, behind Ray's own; None where Ray does not know the id.

        A convenience: they are gone with their node, and Ray sends all lines, however few are wanted.
        """
        answer = self._ask("GET", f"{_path(submission_id)}/logs")
        if answer.status_code == 404:
            return None
        lines = self._json(answer)["logs"].splitlines(keepends=True)
        return "".join(lines[max(0, len(lines) - tail) :])

    def _ask(self, method: str, path: str, body: object = None) -> httpx2.Response:
        """The answer, if it is 200, or Ray's own 404: a gateway's must not make a living job look gone."""
        what = f"Ray at {self.address}, {method} {path}"
        try:
            answer = self._http.request(method, path, json=body)
        except httpx2.RequestError as error:
            raise RayUnavailableError(
                f"{what}: no answer ({type(error).__name__}: {error}). Is the cluster up? "
                "Does ATTUNE_RAY_ADDRESS lead to its dashboard?"
            ) from error
        code = answer.status_code
        if code == 200 or (code == 404 and NO_SUCH_JOB in answer.text):
            return answer
        if code in (401, 403):
            raise RayRefusedError(
                f"{what}: {'no token' if code == 401 else 'wrong token'} (HTTP {code}). "
                "Set ATTUNE_RAY_TOKEN to the cluster's token, RAY_AUTH_TOKEN of its head."
            )
        if code >= 500:
            raise RayUnavailableError(f"{what}: HTTP {code}: {_reason(answer)}. See the cluster's dashboard_agent.log.")
        raise RayRefusedError(
            f"{what}: HTTP {code}: {_reason(answer)}. Does ATTUNE_RAY_ADDRESS lead to Ray's dashboard?"
        )

    def _json(self, answer: httpx2.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise RayRefusedError(
                f"Ray at {self.address} answers {_reason(answer)!r} where JSON is expected. "
                "Does ATTUNE_RAY_ADDRESS lead to Ray's dashboard?"
            ) from error


def _path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _job(told: Mapping[str, Any]) -> RayJob:
    return RayJob(told["submission_id"], told["status"], told["message"] or "", told["metadata"] or {})


def _reason(answer: httpx2.Response) -> str:
    """The last telling line: Ray answers trouble with a whole traceback, which ends in a lone full stop."""
    lines = [line for line in answer.text.split("\n") if line.strip(" .")]
    return lines[-1].strip()[:300] if lines else "(empty)"
