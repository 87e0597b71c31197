"""A whole job of every family: train on text and speech, write a checkpoint, leave, go on, score."""

import pytest
import toy
from tiny_families import TINY

from trainer.run import run
from trainer.store import FolderStore

CHANGES = {"voxtral": {"encoder_window": "trimmed"}}


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_job_trains_leaves_goes_on_and_is_scored(family, tmp_path):
    base = TINY[family].build(tmp_path / "base")
    data = toy.data(tmp_path / "data", train=8, test=3)
    job = {
        "family": family.split(":")[0],
        "steps": 4,
        "global_batch": 4,
        "checkpoint_every": 1,
        "recipe": "sft",
        **CHANGES.get(family, {}),
    }
    resolved, corpus = toy.resolved(base, data, **job)
    steps = []

    def leave_after_two():
        return "checkpoint_and_exit" if len(steps) >= 2 else "continue"

    def told(event):
        if event["kind"] == "step":
            steps.append(event["loss"])

    store = FolderStore(tmp_path / "store")
    first = run(resolved, store, corpus=corpus, threads=1, sink=told, control=leave_after_two)
    assert first.reason == "yielded"
    last = run(resolved, store, corpus=corpus, threads=1, sink=told)
    assert last.outcome == "succeeded"
    whole: list[dict] = []
    again = run(resolved, FolderStore(tmp_path / "undisturbed"), corpus=corpus, threads=1, sink=whole.append)
    assert [e["loss"] for e in whole if e["kind"] == "step"] == steps
    assert again.scores == last.scores
