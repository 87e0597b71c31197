"""k-shot: which demonstrations, how they stand in the prompt, and that they are part of what a batch shares."""

import json

import pytest
import toy

from trainer.decoding.prompts import Prompts
from trainer.demonstrations import Candidates
from trainer.evaluate import predict
from trainer.evaluate.demonstrations import Demonstrations
from trainer.families import load
from trainer.fields import SpecError
from trainer.manifest import Utterance
from trainer.run import run
from trainer.spec import Decode, Demos, Task
from trainer.store import FolderStore
from trainer.tokens import DataError
from trainer.views import Recordings, example

TASK = Task(
    name="t", instruction={"en": "Which?"}, answer="label", labels=["a", "b"], menu=True,
    prompt_order="instruction_first",
)  # fmt: skip


def said(name: str, text: str | None, label: str | None = "a", task: str = "t", **more) -> Utterance:
    return Utterance(id=name, task=task, language="en", split="train", text=text, label=label, **more)


POOL = [said(f"p{i}", f"sentence {i}", "ab"[i % 2]) for i in range(20)]


def test_the_first_of_a_seeded_order_whatever_the_manifest_says():
    query = said("q", "something else")
    ids = [u.id for u in Demonstrations(Demos(k=5), POOL, {"t": TASK}).of(query)]
    assert len(set(ids)) == 5
    assert [u.id for u in Demonstrations(Demos(k=5), POOL[::-1], {"t": TASK}).of(query)] == ids
    assert [u.id for u in Demonstrations(Demos(k=3), POOL, {"t": TASK}).of(query)] == ids[:3]
    assert [u.id for u in Demonstrations(Demos(k=5, seed=1), POOL, {"t": TASK}).of(query)] != ids


def test_tfidf_shows_the_nearest_last_and_asks_for_a_transcript():
    demos = Demonstrations(Demos(k=3, retriever="tfidf"), POOL, {"t": TASK})
    near = Candidates(demos._candidates.rows, 0).nearest([said("q", "sentence 17 again")], 3)[0]
    shown = demos.of(said("q", "sentence 17 again"))
    assert shown[-1].id == "p17"
    assert [u.id for u in shown] == [demos._candidates.rows[n].id for n in reversed(near)]
    assert "p3" not in [u.id for u in demos.of(said("q", "Sentence 3!"))]
    with pytest.raises(DataError, match="utterance q: no transcript to look demonstrations up by"):
        demos.of(said("q", None, audio="/a.wav"))
    with pytest.raises(DataError, match="the training side has 19 demonstrations of task t"):
        Demonstrations(Demos(k=20, retriever="tfidf"), POOL, {"t": TASK}).of(said("q", "sentence 3"))


def test_neither_the_query_nor_what_says_the_same_is_shown():
    demos = Demonstrations(Demos(k=19), POOL, {"t": TASK})
    assert "p3" not in [u.id for u in demos.of(said("q", " Sentence 3 "))]
    spoken = [said(f"s{i}", f"sentence {i}", audio=f"/a/{i}.wav") for i in range(4)]
    shown = Demonstrations(Demos(k=3), spoken, {"t": TASK}).of(said("q", None, audio="/a/2.wav"))
    assert sorted(u.id for u in shown) == ["s0", "s1", "s3"]


def test_rows_of_other_tasks_or_without_text_or_label_are_not_shown():
    pool = [said("x", "other", task="u"), said("y", None, audio="/y.wav"), said("z", "bare", None), said("w", "right")]
    demos = Demonstrations(Demos(k=1), pool, {"t": TASK})
    assert [u.id for u in demos.of(said("q", "hm"))] == ["w"]
    with pytest.raises(DataError, match=r"utterance q: the training side has 1 demonstrations of task t .* asks for 2"):
        Demonstrations(Demos(k=2), pool, {"t": TASK}).of(said("q", "hm"))


def test_demonstrations_stand_behind_instruction_and_menu():
    asked = Demonstrations(Demos(k=1), POOL[:1], {"t": TASK}).task(said("q", "hm"))
    assert asked.instruction == {"en": "Which?\nLabels: a, b\nInput: sentence 0\nAnswer: a"}
    assert not asked.menu
    assert asked.labels == TASK.labels


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def test_a_batch_shares_its_demonstrations(world):
    model = load(world[0])
    rows = [said(f"q{i}", f"question {i}") for i in range(6)]
    demos, recordings = Demonstrations(Demos(k=4), POOL, {"t": TASK}), Recordings(16000)
    asked = [example(u, "text", demos.task(u), model.tokens, recordings, supervised=False) for u in rows]
    bare = [example(u, "text", TASK, model.tokens, recordings, supervised=False) for u in rows]
    longer = len(asked[0].prompt) - len(bare[0].prompt)
    assert longer > 20
    assert Prompts(model, asked).shared >= Prompts(model, bare).shared + longer
    decode = Decode(max_new_tokens=3)
    together = predict(model, rows, {"t": TASK}, "text", decode, recordings, asks=demos.task)
    alone = [predict(model, [u], {"t": TASK}, "text", decode, recordings, asks=demos.task)[0] for u in rows]
    assert together == alone
    assert [r["text"] for r in together] != [r["text"] for r in predict(
        model, rows, {"t": TASK}, "text", decode, recordings)]  # fmt: skip


def test_a_job_is_scored_with_demonstrations(world, tmp_path):
    job = {"recipe": {"name": "sft", "sources": ["speech"]}, "steps": 1}
    evaluate = {"decode": {"max_new_tokens": 4, "constrain": True}}
    plain, _ = toy.resolved(*world, **job, evaluate=evaluate)
    resolved, corpus = toy.resolved(*world, **job, evaluate={**evaluate, "demos": {"k": 3}})
    assert plain.demos is None
    assert resolved.demos.rows == len(corpus.sources["text"].rows)
    assert resolved.hash != plain.hash
    result = run(resolved, FolderStore(tmp_path), corpus=corpus, threads=1)
    assert result.outcome == "succeeded"
    assert {s.modality for s in result.scores} == {"speech", "text"}


def test_a_job_without_transcripts_has_nothing_to_show(world, tmp_path):
    data = toy.data(tmp_path / "data")
    for split in ("train", "test"):
        path = data / "speech" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "text"}) + "\n" for row in rows))
    with pytest.raises(SpecError, match=r"evaluate\.demos\.k: no source has transcripts with labels to show"):
        toy.resolved(world[0], data, data={"speech": "speech"}, recipe="sft", evaluate={"demos": {"k": 2}})
