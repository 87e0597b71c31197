"""Guards: further test sets, answered before and after training."""

import json

import pytest
import toy

from trainer import checkpoint
from trainer.evaluate import predict
from trainer.families import load
from trainer.fields import SpecError, UnfitDataError
from trainer.manifest import load as load_manifest
from trainer.metrics import score
from trainer.predictions import read_lines
from trainer.ranks import spawn
from trainer.result import Result
from trainer.run import run
from trainer.spec import builtin_tasks
from trainer.store import FolderStore
from trainer.views import Recordings

EVALUATE = {"decode": {"max_new_tokens": 4}, "text_twin": False, "guards": ["words:test", "other:test"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Beside the toy's data: `words`, sentences to repeat, and `other`, whose task has the toy's name and asks for
    something else."""
    folder = tmp_path_factory.mktemp("world")
    toy.data(folder / "data")
    for name, task in (("words", "transcribe"), ("other", "tone")):
        (folder / "data" / name).mkdir()
        rows = [
            {"id": f"{name}-{i}", "task": task, "language": "en", "split": "test", "text": f"sentence {i} of {name}"}
            for i in range(5)
        ]
        if name == "other":
            rows = [{**row, "label": "abc"[i % 3]} for i, row in enumerate(rows)]
        (folder / "data" / name / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = "name: tone\ninstruction: {en: 'Which letter?'}\nanswer: label\nlabels: [a, b, c]\nmetrics: [accuracy]\n"
    (folder / "data" / "other" / "task.yaml").write_text(task)
    return toy.base(folder / "base"), folder / "data"


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    store = FolderStore(tmp_path_factory.mktemp("out"))
    resolved, corpus = toy.resolved(*world, evaluate=EVALUATE)
    return run(resolved, store, corpus=corpus, threads=1), store, resolved


def test_guards_say_what_the_base_and_the_adapter_answer(world, done):
    result, store, resolved = done
    said = {(g.data, g.task, g.metric, g.n) for g in result.guards}
    assert {("words:test", "transcribe", "wer", 5), ("other:test", "tone", "accuracy", 5)} <= said
    assert {data for data, *_ in said} == {"words:test", "other:test"}
    model = load(world[0])
    rows = load_manifest("words:test", [world[1]])
    asked = (rows, builtin_tasks(), "text", resolved.spec.evaluate.decode, Recordings(16000))
    before = predict(model, *asked)
    model.attach(resolved.spec.tuning, seed=resolved.spec.seed)
    model.load_files(checkpoint.at_step(store, 9, print)[1].adapter)
    after = predict(model, *asked)
    assert read_lines(store.get("attempts/1/guards/0-before.jsonl")) == before
    assert read_lines(store.get("attempts/1/guards/0-after.jsonl")) == after
    said = result.guards[0]
    assert (said.before, said.after) == (score(before)["wer"], score(after)["wer"])
    assert said.change == said.after - said.before
    assert said.ci_low <= said.change <= said.ci_high
    assert Result.model_validate_json(store.get("final.json")).guards == result.guards


def test_a_guard_keeps_its_own_task_of_the_same_name(done):
    _, store, resolved = done
    assert resolved.spec.tasks[0].labels == toy.LABELS
    assert resolved.guards[1].tasks[0].labels == ["a", "b", "c"]
    assert [row["reference"] for row in read_lines(store.get("attempts/1/guards/1-after.jsonl"))] == list("abcab")


def test_guards_are_no_modality_of_the_test(done):
    _, store, _ = done
    assert store.list("attempts/1/predictions/") == ["attempts/1/predictions/speech.jsonl"]


def _one_rank(ranks, base, data, folder):
    resolved, corpus = toy.resolved(base, data, evaluate=EVALUATE)
    run(resolved, FolderStore(folder), corpus=corpus, ranks=ranks, threads=1)


def test_two_ranks_share_the_guards(world, done, tmp_path):
    spawn(_one_rank, 2, *world, tmp_path)
    two = Result.model_validate_json(FolderStore(tmp_path).get("final.json"))
    assert [(g.data, g.metric, g.n, g.before) for g in two.guards] == [
        (g.data, g.metric, g.n, g.before) for g in done[0].guards
    ]


def test_guards_are_pinned_and_hashed(world, done):
    plain, _ = toy.resolved(*world, evaluate={k: v for k, v in EVALUATE.items() if k != "guards"})
    assert plain.guards == []
    assert done[2].hash != plain.hash
    assert [guard.pin.rows for guard in done[2].guards] == [5, 5]


def test_what_cannot_guard_is_refused_by_its_field(world):
    base, data = world
    with pytest.raises(UnfitDataError, match=r"data\.speech: utterance train-0 is in the guard set too"):
        toy.resolved(base, data, evaluate={"guards": ["speech:train"]})
    with pytest.raises(SpecError, match=r"evaluate\.guards\[0\]: .*nowhere"):
        toy.resolved(base, data, evaluate={"guards": ["nowhere"]})
    with pytest.raises(SpecError, match=r"evaluate\.guards: the base itself must be left to compare with"):
        toy.resolved(base, data, tuning={"method": "full", "encoder": "frozen"}, evaluate={"guards": ["words:test"]})
    with pytest.raises(SpecError, match=r"evaluate\.guards: recipe untuned trains nothing; leave guards out"):
        toy.resolved(base, data, recipe="untuned", tuning={}, steps=None, evaluate={"guards": ["words:test"]})
