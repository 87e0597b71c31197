"""Jobs of data scheduling (arXiv 2601.12494): neutral bit for bit, resume, embeddings of the base's aligner."""

import numpy as np
import pytest
import scheduled
import toy

from trainer.aligner import aligned
from trainer.checkpoint import newest
from trainer.context import prepare, prepared
from trainer.families import load
from trainer.plan import plan_stage
from trainer.run import run
from trainer.store import FolderStore
from trainer.views import Recordings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), scheduled.manifests(toy.data(folder / "data", train=24))


def job(world, schedule="ads", **fields):
    recipe = {"name": "data_scheduling", "schedule": schedule}
    return scheduled.resolved(world[1], base=str(world[0]), **{"recipe": recipe, **fields})


def test_in_proportion_to_rows_it_is_sft_bit_for_bit(world, tmp_path):
    made = {}
    neutral = {"name": "data_scheduling", "schedule": "temperature", "tau": 1}
    for name, recipe in (("sft", "sft"), ("neutral", neutral)):
        resolved, corpus = job(world, recipe=recipe, steps=4)
        store = FolderStore(tmp_path / name)
        result = run(resolved, store, corpus=corpus, threads=1)
        files = [key for key in store.list("attempts/1/checkpoints/4/") if "json" not in key]
        made[name] = [store.get(key) for key in files], result.final_loss, result.scores
        assert files
    assert made["sft"] == made["neutral"]


@pytest.mark.parametrize("schedule", scheduled.SCHEDULES)
def test_a_job_of_every_schedule_goes_on_where_it_stopped(world, tmp_path, schedule):
    """To its scores; interrupted, the same bits; its plan is that of the stored embeddings."""
    resolved, corpus = job(world, schedule, steps=5)
    whole, halves = FolderStore(tmp_path / "whole"), FolderStore(tmp_path / "halves")
    result = run(resolved, whole, corpus=corpus, threads=1)
    told = iter(["continue"] * 2 + ["checkpoint_and_exit"] * 9)
    stopped = run(resolved, halves, corpus=corpus, threads=1, control=lambda: next(told))
    again = run(resolved, halves, corpus=corpus, threads=1)
    assert (result.outcome, stopped.outcome, again.outcome) == ("succeeded", "yielded", "succeeded")
    assert result.scores == again.scores
    assert newest(whole, print).adapter == newest(halves, print).adapter
    embedded = [key for key in whole.list("inputs/") if key.endswith("vectors.npz")]
    assert embedded == (["inputs/ads/vectors.npz"] if "ads" in schedule else [])


def test_embeddings_are_the_aligners_stored_once_and_used_as_stored(world, tmp_path):
    resolved, corpus = job(world)
    model, store, calls = load(world[0]), FolderStore(tmp_path), []

    def aligner(rows, modality):
        calls.append(modality)
        return aligned(model, Recordings(16000), rows, modality)

    prepare(resolved, corpus, store, store.put, None, aligner)
    assert calls == ["text", "speech"]
    (plan,), _ = prepared(resolved, store)
    with np.load(store.path("inputs/ads/vectors.npz")) as stored:
        given = {name: stored[name] for name in stored.files}
    assert {name: table.dtype for name, table in given.items()} == {"text": np.int16, "speech": np.int16}
    lengths = np.linalg.norm(given["speech"].astype(float), axis=1)
    assert lengths == pytest.approx(32767, rel=1e-3)
    assert plan.sha256 == plan_stage(resolved, 0, corpus, given).sha256

    row = corpus.sources["speech"].rows[0]
    wave = Recordings(16000).wave(row)
    want = model.project(model.encode([wave])).mean(0).detach().numpy()
    assert given["speech"][0] == pytest.approx(want / np.linalg.norm(want) * 32767, abs=2)
