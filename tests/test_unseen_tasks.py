"""Jobs that are tested on a task of their own: pools of demonstrations, several conditions in one job, refusals."""

import json
import shutil
from dataclasses import replace

import pytest
import soundfile
import toy
import yaml

from trainer.estimate import _answering, estimate
from trainer.evaluate.scoring import Scoring
from trainer.fields import SpecError
from trainer.predictions import FOLLOWING, put, read_predictions
from trainer.ranks import Ranks
from trainer.resolve import check_pins
from trainer.run import run
from trainer.store import FolderStore
from trainer.tokens import DataError, Tokens

PITCH = {
    "name": "pitch", "instruction": {"en": "What is it like?"}, "answer": "label", "labels": ["dark", "light", "mild"],
    "definitions": {"dark": "deep", "light": "bright", "mild": "neither"}, "menu": True,
    "prompt_order": "instruction_first",
}  # fmt: skip
MAIN = {
    "": "speech",
    "0-shot": "speech.0-shot",
    "permuted": "speech.permuted",
    "0-shot.permuted": "speech.0-shot.permuted",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny base; tones to train on; `pitch`, another task, with a pool (train, dev) and a test of its own."""
    folder = tmp_path_factory.mktemp("world")
    data = toy.data(folder / "data")
    (data / "pitch" / "audio").mkdir(parents=True)
    (data / "pitch" / "task.yaml").write_text(yaml.safe_dump(PITCH))
    for split, count in (("train", 6), ("dev", 3), ("test", 6)):
        rows = []
        for n in range(count):
            path = f"audio/{split}{n}.wav"
            soundfile.write(data / "pitch" / path, toy.wave(300, 0.3, seed=n), 16000)
            row = {"id": f"{split}-{n}", "task": "pitch", "language": "en", "split": split, "audio": path}
            row |= {"text": f"{split} number {n}", "duration_s": 0.3, "speaker": f"s{n % 3}"}
            rows.append({**row, "label": PITCH["labels"][n % 3]})
        (data / "pitch" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return toy.base(folder / "base"), data


def job(world, evaluate: dict | None = None, **changes):
    demos = {"k": [2, 0], "from": ["pitch:train", "pitch:dev"], "retriever": "tfidf"}
    given = {"on": "pitch:test", "demos": demos, "decode": {"max_new_tokens": 3}, **(evaluate or {})}
    settings = {"recipe": {"name": "sft", "sources": ["speech"]}, "steps": 1, "global_batch": 2, **changes}
    return toy.resolved(*world, **settings, evaluate=given)


def test_an_unseen_task_is_shown_its_own_pool_and_scored_for_every_k(world, tmp_path):
    resolved, corpus = job(world, {"labels": ["regular", "permuted"], "text_twin": False})
    assert [(pin.ref, pin.rows) for pin in resolved.pools] == [("pitch:train", 6), ("pitch:dev", 3)]
    assert resolved.demos is None
    assert "tone" in {u.task for u in corpus.sources["speech"].rows}
    result = run(resolved, FolderStore(tmp_path), corpus=corpus, threads=1)
    accuracy = [s for s in result.scores if s.metric == "accuracy"]
    assert [(s.shots, s.labels, s.query_text, s.n) for s in accuracy] == [
        (2, None, "gold", 6), (2, "permuted", "gold", 6), (0, None, None, 6), (0, "permuted", None, 6),
    ]  # fmt: skip
    assert [s.task for s in accuracy] == ["pitch"] * 4
    found = read_predictions(FolderStore(tmp_path), "attempts/1")
    assert sorted(found) == sorted(MAIN.values())
    for row in found["speech"]:
        assert len(row["demonstrations"]) == 2
        assert all(name.startswith(("train-", "dev-")) for name in row["demonstrations"])
        assert put(row) == ("speech", 2, "regular", "gold")
    assert all("demonstrations" not in row for row in found["speech.0-shot"])
    assert all(FOLLOWING in row["counts"] for row in found["speech.permuted"])


def test_what_looks_up_may_be_what_the_base_hears(world, tmp_path, monkeypatch):
    """The recordings are transcribed once for all conditions, also where they are answered as a cascade."""
    from trainer.evaluate import scoring

    said: list[int] = []

    def transcribe(model, utterances, recordings, **more):
        said.append(len(utterances))
        return ["train number 4"] * len(utterances)

    monkeypatch.setattr(scoring, "transcribe", transcribe)
    demos = {"k": [1, 2], "from": ["pitch:train"], "retriever": "tfidf", "query_text": ["asr", "gold", "none"]}
    resolved, corpus = job(world, {"demos": demos, "cascade": True, "text_twin": False})
    result = run(resolved, FolderStore(tmp_path), corpus=corpus, threads=1)
    assert result.outcome == "succeeded", result.message
    assert said == [6]
    found = read_predictions(FolderStore(tmp_path), "attempts/1")
    assert {row["query_text"] for row in found["speech"]} == {"asr"}
    assert {tuple(row["demonstrations"]) for row in found["speech"]} == {("train-4",)}
    assert {row["heard"] for row in found["cascade.2-shot.query-gold"]} == {"train number 4"}
    assert len({tuple(row["demonstrations"]) for row in found["speech.query-gold"]}) > 1
    assert "query_text" not in found["speech.query-none"][0]


def test_a_pool_that_holds_a_test_row_is_refused(world):
    demos = {"k": 1, "from": ["pitch:train", "pitch:test"]}
    with pytest.raises(SpecError, match=r"evaluate\.demos\.from\[1\]: utterance test-0 is in the test set too"):
        job(world, {"demos": demos})


def test_a_pool_of_another_task_is_refused(world):
    with pytest.raises(SpecError, match=r"evaluate\.demos\.from\[0\]: has rows of tone, none of the test's pitch"):
        job(world, {"demos": {"k": 1, "from": ["speech:train"]}})


def test_a_pool_without_words_is_refused(world, tmp_path):
    rows = [json.loads(line) for line in (world[1] / "pitch" / "train.jsonl").read_text().splitlines()]
    bare = [{**row, "text": None, "audio": str(world[1] / "pitch" / row["audio"])} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    with pytest.raises(SpecError, match=r"evaluate\.demos\.from\[0\]: has no row with transcript and label"):
        job(world, {"demos": {"k": 1, "from": [f"{tmp_path}:train"]}})


def test_a_pool_that_has_changed_is_refused(world):
    resolved, corpus = job(world)
    first, *rest = corpus.pools
    pools = (replace(first, rows=first.rows[1:]), *rest)
    with pytest.raises(DataError, match=r"evaluate\.demos\.from\[0\]: pitch:train has changed"):
        check_pins(resolved, replace(corpus, pools=pools))


def test_a_plan_counts_every_condition(world):
    """Twice the conditions are twice the work, and demonstrations are read besides."""

    def work(**given):
        resolved, corpus = job(world, given)
        return _answering(estimate(resolved, corpus), resolved, corpus, Tokens(world[0]))

    once, both = work(demos={"k": 0}), work(demos={"k": 0}, labels=["symbol", "regular"])
    assert both == pytest.approx([2 * value for value in once])
    shown = work()
    assert shown[1:] == both[1:]
    # 6 queries in two modalities after two demonstrations, "Input: ... Answer: ..." of more than 10 tokens each.
    assert shown[0] > both[0] + 6 * 2 * 2 * 10


def test_the_hash_knows_a_pool_by_its_rows(world):
    plain, _ = job(world)
    shutil.copytree(world[1] / "pitch", world[1] / "moved")
    demos = {"k": [2, 0], "from": ["moved:train", "moved:dev"], "retriever": "tfidf"}
    assert job(world, {"demos": demos, "on": "moved:test"})[0].hash == plain.hash
    other, _ = job(world, {"demos": {"k": [2, 0], "from": ["pitch:train"], "retriever": "tfidf"}})
    assert other.hash != plain.hash


def test_what_is_at_its_default_is_no_part_of_the_hash(world):
    one, _ = job(world, {"demos": {"k": 2, "retriever": "tfidf"}, "on": "speech:test"})
    said, _ = job(world, {
        "demos": {"k": 2, "retriever": "tfidf", "query_text": "gold", "from": [], "pooling": "cls"},
        "on": "speech:test", "labels": "regular",
    })  # fmt: skip
    assert one.hash == said.hash


REFUSED = [
    ({"demos": {"k": []}}, "evaluate.demos.k: is one value or a list of different ones"),
    ({"demos": {"k": [1, 1]}}, "evaluate.demos.k: is one value or a list of different ones"),
    ({"demos": {"k": [0, 65]}}, "lies between 0 and 64"),
    ({"demos": {"k": 1, "query_text": "asr"}}, "retriever random looks nothing up"),
    ({"demos": {"k": 1, "retriever": "tfdif"}}, "use random, tfidf, or a sentence encoder"),
    ({"on": "speech:test", "demos": {}, "labels": "permuted"}, "labels: permuted says the names in the instruction"),
    ({"labels": "symbol", "symbols": ["x"]}, "evaluate.symbols: 1 for the 3 labels of task pitch; give as many"),
    ({"metric": FOLLOWING}, "tells definitions from names, which only evaluate.labels: permuted does"),
]  # fmt: skip


@pytest.mark.parametrize(("evaluate", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_cannot_be_tested_is_refused(world, evaluate, words):
    with pytest.raises(SpecError) as caught:
        job(world, evaluate)
    assert words in str(caught.value)


def test_looking_up_by_what_is_heard_needs_recordings_and_the_base(world, tmp_path):
    demos = {"k": 1, "from": ["pitch:train"], "retriever": "tfidf", "query_text": "asr"}
    with pytest.raises(SpecError, match="the base itself must be left to transcribe, which method: full does not"):
        job(world, {"demos": demos}, tuning={"method": "full"})
    rows = [json.loads(line) for line in (world[1] / "pitch" / "test.jsonl").read_text().splitlines()]
    mute = "".join(
        json.dumps({k: v for k, v in row.items() if k not in ("audio", "duration_s")}) + "\n" for row in rows
    )
    (tmp_path / "test.jsonl").write_text(mute)
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(PITCH))
    with pytest.raises(SpecError, match=r"query_text: needs a recording of every test utterance, and test-0 has none"):
        job(world, {"demos": demos, "on": f"{tmp_path}:test"})
    (tmp_path / "dev.jsonl").write_text(mute.replace('"test"', '"dev"').replace('"test-', '"dev-'))
    resolved, corpus = job(world, {"demos": demos, "dev": f"{tmp_path}:dev"})
    with pytest.raises(DataError, match="utterance dev-0: no recording to hear what demonstrations are looked up by"):
        Scoring(resolved, corpus, Ranks(), lambda event: None)
