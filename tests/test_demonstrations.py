"""k-shot: which demonstrations, how they stand in the prompt, and that they are part of what a batch shares."""

import json

import numpy as np
import pytest
import toy

from trainer import evaluate
from trainer.decoding.prompts import Prompts
from trainer.demonstrations import Candidates
from trainer.evaluate import predict
from trainer.evaluate.demonstrations import Asking
from trainer.families import load
from trainer.fields import SpecError
from trainer.manifest import Utterance
from trainer.run import run
from trainer.spec import Condition, Decode, Evaluate, Task
from trainer.store import FolderStore
from trainer.tokens import DataError, asked
from trainer.views import Recordings

TASK = Task(
    name="t", instruction={"en": "Which?"}, answer="label", labels=["a", "b"], menu=True,
    prompt_order="instruction_first",
)  # fmt: skip


def said(name: str, text: str | None, label: str | None = "a", task: str = "t", **more) -> Utterance:
    return Utterance(id=name, task=task, language="en", split="train", text=text, label=label, **more)


POOL = [said(f"p{i}", f"sentence {i}", "ab"[i % 2]) for i in range(20)]


def asking(pool, **demos) -> Asking:
    return Asking(Evaluate.model_validate({"demos": demos}), {"t": TASK}, pool)


def shown(query: Utterance, pool=POOL, heard: str | None = None, **demos) -> list[str]:
    """Ids of what stands before a query under the main condition."""
    asks = asking(pool, **demos)
    asks.check([query])
    main = asks.evaluate.conditions()[""]
    (found,) = asks(main, [query], [heard] if heard is not None else None)
    return [u.id for u in found.demonstrations]


def test_the_first_of_a_seeded_order_whatever_the_manifest_says():
    query = said("q", "something else")
    ids = shown(query, k=5)
    assert len(set(ids)) == 5
    assert shown(query, POOL[::-1], k=5) == ids
    assert shown(query, k=3) == ids[:3]
    assert shown(query, k=5, seed=1) != ids
    assert shown(query, k=5, retriever="tfidf", query_text="none") == ids


def test_tfidf_shows_the_nearest_last_and_asks_for_a_transcript():
    query = said("q", "sentence 17 again")
    by_id = sorted(POOL, key=lambda u: u.id)
    near = Candidates(by_id, 0).nearest([query], 3)[0]
    ids = shown(query, k=3, retriever="tfidf")
    assert ids[-1] == "p17"
    assert ids == [by_id[n].id for n in reversed(near)]
    assert "p3" not in shown(said("q", "Sentence 3!"), k=3, retriever="tfidf")
    with pytest.raises(DataError, match="utterance q: no transcript to look demonstrations up by"):
        shown(said("q", None, audio="/a.wav"), k=3, retriever="tfidf")
    with pytest.raises(DataError, match="utterance q: there are 19 other sentences of task t"):
        shown(said("q", "sentence 3"), k=20, retriever="tfidf")


def test_fewer_are_the_nearest_of_more():
    asks = asking(POOL, k=[3, 0, 1, 2], retriever="tfidf")
    query = said("q", "sentence 17 again")
    found = {c.shots: [u.id for u in asks(c, [query])[0].demonstrations] for c in asks.evaluate.conditions().values()}
    assert found[3][-1] == found[1][0] == "p17"
    assert found[2] == found[3][1:]
    assert found[0] == []


def test_what_the_base_hears_looks_up_and_the_gold_sentence_stays_out():
    """Heard `sentence 3` where `sentence 17` was said: p3 may be shown, p17 may not, so that gold and asr choose among
    the same."""
    query = said("q", "Sentence 17.", audio="/a.wav")
    demos = {"k": 1, "retriever": "tfidf", "query_text": "asr"}
    assert shown(query, heard="sentence 3", **demos) == ["p3"]
    assert shown(query, heard="sentence 17", **demos) != ["p17"]
    assert len(shown(query, heard="", **demos)) == 1
    assert shown(said("q", None, audio="/a.wav"), heard="sentence 3", **demos) == ["p3"]


def test_neither_the_query_nor_what_says_the_same_is_shown():
    assert "p3" not in shown(said("q", " Sentence 3 "), k=19)
    spoken = [said(f"s{i}", f"sentence {i}", audio=f"/a/{i}.wav") for i in range(4)]
    assert sorted(shown(said("q", None, audio="/a/2.wav"), spoken, k=3)) == ["s0", "s1", "s3"]


def test_a_sentence_that_stands_twice_is_shown_once():
    pool = [*POOL[:3], said("again", "Sentence 1!", "b")]
    for retriever in ("random", "tfidf"):
        # By id `again` comes first, and counts.
        assert sorted(shown(said("q", "hm"), pool, k=3, retriever=retriever)) == ["again", "p0", "p2"]
    with pytest.raises(DataError, match="there are 3 other sentences"):
        shown(said("q", "hm"), pool, k=4)


def test_rows_of_other_tasks_or_without_text_or_label_are_not_shown():
    pool = [said("x", "other", task="u"), said("y", None, audio="/y.wav"), said("z", "bare", None), said("w", "right")]
    assert shown(said("q", "hm"), pool, k=1) == ["w"]
    with pytest.raises(DataError, match=r"utterance q: there are 1 other sentences of task t .* asks for 2"):
        shown(said("q", "hm"), pool, k=2)


def test_a_sentence_encoder_looks_up_as_in_training(monkeypatch):
    """Each candidates' set is encoded once, whatever is asked of it."""
    encoded: list[int] = []

    def encoder(ask):
        assert ask.retriever == "owner/name"

        def encode(texts):
            encoded.append(len(texts))
            angle = np.array([float(text.split()[-1]) / 20 for text in texts])
            return np.stack([np.cos(angle), np.sin(angle)], 1)

        return encode

    monkeypatch.setattr("trainer.evaluate.demonstrations.sentence_encoder", encoder)
    asks = asking(POOL, k=[2, 1], retriever="owner/name")
    for condition in asks.evaluate.conditions().values():
        found = asks(condition, [said("q", "about 7.2"), said("r", "sentence 12")])
    assert [[u.id for u in one.demonstrations] for one in found] == [["p7"], ["p11"]]  # 12 itself is left out
    assert encoded == [20, 2]


def lines(one, query: Utterance) -> list[str]:
    """What a query's prompt says besides the query."""
    before = [one.names.utterance(u) for u in one.demonstrations]
    text = [f"Input: {u.text}\nAnswer: {u.label}" for u in before]
    return asked(query, one.names.task, text).splitlines()


def test_demonstrations_stand_behind_instruction_and_menu():
    query = said("q", "hm")
    (one,) = asking(POOL[:1], k=1)(Condition(1, "regular", "none"), [query])
    assert lines(one, query) == ["Which?", "Labels: a, b", "Input: sentence 0", "Answer: a"]


def test_menu_and_demonstrations_go_by_the_same_names():
    query = said("q", "hm")
    (one,) = asking(POOL[:1], k=1)(Condition(1, "permuted", "none"), [query])
    assert lines(one, query) == ["Which?", "Labels: b, a", "Input: sentence 0", "Answer: b"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def put(asks: Asking, rows: list[Utterance]):
    return asks(asks.evaluate.conditions()[""], rows)


def test_a_batch_shares_its_demonstrations(world):
    model = load(world[0])
    rows = [said(f"q{i}", f"question {i}") for i in range(6)]
    recordings, asks = Recordings(16000), asking(POOL, k=4)
    longer = [
        evaluate._put(u, "text", one, None, model, recordings) for u, one in zip(rows, put(asks, rows), strict=True)
    ]
    plain = asks(Condition(0, "regular", "none"), rows)
    bare = [evaluate._put(u, "text", one, None, model, recordings) for u, one in zip(rows, plain, strict=True)]
    more = len(longer[0].prompt) - len(bare[0].prompt)
    assert more > 20
    assert Prompts(model, longer).shared >= Prompts(model, bare).shared + more
    decode = Decode(max_new_tokens=3)
    together = predict(model, rows, {"t": TASK}, "text", decode, recordings, asked=put(asks, rows))
    alone = [
        predict(model, [u], {"t": TASK}, "text", decode, recordings, asked=put(asks, [u]))[0] for u in rows
    ]  # fmt: skip
    assert together == alone
    assert together[0]["demonstrations"] == shown(rows[0], k=4)
    assert [r["text"] for r in together] != [r["text"] for r in predict(
        model, rows, {"t": TASK}, "text", decode, recordings)]  # fmt: skip


def generated(world, monkeypatch, rows, asks, condition) -> list[list[str]]:
    """Names of the examples of every batch that was generated."""
    model, batches = load(world[0]), []

    def noted(model, examples, **options):
        batches.append([e.name for e in examples])
        return [[] for _ in examples]

    monkeypatch.setattr("trainer.evaluate.generate", noted)
    predict(model, rows, {"t": TASK}, "text", Decode(max_new_tokens=3), Recordings(16000), asked=asks(condition, rows))
    return batches


def test_rows_with_demonstrations_of_their_own_are_answered_in_batches(world, monkeypatch):
    """Nearly every row has other demonstrations by tfidf: one batch all the same, for all fit into its tokens."""
    rows = [said(f"q{i}", f"sentence {i} again") for i in range(20)]
    asks = asking(POOL, k=4, retriever="tfidf")
    before = {tuple(u.id for u in one.demonstrations) for one in put(asks, rows)}
    assert len(before) > 10
    (batch,) = generated(world, monkeypatch, rows, asks, Condition(4, "regular", "gold"))
    assert len(batch) == 20
    monkeypatch.setattr("trainer.evaluate.BATCH_TOKENS", 10 * (max(map(len, batch)) + 150))
    assert len(generated(world, monkeypatch, rows, asks, Condition(4, "regular", "gold"))) < 10


def test_what_stands_under_one_permutation_is_answered_together(world, monkeypatch):
    labels = ["a", "b", "c"]
    task = TASK.model_copy(
        update={"labels": labels, "definitions": {name: f"kind {n}" for n, name in enumerate(labels)}}
    )
    rows = [said(f"q{i}", f"sentence {i} again") for i in range(20)]
    asks = Asking(Evaluate(), {"t": task}, [])
    condition = Condition(0, "permuted", "none")
    menus = {u.id: tuple(one.names.task.labels) for u, one in zip(rows, asks(condition, rows), strict=True)}
    batches = generated(world, monkeypatch, rows, asks, condition)
    assert len(batches) == len(set(menus.values())) == 2
    assert all(len({menus[name] for name in batch}) == 1 for batch in batches)


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
    assert {(s.modality, s.shots) for s in result.scores} == {("speech", 3), ("text", 3)}


def test_a_job_without_transcripts_has_nothing_to_show(world, tmp_path):
    data = toy.data(tmp_path / "data")
    for split in ("train", "test"):
        path = data / "speech" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "text"}) + "\n" for row in rows))
    with pytest.raises(SpecError, match=r"evaluate\.demos\.k: no source has transcripts with labels to show"):
        toy.resolved(world[0], data, data={"speech": "speech"}, recipe="sft", evaluate={"demos": {"k": 2}})
