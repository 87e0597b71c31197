"""The runner as a job of a real Ray cluster, as the service starts it: one rank and two."""

import shlex
import sys

import pytest
import runner_process
from protocol_server import ProtocolServer
from ray_start import RayHead, until
from runner_process import SECRET

from trainer.lineage import cores
from trainer.result import Result
from trainer.run import run
from trainer.store import FolderStore
from worker.ray_jobs import RayJobs
from worker.reconcile import TAIL

pytest_plugins = ["ray_head"]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(result, store) of the job without Ray and without a service."""
    store = FolderStore(tmp_path_factory.mktemp("alone"))
    return run(runner_process.job()[1], store), store


@pytest.fixture
def server():
    found = ProtocolServer(SECRET)
    yield found
    found.close()


def ended(head: RayHead, server, store, name: str, ranks: int, **changes: str) -> tuple[str, str]:
    """(status, what it printed) of a runner that was submitted as the service does it."""
    told = {"ATTUNE_RUNNER_ID": name, "ATTUNE_WORLD_SIZE": str(ranks), **changes}
    with RayJobs(head.address, timeout_s=60) as ray:
        env = runner_process.environment(server, store, **told)
        ray.submit(name, f"exec {shlex.quote(sys.executable)} -m trainer.runner", env=env)
        until(lambda: (job := ray.info(name)) and job.ended, seconds=560, every=0.5)
        job, said = ray.info(name), ray.logs(name, 400) or ""
    assert job is not None
    assert SECRET not in said
    return job.status, said


@pytest.mark.parametrize(("ranks", "threads"), [(1, ""), (2, "1")])
def test_two_jobs_on_one_warm_runner(ray_head: RayHead, server, alone, tmp_path, ranks, threads):
    """The number of threads is the trainer's own, or what it was told; Ray would have every worker use one."""
    first = server.submit(runner_process.job()[1], "ftjob-1")
    second = server.submit(runner_process.job(seed=3)[1], "ftjob-2")
    status, said = ended(ray_head, server, tmp_path / "store", f"run-of-{ranks}", ranks, ATTUNE_THREADS=threads)
    assert status == "SUCCEEDED", said
    assert [a.steps() for a in (first, second)] == [[1, 2, 3]] * 2
    assert [(a.done or {})["outcome"] for a in (first, second)] == ["succeeded"] * 2
    notes = [e["message"] for a in (first, second) for e in a.events if e["kind"] == "note"]
    assert len([note for note in notes if note.startswith("base ")]) == 1
    store = FolderStore(tmp_path / "store" / "projects/p/jobs/ftjob-1")
    final = Result.model_validate_json(store.get("final.json"))
    assert (final.lineage.world_size, final.lineage.threads) == (ranks, int(threads or cores()))
    assert final.final_loss == pytest.approx(alone[0].final_loss, rel=1e-4)
    if ranks == 1:  # the same bits are claimed for the same number of ranks
        for key in ("checkpoints/3/adapter/adapter_model.safetensors", "predictions/speech.jsonl"):
            assert store.get(f"attempts/1/{key}") == alone[1].get(f"attempts/1/{key}")


def test_a_runner_whose_code_was_used_fails_and_is_not_started_again(ray_head: RayHead, server, tmp_path):
    server.codes.clear()
    status, said = ended(ray_head, server, tmp_path, "run-refused", 2)
    assert status == "FAILED"
    assert "its code was used before" in said
    assert [call.rsplit("/", 1)[1] for call in server.calls] == ["register"]


def test_a_runner_that_gets_no_workers_says_so_and_ends(ray_head: RayHead, server, tmp_path):
    """The head has two CPUs. Nothing was registered, so the service may start it again."""
    status, said = ended(ray_head, server, tmp_path, "run-too-large", 3, ATTUNE_START_S="3")
    assert status == "FAILED"
    assert "run-too-large: asks Ray for 3 worker(s) of one CPU each; free are 2 CPUs, 0 GPUs" in said
    # the end of the log is all that the service keeps
    assert "run-too-large: Ray did not start 3 worker(s) of one CPU each: " in said[-TAIL:]
    assert server.calls == []
