"""Baselines as jobs: nothing is trained, and all that a job leaves is there."""

import pytest
import specs
import toy

from trainer.fields import SpecError
from trainer.predictions import read_predictions
from trainer.ranks import spawn
from trainer.resolve import Resolved, read_and_resolve
from trainer.result import Result
from trainer.run import run
from trainer.spec import parse_job
from trainer.store import FolderStore

RECIPES = ("majority", "untuned", "linear_probe")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def a_baseline(world, recipe: str, **changes) -> Resolved:
    base, data = world
    job = {
        "name": recipe, "base": str(base), "language": "en", "data": {"text": "text", "speech": "speech"},
        "recipe": recipe, "evaluate": {"decode": {"max_new_tokens": 4}}, **changes,
    }  # fmt: skip
    return read_and_resolve(parse_job(job), [data])[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_baseline_runs_like_any_job(world, tmp_path, recipe):
    store, events = FolderStore(tmp_path), []
    resolved = a_baseline(world, recipe)
    made = run(resolved, store, events.append, roots=[world[1]], threads=1)
    assert (made.outcome, made.steps, made.planned_steps, made.checkpoint) == ("succeeded", 0, 0, None)
    assert made.lineage is not None
    assert made.lineage.spec_hash == resolved.hash
    assert Result.model_validate_json(store.get("final.json")) == made
    found = read_predictions(store, "attempts/1")
    # only the base itself can be asked in two ways
    assert set(found) == ({"speech", "text"} if recipe == "untuned" else {"speech"})
    assert [row["utterance"] for row in found["speech"]] == [f"test-{i}" for i in range(9)]
    assert {score.metric for score in made.scores} >= {"accuracy", "macro_f1"}
    assert [e["state"] for e in events if e["kind"] == "state"] == ["loading", "evaluating"]
    assert run(resolved, store, roots=[world[1]]) == made  # finished: read, not run again


def test_what_they_answer_is_what_they_are(world, tmp_path):
    """Tones are told apart by a linear reader of any encoder; the majority says one thing."""
    scores = {}
    for recipe in ("majority", "linear_probe"):
        made = run(a_baseline(world, recipe), FolderStore(tmp_path / recipe), roots=[world[1]], threads=1)
        scores[recipe] = next(s.value for s in made.scores if s.metric == "accuracy")
    assert scores["majority"] == pytest.approx(1 / 3)
    assert scores["linear_probe"] > 0.6


def in_two(ranks, resolved: Resolved, data: str, out: str):
    run(resolved, FolderStore(out), roots=[data], ranks=ranks, threads=1)


def test_two_ranks_answer_as_one(world, tmp_path):
    resolved = a_baseline(world, "linear_probe")
    alone, shared = FolderStore(tmp_path / "one"), FolderStore(tmp_path / "two")
    run(resolved, alone, roots=[world[1]], threads=1)
    spawn(in_two, 2, resolved, str(world[1]), str(shared.root), method="fork")
    key = "attempts/1/predictions/speech.jsonl"
    assert shared.get(key) == alone.get(key)


def test_the_hash_tells_them_apart_and_knows_what_they_learn_from(world):
    whole = {recipe: a_baseline(world, recipe).hash for recipe in RECIPES}
    assert len(set(whole.values())) == len(RECIPES)
    few = {recipe: a_baseline(world, recipe, data={"text": "text", "speech": "speech", "speech_per_label": 2}).hash
           for recipe in RECIPES}  # fmt: skip
    assert {recipe for recipe in RECIPES if few[recipe] != whole[recipe]} == {"majority", "linear_probe"}
    stored = a_baseline(world, "untuned").model_dump_json(by_alias=True)
    assert Resolved.model_validate_json(stored).hash == whole["untuned"]


@pytest.mark.parametrize(
    ("recipe", "changes", "field", "words"),
    [
        ("untuned", {"steps": 5}, "steps", "recipe untuned trains nothing; leave steps out"),
        ("linear_probe", {"tuning": {"rank": 4}}, "tuning", "leave tuning out"),
        ("majority", {"optimizer": {"peak_lr": 1e-3}}, "optimizer", "leave optimizer out"),
        ("majority", {"evaluate": {"cascade": True}}, "evaluate.cascade", "leave cascade out"),
        ("linear_probe", {"data": {"text": "text"}, "evaluate": {"on": "speech:test"}}, "recipe", "give data.speech"),
        ("linear_probe", {"data": {"speech": "speech"}, "evaluate": {"on": "text:train"}}, "recipe", "test has not"),
    ],
)
def test_what_a_baseline_cannot_follow_is_refused(world, recipe, changes, field, words):
    with pytest.raises(SpecError) as refused:
        a_baseline(world, recipe, **changes)
    assert words in str(refused.value)
    assert [p.param for p in refused.value.problems] == [field]


def test_a_resolved_job_names_no_place_of_this_machine(tmp_path):
    """The default test set is named as the data are."""
    specs.corpus_folder(tmp_path / "sets" / "turns", recordings=40)
    for data in ({"corpus": "sets/turns"}, {"speech": "sets/turns:train"}, {"speech": "sets/turns/train.jsonl"}):
        job = {"name": "t", "base": "models/tiny", "language": "en", "data": data, "recipe": "majority"}
        assert read_and_resolve(parse_job(job), [tmp_path])[0].spec.evaluate.on == "sets/turns:test"
