"""Jobs over REST against a real Ray head; lost answers by a small HTTP server that stands between."""

import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray_start import RayHead, free_port, started_ray, until

from worker.ray_jobs import RayJob, RayJobs, RayRefusedError, RayUnavailableError

pytest_plugins = ["ray_head"]

PATIENCE = 60
"""Seconds for one request: the machine may be busy, and a head's first submission is slow."""


@pytest.fixture
def ray(ray_head: RayHead) -> Iterator[RayJobs]:
    with RayJobs(ray_head.address, timeout_s=PATIENCE) as jobs:
        yield jobs


def _job(ray: RayJobs, submission_id: str) -> RayJob:
    job = ray.info(submission_id)
    assert job is not None
    return job


def _ended(ray: RayJobs, submission_id: str) -> RayJob:
    until(lambda: _job(ray, submission_id).ended)
    return _job(ray, submission_id)


def _python(code: str) -> str:
    return f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"


def _add_line(file: Path) -> str:
    return f"echo ran >> {shlex.quote(str(file))}"


@pytest.mark.ray
def test_a_job_is_submitted_told_listed_and_read(ray: RayJobs, ray_head: RayHead):
    assert ray.version().startswith("2.")
    ray.submit("run-good", "echo one; echo $WORD; echo $RAY_JOB_STOP_WAIT_TIME_S", env={"WORD": "two"})
    ray.submit("run-bad", "echo why; exit 3", env={}, metadata={"pool": "p1"})
    foreign = {"submission_id": "foreign", "entrypoint": "true", "metadata": {"attune": "0"}}
    assert httpx2.post(f"{ray_head.address}/api/jobs/", json=foreign, timeout=PATIENCE).status_code == 200

    good, bad = _ended(ray, "run-good"), _ended(ray, "run-bad")
    assert (good.status, bad.status) == ("SUCCEEDED", "FAILED")
    assert "exit code 3" in bad.message
    assert "why" in bad.message
    # Ray writes its own line into the same file through a buffer, so it may come after what the command printed.
    lines = (ray.logs("run-good") or "").splitlines(keepends=True)
    assert [line for line in lines if line in ("one\n", "two\n", "60\n")] == ["one\n", "two\n", "60\n"]
    assert ray.logs("run-good", tail=2) == "".join(lines[-2:])
    assert ray.logs("run-good", tail=0) == ""

    listed = {job.submission_id: job for job in ray.list()}
    assert {"run-good", "run-bad"} <= set(listed)
    assert "foreign" not in listed
    assert listed["run-bad"].metadata == {"attune": "1", "pool": "p1"}
    assert _ended(ray, "foreign").status == "SUCCEEDED"


@pytest.mark.ray
def test_one_id_is_one_run_however_often_it_is_submitted(ray: RayJobs, tmp_path: Path):
    command = _add_line(tmp_path / "runs")
    with ThreadPoolExecutor(8) as pool:
        for answer in [pool.submit(ray.submit, "run-once", command, env={}) for _ in range(8)]:
            answer.result()
    assert _ended(ray, "run-once").status == "SUCCEEDED"
    ray.submit("run-once", command, env={})
    assert _job(ray, "run-once").status == "SUCCEEDED"
    assert (tmp_path / "runs").read_text() == "ran\n"


@pytest.mark.ray
def test_a_stopped_job_may_take_longer_than_rays_three_seconds(ray: RayJobs, tmp_path: Path):
    code = f"""
import pathlib, signal, time
here = pathlib.Path({str(tmp_path)!r})
def leave(*_):
    time.sleep(5)
    (here / "saved").touch()
    raise SystemExit
signal.signal(signal.SIGTERM, leave)
(here / "up").touch()
time.sleep(600)
"""
    ray.submit("run-graceful", _python(code), env={})
    until((tmp_path / "up").exists)
    assert ray.delete("run-graceful") is False
    assert ray.stop("run-graceful") == "stopping"
    assert _ended(ray, "run-graceful").status == "STOPPED"
    assert (tmp_path / "saved").exists()

    assert ray.stop("run-graceful") == "ended"
    assert ray.delete("run-graceful") is True
    assert ray.info("run-graceful") is None


@pytest.mark.ray
def test_the_stop_of_a_pending_job_is_called_pending_and_ends_it_once_it_starts(ray: RayJobs, tmp_path: Path):
    up, finished = tmp_path / "up", tmp_path / "finished"
    ray.submit("run-holds", f"touch {up}; exec sleep 600", env={}, num_cpus=2)
    until(up.exists)
    ray.submit("run-waits", f"sleep 600; touch {finished}", env={}, num_cpus=2)
    ray.submit("run-never", "true", env={}, num_cpus=64)

    for waiting in ("run-waits", "run-never"):
        assert ray.stop(waiting) == "pending"
        assert ray.delete(waiting) is False
        assert _job(ray, waiting).status == "PENDING"
    assert ray.stop("run-holds") == "stopping"
    assert _ended(ray, "run-holds").status == "STOPPED"
    assert _ended(ray, "run-waits").status == "STOPPED"
    assert not finished.exists()
    assert _job(ray, "run-never").status == "PENDING"


@pytest.mark.ray
def test_an_unknown_id_is_no_error(ray: RayJobs):
    assert ray.info("run-nobody") is None
    assert ray.logs("run-nobody") is None
    assert ray.stop("run-nobody") == "unknown"
    assert ray.delete("run-nobody") is True


@pytest.mark.ray
def test_a_token_is_sent_and_its_lack_is_told():
    with started_ray(num_cpus=1, token="open-sesame") as head:
        for token, what in ((None, "no token"), ("guessed-it", "wrong token")):
            with RayJobs(head.address, token, PATIENCE) as ray:
                for call in _every_call(ray):
                    with pytest.raises(RayRefusedError, match=f"{what}.*ATTUNE_RAY_TOKEN") as refused:
                        call()
                    assert "guessed-it" not in str(refused.value)
        with RayJobs(head.address, "open-sesame", PATIENCE) as ray:
            assert ray.info("run-x") is None
            ray.submit("run-t", "true", env={})
            assert _ended(ray, "run-t").status == "SUCCEEDED"


Answer = Callable[[BaseHTTPRequestHandler, bytes], tuple[int, bytes] | None]
"""What a server says to a request with this body, a status and a body; where it is None, it hangs up."""


class _Server(BaseHTTPRequestHandler):
    def __init__(self, answer: Answer, *given: Any):
        self.answer = answer
        super().__init__(*given)

    def handle_any(self):
        answer = self.answer(self, self.rfile.read(int(self.headers["Content-Length"] or 0)))
        if answer is None:
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

    def log_message(self, *_):
        pass


@contextmanager
def _serving(answer: Answer) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Server, answer))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answering(code: int, body: bytes):
    return _serving(lambda *_: (code, body))


def _between(ray_address: str | None, reply: int | None):
    """Stands before Ray and passes everything on, but answers submissions with `reply`, or hangs up on them.

    Without `ray_address` nothing is passed on, and every question is answered as Ray does where there is no such job.
    """

    def answer(asked: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes] | None:
        if asked.command == "POST":
            if ray_address:
                httpx2.post(ray_address + asked.path, content=body, timeout=PATIENCE)
            return (reply, b"Traceback\nValueError: lost\n.\n") if reply else None
        if ray_address is None:
            return 404, b"Job run-x does not exist"
        passed = httpx2.get(ray_address + asked.path, timeout=PATIENCE)
        return passed.status_code, passed.content

    return _serving(answer)


@pytest.mark.ray
@pytest.mark.parametrize("reply", [None, 500, 502])
def test_a_submission_whose_answer_is_lost_is_made_once(ray: RayJobs, ray_head: RayHead, tmp_path: Path, reply):
    name = f"run-lost-{reply}"
    with _between(ray_head.address, reply) as address, RayJobs(address, timeout_s=PATIENCE) as hampered:
        hampered.submit(name, _add_line(tmp_path / "runs"), env={})
        hampered.submit(name, _add_line(tmp_path / "runs"), env={})
    assert _ended(ray, name).status == "SUCCEEDED"
    assert (tmp_path / "runs").read_text() == "ran\n"


@pytest.mark.parametrize(("reply", "what"), [(None, "no answer"), (500, "HTTP 500: ValueError: lost")])
def test_a_submission_that_ray_never_saw_is_to_be_made_again(reply, what):
    with (
        _between(None, reply) as address,
        RayJobs(address, timeout_s=PATIENCE) as ray,
        pytest.raises(RayUnavailableError, match=what),
    ):
        ray.submit("run-unseen", "true", env={})


def test_a_request_that_ray_cannot_read_is_not_repeated():
    with (
        _between(None, 400) as address,
        RayJobs(address, timeout_s=PATIENCE) as ray,
        pytest.raises(RayRefusedError, match="HTTP 400"),
    ):
        ray.submit("run-odd", "true", env={})


def _every_call(ray: RayJobs) -> list[Callable[[], object]]:
    return [
        ray.version,
        ray.list,
        lambda: ray.submit("run-x", "true", env={}),
        lambda: ray.info("run-x"),
        lambda: ray.stop("run-x"),
        lambda: ray.delete("run-x"),
        lambda: ray.logs("run-x"),
    ]


def test_a_ray_that_hangs_is_given_up():
    """It takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with RayJobs(address, timeout_s=0.1) as ray:
            for call in _every_call(ray):
                with pytest.raises(RayUnavailableError, match="no answer"):
                    call()


def test_without_ray_the_error_says_where_to_look():
    with RayJobs(f"http://127.0.0.1:{free_port()}/", timeout_s=PATIENCE) as ray:
        for call in _every_call(ray):
            with pytest.raises(RayUnavailableError, match=f"{ray.address}.*ATTUNE_RAY_ADDRESS"):
                call()


def test_a_gateways_404_is_not_taken_for_rays():
    """A reconciler that took it so would think every runner gone."""
    with _answering(404, b"default backend - 404") as address, RayJobs(address, timeout_s=PATIENCE) as ray:
        for call in _every_call(ray):
            with pytest.raises(RayRefusedError, match=r"HTTP 404: default backend.*ATTUNE_RAY_ADDRESS"):
                call()


def test_what_is_not_json_is_not_ray():
    with (
        _answering(200, b"<html>hello</html>") as address,
        RayJobs(address, timeout_s=PATIENCE) as ray,
        pytest.raises(RayRefusedError, match=r"<html>.*ATTUNE_RAY_ADDRESS"),
    ):
        ray.version()


def test_what_ray_would_refuse_later_is_refused_at_once():
    with pytest.raises(ValueError, match=r"'127\.0\.0\.1:6379'.*ATTUNE_RAY_ADDRESS"):
        RayJobs("127.0.0.1:6379")
    with RayJobs("http://127.0.0.1:8265") as ray, pytest.raises(ValueError, match=r"working_dir '/srv/code'.*s3://"):
        ray.submit("run-x", "true", env={}, working_dir="/srv/code")
