"""The runner as a process: equal to the command line bit by bit, and its secret is nowhere."""

import json

import pytest
import runner_process
from protocol_server import ProtocolServer
from runner_process import SECRET

from trainer.__main__ import main
from trainer.result import Result
from trainer.store import FolderStore

pytestmark = pytest.mark.process


@pytest.fixture
def server():
    found = ProtocolServer(SECRET)
    yield found
    found.close()


def test_a_runner_leaves_what_the_command_leaves(server, tmp_path, monkeypatch, capsys):
    spec, resolved = runner_process.job()
    attempt = server.submit(resolved, "ftjob-1")
    process = runner_process.start(server, tmp_path / "store")
    (tmp_path / "job.json").write_text(spec.model_dump_json(by_alias=True, exclude_unset=True))
    monkeypatch.setenv("ATTUNE_THREADS", "1")
    assert main([str(tmp_path / "job.json"), "--out", str(tmp_path / "alone")]) == 0
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "run-1: leaves: no work for 0 s" in said
    assert SECRET not in said

    alone, store = FolderStore(tmp_path / "alone"), FolderStore(tmp_path / "store" / "projects/p/jobs/ftjob-1")
    assert store.list() == alone.list()
    for key in ("attempts/1/checkpoints/3/adapter/adapter_model.safetensors", "attempts/1/predictions/speech.jsonl",
                "attempts/1/checkpoints/3/optimizer.safetensors", "plan/sft.npz", "spec.json"):  # fmt: skip
        assert store.get(key) == alone.get(key), key
    same = {"scores", "shown", "tokens", "final_loss", "gradients", "outcome"}
    final = Result.model_validate_json(store.get("final.json"))
    assert final.model_dump(include=same) == Result.model_validate_json(alone.get("final.json")).model_dump(
        include=same
    )

    kept = [json.loads(line) for line in store.get("attempts/1/log/2-3.jsonl").splitlines()]
    sent = [event for event in attempt.events if event["kind"] == "step"]
    assert [event["loss"] for event in sent[2:]] == [event["loss"] for event in kept]
    assert attempt.done["result_sha256"] == store.digest("final.json")[1]


def test_a_code_that_was_used_is_refused_without_being_said(server, tmp_path):
    server.codes.clear()
    process = runner_process.start(server, tmp_path / "store")
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 1
    assert said == "run-1: the service does not know this runner, or its code was used before\n"
