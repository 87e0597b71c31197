"""Labels scored by likelihood: the same numbers as writing each label alone, and what may be concluded from them."""

import numpy as np
import pytest
import torch
import toy

from trainer.decoding import generate
from trainer.decoding.constrain import Constraint, Trie, closed_answers
from trainer.decoding.likelihood import log_likelihoods
from trainer.decoding.prompts import Prompts
from trainer.evaluate import predict
from trainer.families import load
from trainer.fields import SpecError
from trainer.metrics import score
from trainer.resolve import read_and_resolve
from trainer.spec import Decode, Execution, Task, parse_job
from trainer.views import Example, Recordings

LABELS = ["go", "go on", "go on and on", "stop", "stop it", "going", "向左", "a"]
TASK = Task(name="tone", instruction={"en": "Which tone?"}, answer="label", labels=LABELS)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


@pytest.fixture(scope="module")
def model(world):
    """Random weights: its likelihoods are noise, but the same noise every time."""
    return load(world[0])


def spoken(model, n: int) -> Example:
    wave = toy.wave(200 + 30 * n, 0.2 + 0.07 * (n % 5), seed=n)
    prompt = model.tokens.prompt_ids("Which of the tones?", model.tokens.audio_tokens(len(wave)), "instruction_first")
    return Example(f"s{n}", prompt, (), wave)


@torch.inference_mode()
def written(model, example: Example, ids: tuple[int, ...]) -> float:
    """Sum of the log-probabilities of an answer and its end, token after token."""
    prompts, total = Prompts(model, [example]), 0.0
    for token in (*ids, model.tokens.end):
        total += float(prompts.next()[0, token])
        prompts.feed(torch.tensor([token]))
    return total


@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_tree_of_labels_scores_as_each_label_alone(model, monkeypatch, share_prefix):
    monkeypatch.setattr("trainer.decoding.likelihood.LOGITS", 3 * 5 * 2560)  # three nodes at a time
    monkeypatch.setattr(model, "execution", Execution(share_prefix=share_prefix))
    closed = closed_answers(TASK, model.tokens)
    examples = [spoken(model, n) for n in range(5)]
    tries = [Trie(closed)] * 5
    found = log_likelihoods(model, examples, tries)
    want = [[written(model, e, ids) for ids in closed.values()] for e in examples]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5, atol=1e-5)
    mean = log_likelihoods(model, examples, tries, per_token=True)
    lengths = [len(ids) + 1 for ids in closed.values()]
    np.testing.assert_allclose(mean.numpy(), np.array(want) / lengths, rtol=1e-5, atol=1e-5)


def test_what_labels_begin_with_alike_is_computed_once(model, monkeypatch):
    closed = closed_answers(TASK, model.tokens)
    trie = Trie(closed)
    begun = {ids[:n] for ids in closed.values() for n in range(1, len(ids) + 1)}
    assert len(trie.children) == len(begun) + 1 < sum(map(len, closed.values())) + 1
    widths, states = [], model.states

    def watched(inputs, **options):
        widths.append(inputs.shape[1])
        return states(inputs, **options)

    monkeypatch.setattr(model, "states", watched)
    log_likelihoods(model, [spoken(model, 0)], [trie])
    assert widths[-1] == len(begun)


def test_beams_as_many_as_labels_find_the_best_mean(model):
    """Constrained beam search scores by the mean over tokens: with room for all labels it finds the best one."""
    trie = Trie(closed_answers(TASK, model.tokens))
    examples = [spoken(model, n) for n in range(6)]
    constraint = Constraint([trie], {model.tokens.end}, 20, "t")
    found = generate(model, examples, beams=len(LABELS), max_new_tokens=20, constraint=constraint)
    scores = log_likelihoods(model, examples, [trie] * 6, per_token=True)
    best = [trie.answers[i] for i in scores.argmax(-1).tolist()]
    assert [model.tokens.tokenizer.decode(ids) for ids in found] == best


def test_rows_say_how_sure_the_model_is(world, model):
    _, corpus = toy.resolved(*world)
    rows, tasks = corpus.test.rows, corpus.tasks
    for method in ("likelihood", "mean_likelihood"):
        found = predict(model, rows, tasks, "speech", Decode(method=method), Recordings(16000))
        alone = [predict(model, [u], tasks, "speech", Decode(method=method), Recordings(16000))[0] for u in rows]
        for row, one in zip(found, alone, strict=True):
            assert row["valid"]
            assert row["text"] == one["text"] == max(row["probabilities"], key=row["probabilities"].get)
            assert list(row["probabilities"]) == toy.LABELS
            assert row["confidence"] == row["probabilities"][row["text"]] >= 1 / 3
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert row["confidence"] == pytest.approx(one["confidence"], abs=1e-5)


def test_calibration_is_counted_where_labels_are_scored(world, model):
    _, corpus = toy.resolved(*world)
    tasks = {"tone": corpus.tasks["tone"].model_copy(update={"metrics": ["accuracy", "ece"]})}
    found = predict(model, corpus.test.rows, tasks, "speech", Decode(method="likelihood"), Recordings(16000))
    sure = [row["confidence"] for row in found]
    right = [row["parsed"] == row["reference"] for row in found]
    assert 0 <= score(found)["ece"] <= 1
    assert score(found)["accuracy"] == np.mean(right)
    assert score(found)["ece"] >= abs(np.mean(sure) - np.mean(right)) - 1e-9  # bins can only add
    with pytest.raises(SpecError, match=r"evaluate\.metric: asks how sure the model is: use evaluate\.decode\.method"):
        toy.resolved(*world, evaluate={"metric": "ece"})
    resolved, _ = toy.resolved(*world, evaluate={"metric": "ece", "decode": {"method": "likelihood"}})
    assert resolved.spec.evaluate.metric == "ece"


def test_a_batch_that_does_not_fit_is_cut_in_two(world, model, monkeypatch):
    _, corpus = toy.resolved(*world)
    asked = (corpus.test.rows, corpus.tasks, "speech", Decode(method="likelihood"), Recordings(16000))
    want = [row["text"] for row in predict(model, *asked)]

    def scarce(model, examples, tries, **options):
        if len(examples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return log_likelihoods(model, examples, tries, **options)

    monkeypatch.setattr("trainer.evaluate.log_likelihoods", scarce)
    assert [row["text"] for row in predict(model, *asked)] == want


def test_only_labels_are_scored(world):
    job = {"name": "t", "base": str(world[0]), "language": "en", "data": {"speech": "speech"}}
    spec = parse_job({**job, "evaluate": {"decode": {"method": "likelihood"}}, "tasks": [{
        "name": "tone", "instruction": {"en": "Which tone?"}, "answer": "text"}]})  # fmt: skip
    with pytest.raises(SpecError, match=r"decode\.method: scores labels or choices, and task tone answers text"):
        read_and_resolve(spec, [world[1]])
    with pytest.raises(SpecError, match="scores every label or choice; leave beams and constrain out"):
        parse_job({**job, "evaluate": {"decode": {"method": "likelihood", "beams": 3}}})


def test_a_window_of_attention_is_refused(model, monkeypatch):
    config = model.language_model.config
    monkeypatch.setattr(config, "layer_types", ["full_attention", "sliding_attention"])
    monkeypatch.setattr(config, "sliding_window", 16)
    with pytest.raises(SpecError, match="attends to a window only"):
        log_likelihoods(model, [spoken(model, 0)], [Trie({"a": (5,)})])
