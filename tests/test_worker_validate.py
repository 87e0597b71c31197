"""Validation and finalization: from a spec to a queued job, from a result to a final status, each once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import specs
from db_rows import a_project, a_runner, claim, held, row, status
from processes import Blocked, until

from db import bases, events, jobs, keys, leases, outbox
from db.attempts import done
from db.settings import Settings
from db.turn import LONG
from trainer.resolve import Resolved
from trainer.result import Result, Score
from trainer.store import FolderStore
from worker import validate as validation
from worker.finalize import finalize
from worker.validate import TRIES, validate, validate_waiting

pytest_plugins = ["databases"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = specs.corpus_folder(tmp_path / "data" / "turns")
    for path in folder.glob("*.jsonl"):  # fixed recordings, so that fingerprints are those of bytes
        for line in path.read_text().splitlines():
            if name := json.loads(line)["audio"]:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        database_url="sqlite:///unused", broker_url="redis://nowhere", store=str(tmp_path / "store"),
        data=str(tmp_path / "data"), cache=str(tmp_path / "cache"), code="c1",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def submit(database, **fields: Any) -> str:
    spec = specs.job(Path("turns"), **fields)
    with database.write() as session:
        project = keys.project(session, "default")
        return jobs.create(session, project.id, spec, name="t", priority=0, retries=2, actor="user:key-1").id


def history(database, job: str) -> list[str]:
    """Types of the job's events; of changes of its status where it came."""
    with database.read() as session:
        found = events.after(session, job)
    return [e.data["status"] if e.type == "job.status" else e.type for e in found]


def wakes(database) -> list[tuple[str, str]]:
    sent: list[tuple[str, str]] = []
    outbox.relay(database, lambda wake: sent.append((wake.topic, wake.key)))
    return sent


# ---------------------------------------------------------------------------------- validation


def test_a_good_job_is_queued_as_what_will_run(database, settings, store, corpus):
    job = submit(database)
    assert validate(database, settings, store, job)
    found = row(database, job)
    assert (found.status, len(found.pool)) == ("queued", 32)
    assert Resolved.model_validate(found.resolved).hash == found.spec_hash
    assert history(database, job) == ["job.created", "validation.started", "queued"]
    assert wakes(database) == [("validate", job), ("scale", found.pool)]


def test_validating_again_does_nothing(database, settings, store, corpus):
    job = submit(database)
    assert [validate(database, settings, store, job) for _ in range(3)] == [True, False, False]
    assert history(database, job) == ["job.created", "validation.started", "queued"]


def test_jobs_of_one_base_share_a_pool_and_full_tuning_has_its_own(database, settings, store, corpus):
    made = [submit(database), submit(database, steps=3), submit(database, tuning={"method": "full", "encoder": "full"})]
    assert validate_waiting(database, settings, store) == 3
    pools = [row(database, job).pool for job in made]
    assert pools[0] == pools[1] != pools[2]


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        ({"steps": -1}, "invalid_spec", "steps"),
        ({"base": "models/none"}, None, ""),
        ({"data": {"corpus": "nowhere"}}, "invalid_data", "data.corpus"),
        ({"data": {"corpus": "turns"}, "evaluate": {"on": "turns:train"}}, "invalid_data", "is in the test set too"),
        ({"evaluate": {"metric": "bleurt"}}, "invalid_spec", "unknown metric"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(database, settings, store, corpus, fields, reason, says):
    job = submit(database, **fields)
    validate(database, settings, store, job)
    found = row(database, job)
    if reason is None:  # a hub id that cannot be asked now is left to the runner
        assert found.status == "queued"
    else:
        assert (found.status, found.reason) == ("failed", reason)
        assert says in found.message


def test_a_base_that_is_not_allowed_is_refused(database, settings, store, corpus):
    job, project = submit(database), a_project(database)
    with database.write() as session:
        bases.allow(session, project, "some/base", None, "Apache-2.0")
    validate(database, settings, store, job)
    found = row(database, job)
    assert (found.status, found.reason) == ("failed", "invalid_spec")
    assert "ask an administrator" in found.message


def test_the_bases_of_another_project_are_its_own_business(database, settings, store, corpus):
    job, other = submit(database), a_project(database, "another")
    with database.write() as session:
        bases.allow(session, other, "some/base", None, "Apache-2.0")
    validate(database, settings, store, job)
    assert status(database, job) == "queued"


def test_paused_meanwhile_it_comes_to_rest_paused(database, settings, store, corpus):
    job = submit(database)
    with database.write() as session:
        jobs.order(session, jobs.find(session, job), "pause", "user:key-1")  # type: ignore[arg-type]
    assert validate(database, settings, store, job)
    assert status(database, job) == "paused"


def test_cancelled_meanwhile_it_stays_so(database, settings, store, corpus):
    job = submit(database)
    with database.write() as session:
        jobs.order(session, jobs.find(session, job), "cancel", "user:key-1")  # type: ignore[arg-type]
    assert not validate(database, settings, store, job)
    assert status(database, job) == "cancelled"


class Volume:
    """A base whose weights lie on a volume that comes and goes."""

    def __init__(self, folder: Path):
        self.base, self.weights = folder / "base", folder / "volume" / "model.safetensors"
        self.base.mkdir()
        (self.base / "config.json").write_text("{}")
        (self.base / "model.safetensors").symlink_to(self.weights)

    def comes(self) -> None:
        self.weights.parent.mkdir()
        self.weights.write_bytes(b"weights")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


def test_a_fault_that_is_not_the_jobs_is_tried_again_later_each_time(simulated, clock, settings, store, corpus, volume):
    job = submit(simulated, base=str(volume.base))
    waits = {0: 1, 29: 0, 2: 1, 59: 0, 1: 0}
    for seconds, tried in waits.items():
        clock.at += seconds
        before = len(history(simulated, job))
        assert validate_waiting(simulated, settings, store) == 0
        assert len(history(simulated, job)) == before + 2 * tried, seconds
    assert status(simulated, job) == "validating"
    volume.comes()
    clock.at += 1
    assert validate_waiting(simulated, settings, store) == 1
    tries = ["validation.started", "validation.failed"] * 2
    assert history(simulated, job) == ["job.created", *tries, "validation.started", "queued"]


def test_after_five_tries_the_job_fails_with_what_was_wrong(simulated, clock, settings, store, corpus, volume):
    job = submit(simulated, base=str(volume.base))
    for _ in range(TRIES):
        validate_waiting(simulated, settings, store)
        clock.at += 1000
    found = row(simulated, job)
    assert (found.status, found.reason) == ("failed", "infrastructure")
    assert "FileNotFoundError" in found.message


def test_a_job_whose_worker_always_dies_ends_too(simulated, clock, settings, store, corpus):
    job = submit(simulated)
    for n in range(TRIES):
        with simulated.write() as session:  # as far as a worker gets that is killed
            leases.take(session, f"validate:{job}", f"worker {n}", LONG[0])
            assert jobs.validating(session, job) == n + 1
        clock.at += LONG[0] + 1
    assert validate_waiting(simulated, settings, store) == 1
    found = row(simulated, job)
    assert (found.status, found.reason) == ("failed", "infrastructure")
    assert "5 times" in found.message


def test_a_turn_that_another_has_is_left_to_it_until_it_runs_out(simulated, clock, settings, store, corpus):
    job = submit(simulated)
    with simulated.write() as session:
        leases.take(session, f"validate:{job}", "a worker that was killed", LONG[0])
    assert validate_waiting(simulated, settings, store) == 0
    assert not validate(simulated, settings, store, job)
    clock.at += LONG[0] + 1
    assert validate_waiting(simulated, settings, store) == 1
    assert status(simulated, job) == "queued"


def test_a_tick_does_not_wait_for_a_long_validation(database, settings, store, corpus):
    slow = Blocked(corpus / "audio" / "train-0.wav")
    job = submit(database)
    validation.tick(database, settings, store, within_s=0.01)
    until(lambda: "validation.started" in history(database, job))
    assert validate_waiting(database, settings, store) == 0  # another worker leaves it alone
    assert status(database, job) == "validating"
    slow.release(b"at last")
    until(lambda: status(database, job) == "queued")
    assert history(database, job) == ["job.created", "validation.started", "queued"]


# ---------------------------------------------------------------------------------- finalization


def result(**changes: Any) -> bytes:
    numbers = {"value": 0.75, "ci_low": 0.5, "ci_high": 0.9, "n": 4}
    score = Score(task="turn", modality="speech", metric="accuracy", method="m", **numbers)
    plain = {"name": "t", "outcome": "succeeded", "attempt": 1, "attempts": [1], "steps": 10, "planned_steps": 10}
    return Result(**{**plain, "metric": "accuracy", "scores": [score], **changes}).model_dump_json().encode()


def ended(database, outcome: str, reason: str | None = None, sha256: str | None = None):
    """A job whose attempt has come to this end, and the folder of its results."""
    mine = held(database)
    with database.write() as session:
        done(session, mine.job, mine.no, mine.token, 1, [], outcome, reason, "", sha256)  # type: ignore[arg-type]
    assert status(database, mine.job) == "finalizing"
    return mine.job, f"projects/{row(database, mine.job).project_id}/jobs/{mine.job}"


def test_a_result_becomes_what_lists_show(database, store):
    job, at = ended(database, "succeeded", sha256=hashlib.sha256(result()).hexdigest())
    store.put(f"{at}/final.json", result())
    assert finalize(database, store, job)
    found = row(database, job)
    assert (found.status, found.reason) == ("succeeded", None)
    assert found.summary["metric"] == "accuracy"
    (score,) = found.summary["scores"]
    assert score == {"task": "turn", "modality": "speech", "metric": "accuracy", "value": 0.75, "ci_low": 0.5,
                     "ci_high": 0.9, "n": 4}  # fmt: skip


def test_finalizing_again_changes_nothing(database, store):
    job, at = ended(database, "succeeded")
    store.put(f"{at}/final.json", result())
    assert [finalize(database, store, job) for _ in range(3)] == [True, False, False]
    assert history(database, job).count("succeeded") == 1
    assert not finalize(database, store, "ftjob-none")


def test_a_failed_job_says_why(database, store):
    job, at = ended(database, "failed", "out_of_memory")
    store.put(f"{at}/attempts/1/result.json", result(outcome="failed", reason="out_of_memory", scores=[], steps=4))
    assert finalize(database, store, job)
    found = row(database, job)
    assert (found.status, found.reason) == ("failed", "out_of_memory")
    assert (found.summary["step"], found.summary["scores"]) == (4, [])


def test_a_job_that_left_no_result_ends_all_the_same(database, store):
    job, _ = ended(database, "failed", "invalid_data")
    assert finalize(database, store, job)
    assert row(database, job).reason == "invalid_data"
    assert "result.missing" not in history(database, job)


OTHER = hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize(("written", "sha256"), [(None, None), (b"not json", None), (b"{}", None), (result(), OTHER)])
def test_a_result_that_is_not_there_or_not_the_runners_is_said_in_the_history(database, store, written, sha256):
    job, at = ended(database, "succeeded", sha256=sha256)
    if written is not None:
        store.put(f"{at}/final.json", written)
    assert finalize(database, store, job)
    assert history(database, job)[-2:] == ["result.missing", "succeeded"]
    assert "scores" not in row(database, job).summary


class Away(FolderStore):
    """A store that cannot be asked."""

    def get(self, key: str) -> bytes:
        raise ConnectionError("no answer")


def test_a_store_that_is_away_is_waited_for(database, store, tmp_path):
    job, at = ended(database, "succeeded")
    store.put(f"{at}/final.json", result())
    with pytest.raises(ConnectionError):
        finalize(database, Away(tmp_path / "store"), job)
    assert status(database, job) == "finalizing"
    assert finalize(database, store, job)
    assert row(database, job).summary["metric"] == "accuracy"


def test_after_a_retry_the_last_attempts_result_counts(database, store):
    mine = held(database)
    mine.end()
    again = claim(database, a_runner(database))
    assert again is not None
    with database.write() as session:
        done(session, mine.job, 2, again.token, 1, [], "failed", "diverged")
    at = f"projects/{row(database, mine.job).project_id}/jobs/{mine.job}"
    store.put(f"{at}/attempts/1/result.json", result(steps=1))
    store.put(f"{at}/attempts/2/result.json", result(outcome="failed", steps=2))
    assert finalize(database, store, mine.job)
    assert row(database, mine.job).summary["step"] == 2
