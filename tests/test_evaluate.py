from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from transformers import AutoProcessor

from trainer.decoding import generate
from trainer.evaluate import modalities, predict, transcribe
from trainer.families import load
from trainer.metrics import score
from trainer.predictions import CASCADE, by_task, limited
from trainer.spec import Decode, Evaluate, Tuning
from trainer.tokens import AUDIO, render
from trainer.views import Recordings

GREEDY = Decode(max_new_tokens=12)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


@pytest.fixture(scope="module")
def test_set(world):
    _, corpus = toy.resolved(*world)
    return corpus.test.rows, corpus.tasks


@pytest.fixture(scope="module")
def tuned(world, test_set):
    """Trained until it answers: on random weights every argmax is a coin toss."""
    resolved, corpus = toy.resolved(
        *world, recipe={"name": "sft", "sources": ["speech"]}, steps=60,
        tuning={"rank": 8, "encoder": "full", "encoder_lr_scale": 1}, optimizer={"peak_lr": 0.01},
    )  # fmt: skip
    model = load(world[0], tuning=resolved.spec.tuning)
    toy.loop(resolved, corpus, model).run()
    return model


def heard(model, rows, tasks, decode=GREEDY, modality="speech"):
    return predict(model, rows, tasks, modality, decode, Recordings(16000))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("modality", ["speech", "text"])
def test_batched_answers_are_those_of_one_at_a_time(tuned, test_set, beams, modality):
    rows, tasks = test_set
    decode = Decode(beams=beams, max_new_tokens=12)
    together = heard(tuned, rows, tasks, decode, modality)
    alone = [heard(tuned, [r], tasks, decode, modality)[0] for r in rows]
    assert together == alone
    assert [r["utterance"] for r in together] == [u.id for u in rows]


@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_equals_the_stock_generate(world, tuned, test_set, beams):
    rows, tasks = test_set
    processor = AutoProcessor.from_pretrained(world[0])
    ours = heard(tuned, rows, tasks, Decode(beams=beams, max_new_tokens=6))
    for row, mine in zip(rows, ours, strict=True):
        clip = Recordings(16000).wave(row)
        text = render("Which tone?", AUDIO)
        inputs = processor(text=[text], audio=[clip], sampling_rate=16000, return_tensors="pt")
        stops = sorted(tuned.tokens.stops)
        out = tuned.module.generate(
            **inputs, max_new_tokens=6, num_beams=beams, do_sample=False, eos_token_id=stops, pad_token_id=stops[0],
            length_penalty=1.0,
        )  # fmt: skip
        ids = [i for i in out[0, inputs["input_ids"].shape[1] :].tolist() if i not in tuned.tokens.stops]
        assert mine["text"] == tuned.tokens.tokenizer.decode(ids)


def test_a_trained_model_scores_and_rows_add_up(tuned, test_set):
    rows, tasks = test_set
    found = heard(tuned, rows, tasks)
    assert {r["modality"] for r in found} == {"speech"}
    assert all(r["reference"] == u.label and r["speaker"] == u.speaker for r, u in zip(found, rows, strict=True))
    right = np.mean([r["parsed"] == r["reference"] for r in found])
    assert score(found)["accuracy"] == pytest.approx(right)
    assert right > 0.5


def test_an_answer_outside_the_labels_is_invalid(world, test_set):
    rows, tasks = test_set
    bare = load(world[0])
    found = heard(bare, rows[:2], tasks)
    assert all(r["parsed"] is None and not r["valid"] for r in found)
    assert score(found)["invalid_rate"] == 1


def test_cascade_answers_what_the_base_heard(tuned, world, test_set):
    rows, tasks = test_set
    found = heard(tuned, rows, tasks, modality=CASCADE)
    said = transcribe(load(world[0]), rows, Recordings(16000))
    assert [r["heard"] for r in found] == said
    # A text view needs words: rows of which the base heard none are left out here, not in the cascade.
    written = [n for n, text in enumerate(said) if text]
    assert written
    twin = heard(tuned, [replace(rows[n], text=said[n]) for n in written], tasks, modality="text")
    assert [r["text"] for r in twin] == [found[n]["text"] for n in written]


def test_a_batch_that_does_not_fit_is_cut_in_two(tuned, test_set, monkeypatch):
    rows, tasks = test_set
    want = heard(tuned, rows, tasks)

    def scarce(model, examples, **options):
        if len(examples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, examples, **options)

    monkeypatch.setattr("trainer.evaluate.generate", scarce)
    assert heard(tuned, rows, tasks) == want


def test_modalities_follow_what_the_rows_have(test_set):
    rows, _ = test_set
    mute = [replace(r, audio=None) for r in rows]
    wordless = [replace(r, text=None) for r in rows]
    assert modalities(rows, Evaluate()) == ["speech", "text"]
    assert modalities(rows, Evaluate(text_twin=False, cascade=True)) == ["speech", "cascade"]
    assert modalities(mute, Evaluate(text_twin=False)) == ["text"]
    assert modalities(wordless, Evaluate()) == ["speech"]
    with pytest.raises(ValueError, match="needs recordings"):
        modalities(mute, Evaluate(cascade=True))
    with pytest.raises(ValueError, match="test-0 has no recording, 8 others have one"):
        modalities([mute[0], *rows[1:]], Evaluate())
    with pytest.raises(ValueError, match="test-1 has neither a recording nor a transcript"):
        modalities([mute[0], replace(mute[1], text=None)], Evaluate())


def test_limit_takes_a_fixed_sample_whatever_the_order(test_set):
    rows, _ = test_set
    few = [u.id for u in limited(rows, 4)]
    assert len(few) == 4
    assert [u.id for u in limited(rows[::-1], 4)] == few
    assert [u.id for u in limited(rows, 6)][:4] == few
    assert limited(rows, None) == rows


def test_rows_of_different_tasks_are_kept_apart():
    rows = [{"task": t} for t in "aba"]
    assert {k: len(v) for k, v in by_task(rows).items()} == {"a": 2, "b": 1}


def test_prediction_leaves_the_model_ready_to_train_on(tuned, test_set):
    rows, tasks = test_set
    before = tuned.files()
    heard(tuned, rows[:1], tasks)
    assert tuned.files() == before
    assert torch.is_grad_enabled()
    assert Tuning().method == "lora"
