"""Decoding: what is computed once is the same as computed for every row."""

import pytest
import torch
import toy

from trainer.decoding import generate
from trainer.decoding.prompts import Prompts, common_prefix
from trainer.families import load
from trainer.spec import Execution
from trainer.views import Example


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights: what it says is noise, but the same noise every time."""
    return load(toy.base(tmp_path_factory.mktemp("base")))


def spoken(model, n, instruction="Which of the many tones is it?", order="instruction_first"):
    wave = toy.wave(200 + 30 * n, 0.2 + 0.05 * (n % 9), seed=n)
    prompt = model.tokens.prompt_ids(instruction, model.tokens.audio_tokens(len(wave)), order)
    return Example(f"s{n}", prompt, (), wave)


def written(model, n, instruction="Which of the many tones is it?", order="instruction_first"):
    text = "the tone of today is " + "very " * (n % 5) + f"number {n}"
    return Example(f"t{n}", model.tokens.prompt_ids(instruction, text, order), (), None)


def batches(model):
    yield [spoken(model, n) for n in range(12)]
    yield [written(model, n) for n in range(12)]
    yield [make(model, n) for n in range(8) for make in (spoken, written)]
    yield [spoken(model, n, order="audio_first") for n in range(6)]
    yield [spoken(model, n, "Which?" if n % 2 else "Which tone, after all that was said?") for n in range(6)]
    yield [written(model, 1), written(model, 1), written(model, 1)]  # all but the last id is shared
    yield [spoken(model, 3)]


@pytest.mark.parametrize("which", range(7))
@torch.inference_mode()
def test_a_shared_prefix_changes_no_logit(model, monkeypatch, which):
    examples = list(batches(model))[which]
    shared = Prompts(model, examples)
    monkeypatch.setattr(model, "execution", Execution(share_prefix=False))
    apart = Prompts(model, examples)
    assert (shared.shared >= 8) == (len(examples) > 1)  # the system turn at least
    assert apart.shared == 0
    for step in range(4):
        a, b = shared.next(), apart.next()
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        if step == 1 and len(examples) > 1:  # rows leave, one is repeated, as in the searches
            rows = torch.tensor([len(examples) - 1, 0, 0])
            shared.select(rows)
            apart.select(rows)
            b = b[rows]
        shared.feed(b.argmax(-1))
        apart.feed(b.argmax(-1))


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_without_sharing_and_alone(model, monkeypatch, beams):
    for examples in batches(model):
        want = [generate(model, [e], beams=beams, max_new_tokens=5)[0] for e in examples]
        for share in (True, False):
            monkeypatch.setattr(model, "execution", Execution(share_prefix=share))
            assert generate(model, examples, beams=beams, max_new_tokens=5) == want


def test_a_shared_prefix_is_computed_for_one_row(model, monkeypatch):
    seen, states = [], model.states

    def watched(inputs, **options):
        seen.append(tuple(inputs.shape[:2]))
        return states(inputs, **options)

    monkeypatch.setattr(model, "states", watched)
    examples = [spoken(model, n) for n in range(12)]
    prompts = Prompts(model, examples)
    prompts.next()
    assert seen == [(1, prompts.shared), (12, max(len(e.prompt) for e in examples) - prompts.shared)]


def test_a_cache_that_forgets_shares_nothing(model, monkeypatch):
    """Under a sliding window the padding between prefix and rest would count as distance."""
    config = model.language_model.config
    monkeypatch.setattr(config, "layer_types", ["full_attention", "sliding_attention"])
    monkeypatch.setattr(config, "sliding_window", 16)
    assert Prompts(model, [spoken(model, n) for n in range(3)]).shared == 0


def test_the_common_prefix_ends_before_recordings_and_the_last_id():
    assert common_prefix([(1, 2, 3, 4), (1, 2, 3, 5)], 9) == 3
    assert common_prefix([(1, 2, 9, 4), (1, 2, 9, 5), (1, 2, 9, 9)], 9) == 2
    assert common_prefix([(1, 2, 3), (1, 2, 3), (1, 2, 3, 4)], 9) == 2
    assert common_prefix([(1, 2), (3, 2)], 9) == 0
    assert common_prefix([(1, 2, 3)], 9) == 0
