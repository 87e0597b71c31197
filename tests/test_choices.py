"""Tasks whose rows have choices of their own: how they are written down, put, learnt, scored and refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
import yaml

from attune.building import found_in
from attune.cli import main
from trainer import answers
from trainer.batch import groups
from trainer.corpus import Reader
from trainer.decoding import generate
from trainer.decoding.constrain import Constraint, Trie, closed_answers
from trainer.decoding.likelihood import log_likelihoods
from trainer.evaluate import predict
from trainer.families import load
from trainer.fields import SpecError, UnfitDataError
from trainer.hearing import check
from trainer.majority import majority
from trainer.manifest import ManifestError, Utterance, read_manifest, to_json
from trainer.metrics import score
from trainer.predictions import read_lines
from trainer.resolve import read_and_resolve
from trainer.run import run
from trainer.spec import Decode, Task, parse_job
from trainer.store import FolderStore
from trainer.study import StudySpec, expand
from trainer.tokens import DataError, Tokens, asked, demonstration, own_task, right_answer
from trainer.validate import validate
from trainer.views import Recordings, example

ENDINGS = ["He went home.", "He went home, alone, and sang.", "She laughed", "Nobody came, 向左", "The end."]
ENDS = Task(name="ends", instruction={"en": "How does it go on?"}, answer="choice")
MENU = ENDS.model_copy(update={"menu": True})


def row(n: int, **change) -> Utterance:
    """Of two to four choices, the right one at any place."""
    choices = tuple(ENDINGS[(n + k) % 5] for k in range(2 + n % 3))
    fields = {"id": f"r{n}", "task": "ends", "language": "en", "split": "test", "text": f"It was {n} o'clock."}
    return Utterance(**{**fields, "label": choices[n % len(choices)], "choices": choices, **change})


def stories(folder):
    """The toy's recordings and sentences, each with choices of its own."""
    toy.data(folder)
    for name in ("speech", "text"):
        (folder / name / "task.yaml").write_text(yaml.safe_dump(ENDS.model_dump(exclude_defaults=True)))
        for path in (folder / name).glob("*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            own = [json.loads(to_json(row(n))) for n in range(len(rows))]
            rows = [
                {**r, "task": "ends", "label": o["label"], "choices": o["choices"]}
                for r, o in zip(rows, own, strict=True)
            ]
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), stories(folder / "data")


@pytest.fixture(scope="module")
def model(world):
    """Random weights: its likelihoods are noise, but the same noise every time."""
    return load(world[0], dtype=torch.float64)


@pytest.fixture(scope="module")
def tested(world):
    _, corpus = toy.resolved(*world)
    return corpus.test.rows


# ---- rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"choices": ["a"]}, "a list of two answers or more"),
        ({"choices": {"a": 1, "b": 2}}, "a list of two answers or more"),
        ({"choices": ["a", ""]}, "not empty"),
        ({"choices": ["a", 1]}, "every answer must be a string"),
        ({"choices": ["a", " b"]}, "no spaces around"),
        ({"choices": ["b", "a", "b"]}, "'b' stands there twice"),
        ({"choices": ["b", "c"]}, "the label 'a' is none of them; write one of them to the letter"),
        ({"choices": ["a", "b"], "label": ["a"]}, r"the label \['a'\] is none of them"),
    ],
)
def test_a_bad_row_names_line_field_value_and_remedy(tmp_path, change, says):
    good = {"id": "a", "task": "t", "language": "en", "split": "train", "text": "hi", "label": "a"}
    good |= {"choices": ["a", "b"]}
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, good | change)))
    with pytest.raises(ManifestError, match=says) as caught:
        read_manifest(path)
    assert (caught.value.line, caught.value.field) == (2, "choices")
    assert "given: " in str(caught.value)


def test_a_row_comes_back_and_a_label_may_be_unknown(tmp_path):
    rows = [row(1), row(2, label=None)]
    (tmp_path / "m.jsonl").write_text("".join(to_json(r) + "\n" for r in rows))
    assert read_manifest(tmp_path / "m.jsonl") == rows
    assert "choices" not in to_json(row(1, choices=None))


def test_validation_names_rows_that_do_not_fit_their_task():
    other = Task(name="tone", instruction={"en": "Which?"}, answer="label", labels=["low", "high"])
    rows = [row(0), row(1, choices=None), row(2, label=None), row(3, task="tone", label="low", choices=("low", "x"))]
    report = validate([*rows, row(4, label="that")], {"ends": ENDS, "tone": other})
    found = [(issue.line, issue.code, issue.field) for issue in report.issues]
    assert found == [
        (2, "no_choices", "choices"), (3, "no_label", "label"), (4, "choices_unused", "choices"),
        (5, "label_outside", "choices"),
    ]  # fmt: skip
    assert report.labels == {"low": 1, "high": 0}  # of choices nothing is to be counted


def test_an_order_that_gives_the_answer_away_is_said():
    report = validate([row(n, text=f"{n}", choices=(f"yes {n}", "no"), label=f"yes {n}") for n in range(5)], ENDS)
    assert [(issue.code, "number 1 in all 5 rows" in issue.remedy) for issue in report.issues] == [
        ("choices_in_order", True)
    ]
    assert not validate([row(n, text=f"{n}") for n in range(5)], ENDS).issues


def test_one_story_with_other_choices_is_no_copy():
    rows = [row(0), row(0, id="again"), row(0, id="other", choices=("Yes.", "No."), label="No.")]
    found = [(issue.line, issue.code) for issue in validate(rows, ENDS).issues]
    assert found == [(2, "same_text_twice")]


# ---- as they are put


def test_a_task_of_choices_has_no_labels():
    with pytest.raises(ValueError, match="leave labels and definitions out"):
        Task(name="t", instruction={"en": "?"}, answer="choice", labels=["a", "b"])
    assert (ENDS.closed, ENDS.picks_one) == (False, True)


def test_the_menu_lists_the_rows_own_choices_below_its_question():
    u = row(1, question="What then?")
    listed = [f"- {choice}" for choice in u.choices]
    assert asked(u, ENDS) == "How does it go on?\nWhat then?"
    assert asked(u, MENU, ["…"]).split("\n") == ["How does it go on?", "…", "What then?", "Choices:", *listed]
    shown = ["Input: It was 1 o'clock.", "Question: What then?", "Choices:", *listed, f"Answer: {u.label}"]
    assert demonstration(u, MENU).split("\n") == shown
    assert right_answer(u, ENDS) == u.label
    assert answers.parse(f" {u.label}\n", own_task(u, ENDS)) == (u.label, True)
    assert answers.parse("something else", own_task(u, ENDS)) == (None, False)
    with pytest.raises(DataError, match="utterance r1: no choices, of which task 'ends' asks for one"):
        asked(replace(u, choices=None), ENDS)


@pytest.mark.parametrize("task", [ENDS, MENU])
def test_what_rows_share_ends_before_their_choices(world, task):
    """A pack lays the instruction once, and nothing of a row's own."""
    tokens = Tokens(world[0])
    put = task.model_copy(update={"prompt_order": "instruction_first"})
    made = [example(row(n), "text", put, tokens, None) for n in range(4)]
    (shared,) = groups(made, audio_id=tokens.audio_id)
    assert shared.members == tuple(sorted(range(4), key=lambda n: (len(made[n]), n)))
    prefix = tokens.tokenizer.decode(made[0].prompt[: shared.length])
    assert "How does it go on?" in prefix
    assert ("Choices:" in prefix) == task.menu
    assert all(ending not in prefix for ending in ENDINGS)


# ---- as they are answered


@torch.inference_mode()
def alone(model, u: Utterance, view: str, task: Task) -> list[float]:
    """log p of each choice and its end by itself: one forward over prompt and answer, as in training."""
    out = []
    for choice in u.choices:
        batch = model.collate([example(replace(u, label=choice), view, task, model.tokens, Recordings(16000))])
        scores = model.forward(batch).log_softmax(-1)
        out.append(float(scores[torch.arange(len(scores)), batch.targets].sum()))
    return out


@pytest.mark.parametrize("view", ["speech", "text"])
@pytest.mark.parametrize("task", [ENDS, MENU])
def test_scores_are_those_of_each_choice_by_itself(model, tested, monkeypatch, view, task):
    monkeypatch.setattr("trainer.decoding.likelihood.LOGITS", 3 * len(tested) * 2560)  # three nodes at a time
    put = [example(u, view, task, model.tokens, Recordings(16000), supervised=False) for u in tested]
    closed = [closed_answers(own_task(u, task), model.tokens) for u in tested]
    tries = [Trie(own) for own in closed]
    found, mean = (log_likelihoods(model, put, tries, per_token=per_token) for per_token in (False, True))
    assert found.shape == (len(tested), 4)
    for u, own, total, per_token in zip(tested, closed, found, mean, strict=True):
        count = len(u.choices)
        want = alone(model, u, view, task)
        lengths = [len(ids) + 1 for ids in own.values()]
        np.testing.assert_allclose(total[:count], want, rtol=1e-9)
        np.testing.assert_allclose(per_token[:count], np.array(want) / lengths, rtol=1e-9)
        assert (total[count:] == -torch.inf).all()


@pytest.mark.parametrize("modality", ["speech", "text", "cascade"])
def test_rows_say_what_was_chosen_and_how_surely(model, tested, modality):
    decode = Decode(method="mean_likelihood")
    told = {"heard": [u.text for u in tested]} if modality == "cascade" else {}
    task = MENU.model_copy(update={"metrics": ["accuracy", "ece"]})
    found = predict(model, tested, {"ends": task}, modality, decode, Recordings(16000), **told)
    for n, (u, made) in enumerate(zip(tested, found, strict=True)):
        said = {key: [value[n]] for key, value in told.items()}
        (one,) = predict(model, [u], {"ends": task}, modality, decode, Recordings(16000), **said)
        assert list(made["probabilities"]) == list(u.choices)
        assert made["text"] == one["text"] == made["parsed"] == max(u.choices, key=made["probabilities"].get)
        assert made["confidence"] == pytest.approx(one["confidence"], abs=2e-6)
        assert sum(made["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        if modality == "cascade":  # what is heard is the transcript: so it is answered as that
            (read,) = predict(model, [u], {"ends": task}, "text", decode, Recordings(16000))
            assert made["probabilities"] == pytest.approx(read["probabilities"], abs=2e-6)
    right = [made["parsed"] == u.label for u, made in zip(tested, found, strict=True)]
    assert score(found)["accuracy"] == np.mean(right)
    assert 0 <= score(found)["ece"] <= 1


@pytest.mark.parametrize("beams", [1, 4])
def test_what_is_written_can_be_kept_to_the_choices(model, tested, beams):
    """Alone as in a batch."""
    decode = Decode(constrain=True, beams=beams, max_new_tokens=40)
    asked_for = ({"ends": ENDS}, "text")
    found = predict(model, tested, *asked_for, decode, Recordings(16000))
    one = [predict(model, [u], *asked_for, decode, Recordings(16000))[0] for u in tested]
    assert [made["text"] for made in found] == [made["text"] for made in one]
    assert all(made["parsed"] in u.choices for u, made in zip(tested, found, strict=True))
    assert score(found)["invalid_rate"] == 0
    free = predict(model, tested, *asked_for, Decode(max_new_tokens=3), Recordings(16000))
    assert score(free)["invalid_rate"] == 1  # noise writes none of them
    with pytest.raises(SpecError, match="choice 'Nobody came, 向左' of task ends takes 14 tokens"):
        predict(model, tested, *asked_for, Decode(constrain=True, max_new_tokens=5), Recordings(16000))


def test_beams_as_many_as_choices_find_the_best_mean_of_each_row(model, tested):
    put = [example(u, "text", ENDS, model.tokens, Recordings(16000), supervised=False) for u in tested]
    tries = [Trie(closed_answers(own_task(u, ENDS), model.tokens)) for u in tested]
    found = generate(
        model, put, beams=4, max_new_tokens=40, constraint=Constraint(tries, {model.tokens.end}, 40, "ends")
    )
    best = log_likelihoods(model, put, tries, per_token=True).argmax(-1).tolist()
    want = [trie.answers[n] for trie, n in zip(tries, best, strict=True)]
    assert [model.tokens.tokenizer.decode(ids) for ids in found] == want


def test_choices_that_no_tokens_tell_apart_are_refused(model):
    class Folding:
        def answer_ids(self, text):
            return model.tokens.answer_ids(text.casefold())

    with pytest.raises(DataError, match="'Yes' and 'yes' are the same to the base's tokenizer"):
        closed_answers(own_task(row(0, choices=("Yes", "no", "yes"), label="no"), ENDS), Folding())


# ---- jobs

TRAINS = {"steps": 2, "tuning": {"rank": 4, "encoder": "frozen"}}


def made(world, **fields):
    """(Resolved, Corpus) of a job on the stories that is no more than these fields say."""
    job = {"name": "t", "base": str(world[0]), "language": "en", "data": {"text": "text", "speech": "speech"}}
    return read_and_resolve(parse_job({**job, "global_batch": 8, **fields}), [world[1]])


def test_a_job_learns_choices_and_is_scored_by_likelihood(world, tmp_path):
    evaluate = {
        "decode": {"method": "mean_likelihood"}, "cascade": True, "demos": {"k": [1, 0], "retriever": "tfidf"},
        "metric": "accuracy",
    }  # fmt: skip
    tasks = [{**MENU.model_dump(exclude_defaults=True), "metrics": ["accuracy", "ece", "invalid_rate"]}]
    resolved, corpus = toy.resolved(*world, evaluate=evaluate, tasks=tasks, recipe="sft", steps=2)
    store = FolderStore(tmp_path)
    result = run(resolved, store, corpus=corpus, threads=1)
    assert result.outcome == "succeeded"
    names = {key.rsplit("/", 1)[-1] for key in store.list("attempts/1/predictions/")}
    assert names == {f"{way}{k}.jsonl" for way in ("speech", "text", "cascade") for k in ("", ".0-shot")}
    for name in names:
        for made, u in zip(read_lines(store.get(f"attempts/1/predictions/{name}")), corpus.test.rows, strict=True):
            assert (made["reference"], list(made["probabilities"])) == (u.label, list(u.choices))
            assert made["valid"]
            assert len(made.get("demonstrations", [])) == (0 if "0-shot" in name else 1)
    assert {s.metric for s in result.scores} == {"accuracy", "accuracy_answered", "ece", "invalid_rate"}


def test_choices_as_a_guard_of_a_job_about_labels(world, tmp_path):
    """Scored by likelihood, as the job's own labels are, before and after."""
    data = toy.data(tmp_path / "data")
    stories(data / "mc")
    evaluate = {"decode": {"method": "mean_likelihood"}, "guards": ["mc/speech:test"], "limit": 4}
    resolved, corpus = made((world[0], data), evaluate=evaluate, recipe="sft", **TRAINS)
    store = FolderStore(tmp_path / "out")
    result = run(resolved, store, corpus=corpus, threads=1)
    assert {(g.task, g.metric, g.n) for g in result.guards} >= {("ends", "accuracy", 4), ("ends", "invalid_rate", 4)}
    after = read_lines(store.get("attempts/1/guards/0-after.jsonl"))
    chosen = {u.id: u.choices for u in corpus.guards[0].source.rows}
    assert all(list(made["probabilities"]) == list(chosen[made["utterance"]]) for made in after)


@pytest.mark.parametrize("fields", [
    {"recipe": {"name": "label_permutation", "labels": "regular", "demonstrations": {"most": 2}}, **TRAINS},
    {"recipe": {"name": "data_scheduling", "schedule": "ads"}, **TRAINS},
    {"recipe": {"name": "salad", "alpha": 0.5}, **TRAINS},
    {"recipe": "untuned"},
])  # fmt: skip
def test_recipes_that_ask_for_no_closed_set_run(world, tmp_path, fields):
    resolved, corpus = made(world, evaluate={"decode": {"method": "likelihood"}, "limit": 3}, **fields)
    assert run(resolved, FolderStore(tmp_path), corpus=corpus, threads=1).outcome == "succeeded"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"recipe": "majority"}, "recipe: majority learns from labels of other rows, and those of task ends"),
        ({"recipe": "linear_probe"}, "recipe: linear_probe learns from labels of other rows"),
        ({"recipe": "label_permutation"}, r"tasks\.ends\.answer: labels: random replaces the names .* choice has none"),
        ({"evaluate": {"labels": "symbol"}}, r"tasks\.ends\.answer: labels: symbol replaces the names"),
        ({"evaluate": {"labels": "permuted"}}, r"tasks\.ends\.answer: labels: permuted replaces the names"),
        ({"evaluate": {"metric": "macro_f1"}}, r"evaluate\.metric: is not defined for the answer form 'choice'"),
        ({"evaluate": {"metric": "ece"}}, "asks how sure the model is"),
        ({"data": {"speech": "speech", "speech_per_label": 1}}, r"of data\.speech chooses among answers of its own"),
    ],
)
def test_what_needs_a_closed_set_is_refused(world, fields, says):
    with pytest.raises(SpecError, match=says):
        made(world, **fields)


def test_refusals_of_the_functions_themselves(world, model):
    rows = [row(n) for n in range(3)]
    with pytest.raises(ValueError, match="task 'ends': what is right of a row's own choices no other row says"):
        majority(rows, rows, ENDS)
    _, corpus = toy.resolved(*world)
    mute = [replace(u, text=None) for u in corpus.sources["speech"].rows] * 3
    found = check(load(world[0]), mute, ENDS)
    assert (found.probe_accuracy, found.encoder) == (None, "frozen")
    assert "an answer of the form choice cannot be probed" in found.verdict


def test_rows_and_task_that_do_not_fit_are_refused_before_training(world):
    tone = {"name": "ends", "instruction": {"en": "?"}, "answer": "label", "labels": ENDINGS}
    with pytest.raises(UnfitDataError, match=r"tasks\.ends\.answer: row text-0 of text:train has choices, which only"):
        made(world, tasks=[tone])


def test_rows_without_choices_are_refused_before_training(world, tmp_path):
    data = toy.data(tmp_path / "data")
    tone = {"name": "tone", "instruction": {"en": "?"}, "answer": "choice"}
    with pytest.raises(UnfitDataError, match=r"tasks\.tone\.answer: row .* has no choices, of which it asks for one"):
        made((world[0], data), tasks=[tone])


def test_a_study_leaves_out_what_does_not_apply(world):
    study = StudySpec(
        study="s", base=str(world[0]), language="en", data={"speech": "speech", "text": "text"}, recipe="sft",
        tuning={"encoder": "frozen"}, steps=2, grid={"seed": [1, 2]},
        evaluate={"decode": {"method": "mean_likelihood"}},
    )  # fmt: skip
    found = expand(study, Reader([world[1]]))
    assert (found.controls, [cell.name for cell in found.baselines]) == (["untuned"], ["untuned"])
    with pytest.raises(SpecError, match=r"controls: majority learns from labels of other rows.*; leave it out"):
        expand(study.model_copy(update={"controls": ["majority"]}), Reader([world[1]]))


def test_the_front_door_knows_them(world, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    job = {"name": "t", "base": str(world[0]), "language": "en", "data": {"text": "text", "speech": "speech"}}
    job |= {"recipe": "sft", "steps": 2, "evaluate": {"decode": {"method": "mean_likelihood"}}}
    path.write_text(yaml.safe_dump(job | {"tuning": {"encoder": "frozen"}}))
    for command in ("validate", "explain", "plan"):
        assert main([command, str(path), "--data-root", str(world[1])]) == 0, capsys.readouterr().out
    assert main(["explain", str(path), "--tiny"]) == 0
    assert "mean_likelihood" in capsys.readouterr().out


def test_a_recording_of_a_story_keeps_its_choices(world):
    found = found_in("text", [world[1]])
    assert found.records[0].choices == row(0).choices
