"""The whole of `attune up`, Ray included: a job is trained and scored, another is interrupted by `attune down`."""

import os
import signal
from pathlib import Path

import httpx2
import pytest
import yaml
from ray_start import free_port, until
from test_local import Place

from attune.client import Client
from attune.instance import Instance
from db import jobs, metrics
from db.session import Database

ROOT = Path(__file__).parent.parent
JOB = {
    "name": "first", "base": "models/tiny", "language": "ar", "steps": 3, "global_batch": 4, "recipe": "sft",
    "data": {"speech": "data/arabic_speech_commands:train", "speech_per_label": 1}, "tuning": {"encoder": "frozen"},
    "evaluate": {"on": "data/arabic_speech_commands:dev", "limit": 10},
}  # fmt: skip


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_job_is_trained_and_another_outlives_the_service(tmp_path):
    place = Place(tmp_path / "instance", free_port())
    try:
        _up_and_down(place, tmp_path / "job.yaml")
    finally:
        place.attune("down", "--now")
        assert place.processes() == {}


def _up_and_down(place: Place, spec: Path) -> None:
    started = place.json("up", "--port", place.port)
    assert started["started"] == ["broker", "ray", "api", "worker", "beat"]
    instance = Instance(place.folder)
    assert httpx2.get(f"{instance.ray_address}/api/version").status_code == 401  # Ray listens on all addresses
    os.kill(place.pids()["ray"], signal.SIGKILL)
    until(lambda: "ray" not in Instance(place.folder).running)
    assert place.json("up")["started"] == ["ray", "worker"]
    assert [f for f in place.json("doctor") if not f["ok"]] == []

    spec.write_text(yaml.safe_dump(JOB))
    ran = place.attune("submit", spec, "--watch", cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr + instance.services["worker"].last_words()
    assert "succeeded, accuracy" in ran.stdout
    assert instance.sockets.stat().st_mode & 0o077 == 0  # jobs of Ray open its own folder to everybody

    spec.write_text(yaml.safe_dump({**JOB, "name": "long", "steps": 5000, "checkpoint_every": 5000}))
    submitted = place.attune("submit", spec, cwd=ROOT)
    job = submitted.stdout.strip()
    with Client(started["url"], started["key"]) as client:
        until(lambda: (client.jobs.get(job)["progress"]["step"] or 0) >= 2, 600)
    ended = place.json("down")
    assert set(ended["ended"]) == {"broker", "ray", "api", "worker", "beat"}
    assert ended["unfinished_jobs"] == 1
    assert place.processes() == {}
    assert not instance.sockets.exists()

    database = Database(instance.database_url)
    with database.read() as session:
        left = jobs.find(session, job)
        assert left is not None
        assert (left.status, left.faults) == ("queued", 0)
        assert [a.status for a in jobs.attempts(session, job)] == ["yielded"]
        assert metrics.checkpoints(session, job)[0].step >= 2
    database.close()
