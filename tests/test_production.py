"""docker-compose.yml's service on real Postgres, Redis, S3 and a Ray cluster of two nodes, from an upload to a table:
what comes out is bit by bit what the command line makes of the same specs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from compose import ROOT, Compose

import attune.client
from trainer.ranks import Ranks, spawn
from trainer.resolve import Resolved
from trainer.result import Result
from trainer.run import run
from trainer.store import FolderStore, S3Store

pytest_plugins = ["gateway"]
pytestmark = [pytest.mark.process, pytest.mark.ray, pytest.mark.timeout(2400)]

JOB = {
    "name": "commands", "base": "s3://attune/bases/tiny", "language": "ar", "recipe": "sft", "steps": 4,
    "data": {"speech": "commands:train"}, "tuning": {"rank": 4, "encoder": "frozen"}, "global_batch": 4,
    "checkpoint_every": 2, "evaluate": {"text_twin": False, "limit": 8, "decode": {"max_new_tokens": 6}},
}  # fmt: skip
STUDY = {
    **{k: v for k, v in JOB.items() if k not in ("name", "recipe")}, "study": "schemes",
    "recipe": {"name": "limited_speech", "speech_presentations": 1},
    "grid": {"scheme": ["text_only", "direct_mix"], "seed": [1, 2]}, "controls": ["majority"],
}  # fmt: skip
SAME = {"scores", "shown", "tokens", "final_loss", "gradients", "outcome", "steps"}


def clips(folder: Path, first: int, each: int) -> Path:
    """A data set of some of the spoken commands: so many recordings of every label."""
    source = ROOT / "data" / "arabic_speech_commands"
    for split in ("train", "dev"):
        by_label = defaultdict(list)
        for line in (source / f"{split}.jsonl").read_text().splitlines():
            by_label[json.loads(line)["label"]].append(line)
        chosen = [line for lines in by_label.values() for line in lines[first : first + each]]
        for line in chosen:
            path = json.loads(line)["audio"]
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, folder / path)
        (folder / f"{split}.jsonl").write_text("\n".join(chosen) + "\n")
    return folder


class Production:
    """The service after a day's work: a study on an upload, a job that was watched, a job of two ranks."""

    def __init__(self, service: Compose, folder: Path):
        self.service, self.upload = service, clips(folder / "upload", 2, 1)
        self.client, self.other = service.clients
        self.dataset = self.client.datasets.create("mine", upload=self.upload)
        self.reference = self.client.datasets.create("taken over", uri="commands")
        for dataset in (self.dataset, self.reference):
            assert self.client.datasets.wait(dataset["id"], 600)["status"] == "ready"
        study = {**STUDY, "data": {"corpus": self.dataset["id"], "speech_fraction": 0.2}}
        self.study = self.client.studies.create(study)["id"]
        self.job = self.client.jobs.create({**JOB, "resources": {"gpus": 0}})["id"]
        self.watched: list[dict[str, Any]] = []
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        self.pair = self.client.jobs.create({**JOB, "resources": {"gpus": 2}})["id"]
        self.cells = [job["id"] for cell in self.client.studies.get(self.study)["cells"] for job in cell["jobs"]]
        for job_id in (*self.cells, self.job, self.pair):
            ended = self.client.jobs.wait(job_id, 1200)
            assert ended["status"] == "succeeded", f"{ended}\n{service.logs()}"
        watching.join(60)
        assert not watching.is_alive()

    def _watch(self) -> None:
        self.watched += self.other.jobs.stream(self.job)

    def store(self, job_id: str) -> S3Store:
        """What a job has left."""
        (place,) = {key.partition(f"{job_id}/")[0] for key in S3Store("attune", "store").list() if job_id in key}
        return S3Store("attune", f"store/{place}{job_id}")

    def resolved(self, job_id: str) -> Resolved:
        """What ran."""
        return Resolved.model_validate(self.client.jobs.get(job_id)["resolved"])


@pytest.fixture(scope="module")
def done(gateway, tmp_path_factory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("production")
    with pytest.MonkeyPatch.context() as patch, Compose(folder, gateway) as service:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, service.environment("api")[name])
        patch.setenv("ATTUNE_CACHE", str(folder / "here"))
        patch.setattr(attune.client, "PART", 1 << 16)
        for path in (ROOT / "models" / "tiny").iterdir():
            boto3.client("s3", region_name="us-east-1").upload_file(str(path), "attune", f"bases/tiny/{path.name}")
        clips(service.data / "commands", 0, 1)
        yield Production(service, folder)


def same(store: S3Store, alone: FolderStore) -> None:
    """The same files, and the same bits in those that hold no times."""
    service = ("job.json", "end.json")  # what only the database knew
    assert [key for key in store.list() if key not in service] == alone.list()
    bits = [key for key in alone.list() if re.search(r"plan/|adapter/|optimizer|predictions/|spec.json", key)]
    assert len(bits) > 5
    for key in bits:
        assert store.get(key) == alone.get(key), key
    found, expected = (Result.model_validate_json(s.get("final.json")) for s in (store, alone))
    assert found.model_dump(include=SAME) == expected.model_dump(include=SAME)


def test_the_command_line_makes_the_same_of_the_same_spec(done: Production, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({**JOB, "resources": {"gpus": 0}}))
    command = [sys.executable, "-m", "trainer", str(tmp_path / "job.json"), "--out", str(tmp_path / "alone")]
    ran = subprocess.run(
        [*command, "--data-root", str(done.service.data)], capture_output=True, text=True, timeout=1200,
        env={**os.environ, "ATTUNE_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    same(done.store(done.job), FolderStore(tmp_path / "alone"))


def test_jobs_on_an_upload_equal_runs_on_the_folder_that_was_sent(done: Production, tmp_path):
    (tmp_path / done.dataset["id"]).symlink_to(done.upload)
    for job_id in (done.cells[0], done.cells[3]):  # trained ones; the last is the majority
        alone = FolderStore(tmp_path / job_id)
        run(done.resolved(job_id), alone, roots=[tmp_path], threads=1)
        same(done.store(job_id), alone)


def _rank(ranks: Ranks, resolved: str, out: str, root: str) -> None:
    run(Resolved.model_validate_json(resolved), FolderStore(out), roots=[root], ranks=ranks, threads=1)


def test_two_ranks_of_ray_equal_two_processes_of_this_machine(done: Production, tmp_path):
    store = done.store(done.pair)
    assert Result.model_validate_json(store.get("final.json")).lineage.world_size == 2
    spawn(_rank, 2, store.get("spec.json").decode(), str(tmp_path), str(done.service.data))
    same(store, FolderStore(tmp_path))


def test_the_base_is_loaded_once_for_all_jobs_of_a_pool(done: Production):
    alike = (*done.cells, done.job)
    events = [event for job_id in alike for event in done.client.jobs.events(job_id)]
    loaded = [event for event in events if str(event["data"].get("message")).startswith("base s3://")]
    attempts = [attempt for job_id in alike for attempt in done.client.jobs.get(job_id)["attempt_list"]]
    assert (len(attempts), len({attempt["runner_id"] for attempt in attempts}), len(loaded)) == (6, 1, 1)


def test_a_listener_at_the_other_replica_heard_everything_once(done: Production):
    heard = [item["seq"] for item in done.watched if item["object"] == "event"]
    told = list(done.client.jobs.events(done.job))
    assert heard == [event["seq"] for event in told] == list(range(1, len(told) + 1))
    seen = [item for item in done.watched if item["object"] == "job"]
    assert seen[-1]["status"] == "succeeded"
    assert {"queued", "running"} <= {item["status"] for item in seen}
    points = done.client.jobs.metrics(done.job, "loss")["series"]["loss"]
    assert [step for step, _ in points] == [1, 2, 3, 4]


def test_the_table_and_a_comparison(done: Production):
    table = done.client.studies.table(done.study)
    rows = [(row["kind"], row["runs_done"], row["n"]) for row in table["rows"]]
    assert rows == [("cell", 2, 8), ("cell", 2, 8), ("control", 1, 8)]
    assert table["failed"] == []
    assert table["comparisons"]
    found = done.other.compare(done.cells[:2], done.cells[2:4])
    assert found["ci_low"] <= found["effect"] <= found["ci_high"]


def test_artifacts_come_from_s3_by_a_link_that_is_signed(done: Production, tmp_path):
    paths = done.client.artifacts.list(done.job)
    assert paths == done.store(done.job).list()
    kept = next(path for path in paths if path.endswith("adapter_model.safetensors"))
    got = done.other.artifacts.download(done.job, kept, tmp_path / "adapter")
    assert got.read_bytes() == done.store(done.job).get(kept)
    headers = {"Authorization": f"Bearer {done.service.key}"}
    link = httpx2.get(f"{done.client.url}/v1/jobs/{done.job}/artifacts/{kept}", headers=headers).headers["location"]
    assert link.startswith(f"{done.service.public}/attune/store/")
    part = httpx2.get(link, headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, got.read_bytes()[8:16])
    assert "X-Amz-Algorithm=AWS4" in link
    assert httpx2.get(link.replace("Signature=", "Signature=x")).status_code == 403
    assert httpx2.get(link.partition("?")[0]).status_code == 403


def test_recordings_are_heard_from_either_replica(done: Production):
    headers = {"Authorization": f"Bearer {done.service.key}"}
    for job_id in (done.job, done.cells[0]):
        page = done.client.ask("GET", f"/v1/jobs/{job_id}/predictions")
        assert len(page["data"]) == 8
        heard = [
            httpx2.get(f"{url}/v1/jobs/{job_id}/audio/{page['first_id']}", headers=headers) for url in done.service.urls
        ]
        assert [answer.status_code for answer in heard] == [200, 200]
        assert heard[0].content[:4] == b"RIFF"
        assert heard[0].content == heard[1].content


def test_what_ray_shows_to_everyone_has_no_secrets(done: Production):
    service = done.service
    shown = httpx2.get(f"{service.head.address}/api/jobs/", headers={"Authorization": f"Bearer {service.head.token}"})
    assert shown.json()
    assert not [name for name, secret in service.secrets.items() if secret in shown.text]
    assert httpx2.get(f"{service.head.address}/api/jobs/").status_code == 401


def test_the_doctor_finds_nothing(done: Production):
    said = done.service.do("api", "python", "-m", "attune.cli", "doctor", "--json")
    assert [finding for finding in json.loads(said) if not finding["ok"]] == []
