"""Attune from Python: `Client().jobs.create({...})`. What comes back is the API's JSON, unchanged.

Address and key: as given, else ATTUNE_URL and ATTUNE_API_KEY, else those of the service that `attune up` runs here.
"""

import contextlib
import json
import os
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import httpx2

from attune.errors import (
    AttuneError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NoServiceError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from attune.home import CLIENT, home, read_json

Json = dict[str, Any]

TERMINAL = ("succeeded", "failed", "cancelled")
QUIET_S = 45.0
"""A stream says something every 15 s; after so long in silence it is taken for dead and opened again."""
SUBMIT_S = 600.0
"""Longest wait for the answer to a submission: a study's data are read, and every recording hashed, before it comes."""
PART = 32 << 20
"""Bytes of an upload that are sent, and where that fails sent again, at a time."""
WAITS_S = (0.5, 1.0, 2.0)
"""Between the attempts at a request that may be repeated."""


_BY_STATUS = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError}


class Client:
    """A connection to the service; `close` it or use `with`. Every method may raise AttuneError."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None, *, timeout_s: float = 60):
        url = base_url or os.environ.get("ATTUNE_URL")
        known = {} if url else _embedded()
        url, key = url or known["url"], api_key or os.environ.get("ATTUNE_API_KEY") or known.get("key")
        if not key:
            raise NoServiceError(f"no key for {url}: set ATTUNE_API_KEY")
        self.url, self.local = url.rstrip("/"), bool(known)
        """`local`: the service was started here by `attune up`, and sees this machine's files."""
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=not known)
        self.jobs, self.studies = Jobs(self), Studies(self)
        self.datasets, self.artifacts = Datasets(self), Artifacts(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def compare(
        self, a: str | Sequence[str], b: str | Sequence[str], *, metric: str | None = None, modality: str | None = None,
        task: str | None = None,
    ) -> Json:  # fmt: skip
        """The difference b - a between two jobs, or two cells given as the jobs of their seeds, with its interval.
        `task`: which, where the test has several."""
        sides = {"a": a if isinstance(a, str) else ",".join(a), "b": b if isinstance(b, str) else ",".join(b)}
        return self.ask("GET", "/v1/compare", params={**sides, "metric": metric, "modality": modality, "task": task})

    def ask(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Any = None,
        headers: Mapping[str, str] | None = None, repeat: bool = True, timeout_s: float | None = None,
    ) -> Json:  # fmt: skip
        """Any request; its answer as JSON. `body`: bytes, or what becomes JSON. `repeat`: try again where there is no
        answer."""
        given = {k: v for k, v in (params or {}).items() if v is not None}
        for wait_s in (*(WAITS_S if repeat else ()), None):
            try:
                return self._once(method, path, given, body, headers, timeout_s)
            except UnavailableError:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, params: Json, body: Any, headers: Any, timeout_s: float | None) -> Json:
        timeout = self._http.timeout if timeout_s is None else httpx2.Timeout(timeout_s, connect=10)
        try:
            content: Json = {"content": body} if isinstance(body, bytes) else {"json": body}
            answer = self._http.request(method, path, params=params, headers=headers, timeout=timeout, **content)
        except httpx2.RequestError as error:
            raise _unavailable(self.url, error) from error
        if answer.status_code >= 300:
            raise _error(answer)
        try:
            return answer.json()
        except ValueError:
            raise _error(answer) from None

    def submit(self, path: str, spec: Mapping[str, Any], key: str | None, dry_run: bool) -> Json:
        """A job or study, with a key that makes it safe to send again; or what it would do."""
        headers = {"Idempotency-Key": key or f"client-{uuid.uuid4().hex}"}
        params = {"dry_run": "true"} if dry_run else {}
        return self.ask("POST", path, params=params, body=spec, headers=headers, timeout_s=SUBMIT_S)

    def every(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[Json]:
        """All items of a list, page by page."""
        after = None
        while True:
            page = self.ask("GET", path, params={**(params or {}), "limit": 100, "after": after})
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]

    def follow(self, path: str, last: str | None = None, patience_s: float = 60) -> Iterator[Json]:
        """Server-sent events from `path` as JSON, numbered ones each once; the stream is opened again where it breaks.
        UnavailableError after `patience_s` seconds without a word. Ends with the stream's own end."""
        heard = time.monotonic()
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            try:
                timeout = httpx2.Timeout(QUIET_S, connect=10)
                with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                    if answer.status_code >= 300:
                        answer.read()
                        raise _error(answer)
                    for message in httpx2.EventSource(answer):
                        heard, last = time.monotonic(), message.id or last
                        yield json.loads(message.data)
                return
            except (httpx2.TransportError, UnavailableError) as error:
                if time.monotonic() - heard > patience_s:
                    raise _unavailable(self.url, error) from error
                time.sleep(0.5)

    def download(self, path: str, to: Path) -> None:
        """Write what lies at `path` to a file, whole or not at all."""
        part = to.with_name(f".{to.name}.part")
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._http.stream("GET", path, follow_redirects=True) as answer, open(part, "wb") as out:
                if answer.status_code >= 300:
                    answer.read()
                    raise _error(answer)
                for block in answer.iter_bytes():
                    out.write(block)
            part.replace(to)
        except httpx2.RequestError as error:
            raise _unavailable(self.url, error) from error
        finally:
            part.unlink(missing_ok=True)


def _embedded() -> Json:
    """Address and key of the service that `attune up` runs here."""
    if "url" in (known := read_json(home() / CLIENT)):
        return known
    raise NoServiceError(
        f"no service is known: none was started in {home()} (`attune up` does; ATTUNE_HOME names another folder), "
        "and ATTUNE_URL is not set"
    )


def _unavailable(url: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"no answer from {url} ({type(error).__name__}: {error}); is the service up? `attune up`")


def _error(answer: httpx2.Response) -> AttuneError:
    status = answer.status_code
    try:
        said = answer.json()["error"]
        message, code, param = said["message"], said["code"], said["param"]
    except (ValueError, KeyError, TypeError):  # a proxy's page, or another service's
        message, code, param = f"HTTP {status} from {answer.url}, which does not look like Attune", None, None
    kind = UnavailableError if status >= 500 else _BY_STATUS.get(status, BadRequestError)
    return kind(message, status, code, param)


class Jobs:
    """`client.jobs`."""

    def __init__(self, client: Client):
        self._client = client

    def create(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None, dry_run: bool = False) -> Json:
        """Submit a job. With the same key the same submission twice is one job; without one, each call is a new job.
        `dry_run`: what it would do, instead."""
        return self._client.submit("/v1/jobs", spec, idempotency_key, dry_run)

    def list(self, **filters: Any) -> Json:
        """A page: `status` (one or several), `study`, `name`, `spec_hash`, `sort`, `order`, `after`, `limit`."""
        return self._client.ask("GET", "/v1/jobs", params=filters)

    def every(self, **filters: Any) -> Iterator[Json]:
        """All jobs that the filters of `list` let through."""
        return self._client.every("/v1/jobs", filters)

    def get(self, job_id: str) -> Json:
        """A job with its spec, attempts and checkpoints."""
        return self._client.ask("GET", _path(job_id))

    def events(self, job_id: str) -> Iterator[Json]:
        """The whole history so far, oldest first."""
        return self._client.every(f"{_path(job_id)}/events", {"order": "asc"})

    def stream(self, job_id: str, last: str | None = None) -> Iterator[Json]:
        """History and what comes, until the job has ended: events (`object: event`), and the job itself whenever its
        progress changed (`object: job`). `last`: `<job>:<seq>` of the last event that is known already."""
        status = None
        while status not in TERMINAL:  # a service that is stopped ends its streams, too
            for item in self._client.follow(f"{_path(job_id)}/stream", last):
                if item["object"] == "event":
                    last = f"{job_id}:{item['seq']}"
                else:
                    status = item["status"]
                yield item
            time.sleep(0.0 if status in TERMINAL else 0.5)

    def metrics(self, job_id: str, *names: str, after_step: int = 0, points: int = 1000) -> Json:
        """Series by name as [step, value] points."""
        params = {"name": list(names) or None, "after_step": after_step, "points": points}
        return self._client.ask("GET", f"{_path(job_id)}/metrics", params=params)

    def cancel(self, job_id: str) -> Json:
        """Cancel it; the same again is harmless. ConflictError where it has ended otherwise."""
        return self._client.ask("POST", f"{_path(job_id)}/cancel")

    def pause(self, job_id: str) -> Json:
        """Have it write a checkpoint and wait."""
        return self._client.ask("POST", f"{_path(job_id)}/pause")

    def resume(self, job_id: str) -> Json:
        """Let a paused job go on."""
        return self._client.ask("POST", f"{_path(job_id)}/resume")

    def wait(self, job_id: str, timeout_s: float | None = None, every_s: float = 1.0) -> Json:
        """The job once it has ended. TimeoutError after `timeout_s` seconds."""
        return _until(lambda: self.get(job_id), TERMINAL, timeout_s, every_s)


class Studies:
    """`client.studies`."""

    def __init__(self, client: Client):
        self._client = client

    def create(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None, dry_run: bool = False) -> Json:
        """Submit a study, all its jobs at once; keys and `dry_run` as for jobs."""
        return self._client.submit("/v1/studies", spec, idempotency_key, dry_run)

    def list(self, **filters: Any) -> Json:
        """A page: `after`, `limit`."""
        return self._client.ask("GET", "/v1/studies", params=filters)

    def get(self, study_id: str) -> Json:
        """A study with its cells and how far each job is."""
        return self._client.ask("GET", _path(study_id, "studies"))

    def table(self, study_id: str, task: str | None = None) -> Json:
        """What it shows so far: rows with intervals, comparisons, sentences. Where its test has several tasks (`tasks`)
        they are of one (default: the first), and `ranks` is over all."""
        params = {} if task is None else {"task": task}
        return self._client.ask("GET", f"{_path(study_id, 'studies')}/table", params=params)

    def report(self, study_id: str) -> Json:
        """`report` and `text` of what has succeeded, as the trainer writes them. ConflictError where nothing has."""
        return self._client.ask("GET", f"{_path(study_id, 'studies')}/report")

    def cancel(self, study_id: str) -> Json:
        """Cancel every job of it that has not ended."""
        return self._client.ask("POST", f"{_path(study_id, 'studies')}/cancel")


class Artifacts:
    """`client.artifacts`: what a job leaves in the store."""

    def __init__(self, client: Client):
        self._client = client

    def list(self, job_id: str) -> "list[str]":
        """Paths, relative to the job."""
        return [item["id"] for item in self._client.ask("GET", f"{_path(job_id)}/artifacts")["data"]]

    def download(self, job_id: str, path: str, to: str | os.PathLike[str]) -> Path:
        """Copy one to a local file, whole or not at all; returns where it is."""
        self._client.download(f"{_path(job_id)}/artifacts/{quote(path)}", target := Path(to))
        return target


class Datasets:
    """`client.datasets`."""

    def __init__(self, client: Client):
        self._client = client

    def create(
        self, name: str, *, uri: str | None = None, upload: str | os.PathLike[str] | None = None,
        idempotency_key: str | None = None,
    ) -> Json:  # fmt: skip
        """A new data set, validated from now on (see `wait`): `uri`, a reference to the service's data folders, or
        `upload`, a folder of manifests and recordings or an archive (zip, tar, tar.gz) of one."""
        if (uri is None) == (upload is None):
            raise ValueError("give uri or upload, one of them")
        headers = {"Idempotency-Key": idempotency_key or f"client-{uuid.uuid4().hex}"}
        body: Json = {"name": name, "uri": uri} if uri else {"name": name, "parts": True}
        made = self._client.ask("POST", "/v1/datasets", body=body, headers=headers, timeout_s=SUBMIT_S)
        if upload is None or made["status"] != "uploading":
            return made
        with _archive(Path(upload)) as archive:
            for number, part in enumerate(iter(lambda: archive.read(PART), b""), 1):
                self._client.ask(
                    "PUT", f"{_path(made['id'], 'datasets')}/parts/{number}", body=part, timeout_s=SUBMIT_S
                )
        return self._client.ask("POST", f"{_path(made['id'], 'datasets')}/complete")

    def list(self, **filters: Any) -> Json:
        """A page: `after`, `limit`."""
        return self._client.ask("GET", "/v1/datasets", params=filters)

    def get(self, dataset_id: str) -> Json:
        """A data set with the report of its validation."""
        return self._client.ask("GET", _path(dataset_id, "datasets"))

    def wait(self, dataset_id: str, timeout_s: float | None = None, every_s: float = 0.5) -> Json:
        """The data set once it is `ready` or `refused`. TimeoutError after `timeout_s` seconds."""
        return _until(lambda: self.get(dataset_id), ("ready", "refused"), timeout_s, every_s)


def _until(look: Callable[[], Json], statuses: Sequence[str], timeout_s: float | None, every_s: float) -> Json:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while (found := look())["status"] not in statuses:
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"{found['id']} is still {found['status']} after {timeout_s:g} s")
        time.sleep(every_s)
    return found


@contextlib.contextmanager
def _archive(place: Path) -> Iterator[BinaryIO]:
    """The archive, or a folder as one."""
    if not place.is_dir():
        with open(place, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="attune-") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:  # recordings are compressed already, or should be
            tar.add(place, arcname=".")
        file.seek(0)
        yield file


def _path(id_: str, kind: str = "jobs") -> str:
    return f"/v1/{kind}/{quote(id_, safe='')}"
