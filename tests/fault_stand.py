"""What the tests of seeded faults share: one stand for all, the same job undisturbed, and how a job's end is judged.

A test module has the fixtures after `pytest_plugins = ["fault_stand"]`.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from postgres_start import started_postgres
from processes import until
from ray_start import started_ray
from stand import QUICK, ROOT, Stand

from attune.errors import UnavailableError
from db import events, jobs, metrics
from db.models import Job
from db.status import TERMINAL
from trainer.resolve import read_and_resolve
from trainer.result import Result
from trainer.run import run
from trainer.spec import parse_job
from trainer.store import FolderStore, Store

STEPS, EVERY = 160, 20
MIDDLE = 2 * EVERY + 3
"""A step with checkpoints behind it and none of its own."""
COMMANDS = f"{ROOT}/data/arabic_speech_commands"
SPEC = {
    "name": "fault", "base": f"{ROOT}/models/tiny", "language": "ar", "recipe": "sft", "steps": STEPS,
    "global_batch": 4, "checkpoint_every": EVERY, "data": {"speech": f"{COMMANDS}:train", "speech_per_label": 1},
    "tuning": {"rank": 4, "encoder": "frozen"}, "optimizer": {"peak_lr": 0.002},
    "evaluate": {"on": f"{COMMANDS}:dev", "text_twin": False, "limit": 6, "decode": {"max_new_tokens": 6}},
}  # fmt: skip
SAME = {"scores", "shown", "tokens", "final_loss", "gradients", "outcome", "steps"}
"""What of a result does not depend on how often it was interrupted."""
TIMES = ("seconds", "data_wait")


class Undisturbed(NamedTuple):
    """The job without service and without faults."""

    series: dict[str, list[float]]
    store: Store
    final: Result


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Undisturbed:
    store, told = FolderStore(tmp_path_factory.mktemp("undisturbed")), []
    final = run(read_and_resolve(parse_job(SPEC))[0], store, told.append, threads=1)
    steps = [metrics.flat({k: v for k, v in e.items() if k != "step"}) for e in told if e["kind"] == "step"]
    return Undisturbed({name: [s[name] for s in steps] for name in steps[0] if name not in TIMES}, store, final)


@pytest.fixture(scope="session")
def postgres_of_stand() -> Iterator[Any]:
    with started_postgres() as server:
        server.run("CREATE DATABASE attune")
        yield server


@pytest.fixture(scope="session")
def stand(tmp_path_factory, postgres_of_stand) -> Iterator[Stand]:
    """On Postgres; its runner stays warm from test to test."""
    settings = {"ATTUNE_DATABASE_URL": postgres_of_stand.url("attune")}
    with Stand(tmp_path_factory.mktemp("stand"), settings, runner={"ATTUNE_IDLE_EXIT_S": "600"}) as made:
        yield made


@pytest.fixture(scope="session")
def stand_of_two(tmp_path_factory) -> Iterator[Stand]:
    """On SQLite. Its Ray's head can start runners, but has no CPU for their ranks: nodes are for the tests to start.
    A runner goes on for two seconds without the API."""
    folder, runner = tmp_path_factory.mktemp("two"), {"ATTUNE_IDLE_EXIT_S": "60", "ATTUNE_DETACHED_MAX_S": "2"}
    with (
        started_ray(num_cpus=0, token="two", env={**QUICK, **runner}) as head,
        Stand(folder, head=head) as made,
    ):
        yield made


class Running:
    """A job on its way through the service, and a listener to its stream who never gives up."""

    def __init__(self, stand: Stand, **changes: Any):
        self.stand = stand
        self.id: str = stand.client.jobs.create({**SPEC, **changes})["id"]
        self.heard: list[int] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        while True:
            with contextlib.suppress(UnavailableError):
                last = f"{self.id}:{self.heard[-1]}" if self.heard else None
                for item in self.stand.client.jobs.stream(self.id, last):
                    if item["object"] == "event":
                        self.heard.append(item["seq"])
                return

    def row(self) -> Job:
        with self.stand.database.read() as session:
            found = jobs.find(session, self.id)
        assert found is not None
        return found

    def attempts(self) -> list[tuple[str, str | None]]:
        """(status, reason) of each."""
        with self.stand.database.read() as session:
            return [(a.status, a.reason) for a in jobs.attempts(session, self.id)]

    def until(self, *statuses: str, seconds: float = 300) -> None:
        until(lambda: self.row().status in statuses, seconds, self._said)

    def until_attempt(self, *statuses: str) -> None:
        """Its last attempt is at this."""
        until(lambda: self.attempts()[-1:] and self.attempts()[-1][0] in statuses, 300, self._said)

    def until_step(self, step: int) -> None:
        """The service knows of this step, and the job is not over yet."""
        until(lambda: self.row().summary.get("step", 0) >= step, 300, self._said)
        assert self.row().status == "running", self._said()

    def _said(self) -> str:
        row = self.row()
        return f"{row.status} {row.reason} {row.message} {row.summary} {self.attempts()}\n{self.stand.logs()}"

    def ends(self, status: str, *attempts: tuple[str, str | None], faults: int = 0, seconds: float = 300) -> None:
        """It comes to this end after these attempts; its history has no gap, and the listener has heard it once."""
        self.until(*TERMINAL, seconds=seconds)
        row = self.row()
        assert (row.status, self.attempts(), row.faults) == (status, list(attempts), faults), self._said()
        self._listener.join(60)
        assert not self._listener.is_alive()
        with self.stand.database.read() as session:
            history = list(events.after(session, self.id, 0, 10_000))
        assert [e.seq for e in history] == self.heard == list(range(1, row.last_seq + 1))
        assert [e.attempt_no for e in history if e.type == "attempt.ended"] == list(range(1, len(attempts) + 1))
        assert [s for e in history if (s := e.data.get("status")) in TERMINAL] == [status]

    def equals(self, undisturbed: Undisturbed) -> None:
        """Its curves, predictions, scores and weights are those of the undisturbed run, bit for bit."""
        found = self.stand.client.jobs.metrics(self.id, *undisturbed.series, points=10_000)["series"]
        for name, values in undisturbed.series.items():
            assert found[name] == [[step, value] for step, value in enumerate(values, 1)], name
        store, no = self.stand.store(self.id), len(self.attempts())
        final = Result.model_validate_json(store.get("final.json"))
        assert final.model_dump(include=SAME) == undisturbed.final.model_dump(include=SAME)
        assert final.attempt == no
        for key in ("adapter/adapter_model.safetensors", "optimizer.safetensors"):
            kept = [k for k in store.list("attempts/") if k.endswith(f"checkpoints/{STEPS}/{key}")]
            assert kept
            assert {store.get(k) for k in kept} == {undisturbed.store.get(f"attempts/1/checkpoints/{STEPS}/{key}")}
        answers = "predictions/speech.jsonl"
        assert store.get(f"attempts/{no}/{answers}") == undisturbed.store.get(f"attempts/1/{answers}")


DONE, LOST = ("succeeded", None), ("lost", "infrastructure")
