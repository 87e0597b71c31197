"""The checkpoint that is tested: the last, or the best on a dev set."""

import json

import pytest
import soundfile
import toy

from trainer import checkpoint
from trainer.evaluate import predict
from trainer.families import load
from trainer.fields import SpecError, UnfitDataError
from trainer.predictions import read_lines
from trainer.ranks import spawn
from trainer.result import Result
from trainer.run import run
from trainer.store import FolderStore
from trainer.views import Recordings

BEST = {"select": "best", "decode": {"max_new_tokens": 4}, "text_twin": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    toy.data(folder / "data")
    speech, rows = folder / "data" / "speech", []
    for i in range(6):
        clip = toy.wave(toy.HERTZ[i % 3], 0.3 + 0.05 * i, seed=2000 + i)
        soundfile.write(speech / "audio" / f"dev{i}.wav", clip, 16000)
        row = {"id": f"dev-{i}", "task": "tone", "language": "en", "split": "dev", "label": toy.LABELS[i % 3]}
        rows.append({**row, "audio": f"audio/dev{i}.wav", "duration_s": len(clip) / 16000, "speaker": f"d{i % 2}"})
    (speech / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return toy.base(folder / "base"), folder / "data"


def go(world, store, evaluate=BEST, **options) -> Result:
    resolved, corpus = toy.resolved(*world, evaluate=evaluate)
    return run(resolved, store, corpus=corpus, threads=1, **options)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Result:
    return go(world, FolderStore(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def planned(monkeypatch):
    """The dev set says what the test wants at each checkpoint."""

    def plan(values: list[float]) -> None:
        said = iter(values)
        monkeypatch.setattr("trainer.evaluate.scoring.score", lambda rows: {"accuracy": next(said)})

    return plan


def test_the_best_checkpoint_is_tested_and_kept(world, tmp_path, planned):
    planned([0.1, 0.4, 0.4, 0.3, 0.2])
    store, events = FolderStore(tmp_path), []
    result = go(world, store, sink=events.append)
    assert [(d.step, d.value) for d in result.dev] == [(2, 0.1), (4, 0.4), (6, 0.4), (8, 0.3), (9, 0.2)]
    assert result.chosen_step == 4  # of equal ones the first
    assert result.steps == 9
    assert result.checkpoint == "attempts/1/checkpoints/4"
    assert [e["step"] for e in events if e["kind"] == "dev"] == [2, 4, 6, 8, 9]
    resolved, corpus = toy.resolved(*world, evaluate=BEST)
    model = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    model.load_files(checkpoint.at_step(store, 4, print)[1].adapter)
    want = predict(model, corpus.test.rows, corpus.tasks, "speech", resolved.spec.evaluate.decode, Recordings(16000))
    assert read_lines(store.get("attempts/1/predictions/speech.jsonl")) == want


def test_what_the_dev_set_says_is_what_the_weights_answer(world, tmp_path):
    store = FolderStore(tmp_path)
    result = go(world, store, {**BEST, "metric": "exact_match"})
    resolved, corpus = toy.resolved(*world, evaluate=BEST)
    model = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    for said in result.dev:
        model.load_files(checkpoint.at_step(store, said.step, print)[1].adapter)
        rows = predict(model, corpus.dev.rows, corpus.tasks, "speech", resolved.spec.evaluate.decode, Recordings(16000))
        assert said.value == sum(r["parsed"] == r["reference"] for r in rows) / len(rows)


def test_scoring_a_dev_set_changes_no_bit_of_training(world, tmp_path):
    plain = FolderStore(tmp_path / "plain")
    go(world, plain, {"decode": {"max_new_tokens": 4}, "text_twin": False})
    judged = FolderStore(tmp_path / "judged")
    result = go(world, judged, {**BEST, "select": "last", "dev": "speech:dev"})
    assert len(result.dev) == 5
    assert result.chosen_step is None
    for step in (2, 4, 6, 8, 9):
        a, b = (checkpoint.at_step(s, step, print)[1] for s in (plain, judged))
        assert (a.adapter, a.optimizer) == (b.adapter, b.optimizer)


@pytest.mark.parametrize("leaves", [2, 3, 6, 12, 14])
def test_a_run_that_was_interrupted_chooses_the_same(world, undisturbed, tmp_path, leaves):
    """Between steps, at a checkpoint, while the dev set is scored, and while the test is."""
    store, asked = FolderStore(tmp_path), 0

    def control() -> str:
        nonlocal asked
        asked += 1
        return "checkpoint_and_exit" if asked >= leaves else "continue"

    results = [go(world, store, control=control)]
    while results[-1].outcome == "yielded":
        results.append(go(world, store))
    assert len(results) > 1
    assert (results[-1].dev, results[-1].chosen_step) == (undisturbed.dev, undisturbed.chosen_step)
    assert results[-1].checkpoint.endswith(f"/{undisturbed.chosen_step}")


def test_a_damaged_best_checkpoint_gives_way_to_the_next(world, tmp_path, planned):
    planned([0.1, 0.4, 0.2, 0.3, 0.2])
    store, notes = FolderStore(tmp_path), []

    def spoil(event):
        notes.append(str(event.get("message")))
        if event["kind"] == "dev" and event["step"] == 9:
            (tmp_path / "attempts/1/checkpoints/4/optimizer.safetensors").write_bytes(b"torn")

    result = go(world, store, sink=spoil)
    assert result.chosen_step == 8
    assert any("attempts/1/checkpoints/4 is passed over" in note for note in notes)


def _one_rank(ranks, base, data, folder):
    resolved, corpus = toy.resolved(base, data, evaluate=BEST)
    run(resolved, FolderStore(folder), corpus=corpus, ranks=ranks, threads=1)


def test_two_ranks_judge_together(world, tmp_path):
    spawn(_one_rank, 2, *world, tmp_path)
    two = Result.model_validate_json(FolderStore(tmp_path).get("final.json"))
    assert [d.step for d in two.dev] == [2, 4, 6, 8, 9]
    assert two.chosen_step == max(two.dev, key=lambda d: (d.value, -d.step)).step
    assert two.lineage.world_size == 2


def test_what_cannot_choose_is_refused_by_its_field(world, tmp_path):
    base, data = world
    with pytest.raises(UnfitDataError, match=r"data\.speech: utterance train-0 is in the dev set too"):
        toy.resolved(base, data, evaluate={"dev": "speech:train"})
    with pytest.raises(UnfitDataError, match=r"evaluate\.on: utterance test-0 is in the dev set too"):
        toy.resolved(base, data, evaluate={"dev": "speech:test"})
    with pytest.raises(SpecError, match=r"evaluate\.select: recipe untuned trains nothing; leave select out"):
        toy.resolved(base, data, recipe="untuned", tuning={}, steps=None, evaluate={"select": "best"})
    plain = toy.data(tmp_path / "plain")
    with pytest.raises(SpecError, match="chooses on a dev set, and speech has none; give"):
        toy.resolved(base, plain, evaluate={"select": "best"})


def test_dev_rows_are_pinned_and_hashed(world):
    plain, _ = toy.resolved(*world, evaluate={"decode": {"max_new_tokens": 4}})
    best, corpus = toy.resolved(*world, evaluate={"decode": {"max_new_tokens": 4}, "select": "best"})
    named, _ = toy.resolved(*world, evaluate={"decode": {"max_new_tokens": 4}, "select": "best", "dev": "speech:dev"})
    assert plain.dev is None
    assert best.dev.sha256 == corpus.dev.sha256
    assert best.spec.evaluate.dev == "speech:dev"
    assert best.hash == named.hash != plain.hash
