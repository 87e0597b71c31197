"""Jobs of data scheduling (arXiv 2601.12494): neutral bit for bit, resume, embeddings of the base's aligner."""

import json

import numpy as np
import pytest
import scheduled
import toy

from trainer.aligner import aligned
from trainer.checkpoint import newest
from trainer.context import prepare, prepared
from trainer.families import load
from trainer.gradients import SAMPLERS, at_checkpoints
from trainer.plan import plan_stage
from trainer.run import run
from trainer.run_study import run_study
from trainer.store import FolderStore
from trainer.study import StudySpec
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


def test_a_study_over_several_tasks_reports_each_and_their_ranks(world, tmp_path):
    fields = {k: v for k, v in scheduled.fields(base=str(world[0]), steps=4).items() if k != "name"}
    fields["evaluate"] = {**fields["evaluate"], "dev": "speech:dev", "text_twin": False}
    study = StudySpec.model_validate({
        **fields, "study": "schedules", "recipe": "data_scheduling", "controls": ["majority"],
        "grid": {"recipe.schedule": ["uniform", "ads"]},
        "also": [{"recipe.schedule": "ads", "recipe.diversity": "none"}],
    })  # fmt: skip
    report = run_study(study, tmp_path, [world[1]])
    assert report.document["tasks"] == {"tone": "tone/report.json", "say": "say/report.json"}
    rows = report.document["rows"]
    assert sorted(row["row"] for row in rows) == [
        "schedule=ads", "schedule=ads diversity=none", "schedule=uniform",
    ]  # fmt: skip
    assert {task: found["metric"] for task, found in rows[0]["tasks"].items()} == {"tone": "accuracy", "say": "wer"}
    for task in ("tone", "say"):
        own = json.loads((tmp_path / task / "report.json").read_text())
        assert {run["row"] for run in own["dev"]["rows"]} == {row["row"] for row in rows}
        assert [step for step, _ in own["dev"]["rows"][0]["curve"]] == [2, 4]
        assert {row["n"] for row in own["pooled"]} == {4 if task == "tone" else 2}


def test_gradients_are_compared_at_one_jobs_weights(world, tmp_path):
    resolved, corpus = job(world, "uniform", steps=4)
    store = FolderStore(tmp_path)
    run(resolved, store, corpus=corpus, threads=1)
    found = at_checkpoints(store, [2, 4], 3, [world[1]])
    assert list(found) == [2, 4]
    for at in found.values():
        assert set(at["samplers"]) == set(SAMPLERS)
        assert all(s["batches"] == 3 and s["mean"] > 0 and s["variance"] > 0 for s in at["samplers"].values())
        assert set(at["cosines"]) == {"tone, say", "tone, brief", "say, brief"}
        assert all(-1 <= c <= 1 for c in at["cosines"].values())
    assert found[2] != found[4]
    assert at_checkpoints(store, [4], 3, [world[1]])[4] == found[4]  # nothing was learnt
    with pytest.raises(ValueError, match="no checkpoint after step 3; there is one every 2 steps"):
        at_checkpoints(store, [3], 1, [world[1]])
    with pytest.raises(ValueError, match="--batches 0: must be 1 or more"):
        at_checkpoints(store, [2], 0, [world[1]])
    with pytest.raises(ValueError, match="no job lies there"):
        at_checkpoints(FolderStore(tmp_path / "nothing"), [2], 1, [world[1]])
