import math
from itertools import pairwise

import pytest
import torch
import toy

from trainer.checkpoint import newest
from trainer.families import load
from trainer.fields import SpecError
from trainer.memory import out_of_memory
from trainer.schedule import lr_scale
from trainer.stage import Optimizer, Trainable
from trainer.store import FolderStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


@pytest.fixture
def job(world):
    return toy.resolved(*world)


def model_for(resolved, world):
    return load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)


# ------------------------------------------------------------------------------------------------ schedule


def test_rate_warms_up_then_falls_to_the_final_ratio():
    o = Optimizer(schedule="cosine", warmup_ratio=0.1, final_lr_ratio=0.1)
    rates = [lr_scale(t, 100, o) for t in range(100)]
    assert rates[:10] == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.55)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0.1 < rates[-1] < 0.11


def test_wsd_holds_then_falls_and_constant_holds():
    o = Optimizer(schedule="wsd", warmup_ratio=0, decay_ratio=0.2)
    assert [lr_scale(t, 10, o) for t in range(10)] == pytest.approx([1] * 8 + [1, 0.5])
    linear = o.model_copy(update={"schedule": "linear"})
    assert [lr_scale(t, 4, linear) for t in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert {lr_scale(t, 9, o.model_copy(update={"schedule": "constant"})) for t in range(9)} == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_no_step_of_a_short_stage_is_spent_at_zero(schedule, steps):
    o = Optimizer(schedule=schedule, warmup_ratio=0.5, decay_ratio=1)
    assert all(0 < lr_scale(t, steps, o) <= 1 for t in range(steps))


# ---------------------------------------------------------------------------------------------------- loop


def test_events_say_what_each_step_was_made_of(job, world):
    resolved, corpus = job
    events = []
    loop = toy.loop(resolved, corpus, model_for(resolved, world), sink=events.append)
    outcome = loop.run()
    assert outcome.reason is None
    assert outcome.step == 9
    steps = [e for e in events if e["kind"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 10))
    assert [e["stage"] for e in steps] == ["text_first"] * 6 + ["mixed_last"] * 3
    assert all(sum(e["examples"].values()) == 8 and math.isfinite(e["loss"]) for e in steps)
    mixed = [e for e in steps if e["stage"] == "mixed_last"]
    shown, due = (sum(e[k]["speech"] for e in mixed) * 8 for k in ("realised_mix", "requested_mix"))
    assert abs(shown - due) <= 1
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_text_only_stage_leaves_the_projector_alone(job, world):
    resolved, corpus = job
    model = model_for(resolved, world)
    before = {k: p.detach().clone() for k, p in model.trained.items()}
    told = iter(["continue"] * 5 + ["checkpoint_and_exit"])
    toy.loop(resolved, corpus, model, control=lambda: next(told)).run()
    moved = {k for k, p in model.trained.items() if not torch.equal(p, before[k])}
    assert moved
    assert not any("projector" in k for k in moved)


def memory_of(limit, loop, monkeypatch):
    """Micro-batches of more than `limit` examples run out of memory."""
    whole, sizes = loop._backward, []

    def backward(stage, examples, *rest):
        sizes.append(len(examples))
        if len(examples) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(stage, examples, *rest)

    monkeypatch.setattr(loop, "_backward", backward)
    return sizes


def test_out_of_memory_repeats_the_step_with_half(job, world, monkeypatch):
    resolved, corpus = job
    events, model, calm = [], model_for(resolved, world), model_for(resolved, world)
    loop = toy.loop(resolved, corpus, model, sink=events.append, budget=400)
    sizes = memory_of(3, loop, monkeypatch)
    assert loop.run().reason is None
    notes = [e for e in events if e["kind"] == "note"]
    assert "step 1 is repeated with micro-batches of 200 tokens" in notes[0]["message"]
    assert len([e for e in events if e["kind"] == "step"]) == 9
    assert max(sizes) > 3 >= sizes[-1]
    # The same bits as a run that had the small budget from the start: nothing of the failed tries is left.
    toy.loop(resolved, corpus, calm, budget=loop.budget).run()
    assert model.files() == calm.files()


def kept(loop):
    """What a later attempt would go on from: nothing since the last checkpoint is lost."""
    found = newest(loop.store, lambda event: None)
    assert found is not None
    assert (found.step, found.adapter, found.logs) == (loop.step, loop.model.files(), loop.logs)
    return found


def test_one_example_that_does_not_fit_ends_the_run_with_its_reason(job, world, monkeypatch, tmp_path):
    resolved, corpus = job
    model = model_for(resolved, world)
    loop = toy.loop(resolved, corpus, model, store=FolderStore(tmp_path), checkpoint_every=100)
    whole = loop._backward

    def backward(stage, examples, *rest):
        if loop.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(stage, examples, *rest)

    monkeypatch.setattr(loop, "_backward", backward)
    outcome = loop.run()
    assert (outcome.reason, outcome.step) == ("out_of_memory", 3)
    assert kept(loop).budget == 1000  # what did not help is not handed on


@pytest.mark.parametrize(
    "words",
    ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
     "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: not enough memory: you tried to allocate"],
)  # fmt: skip
def test_memory_is_known_by_its_words(words):
    assert out_of_memory(RuntimeError(words))
    assert not out_of_memory(ValueError(words))


def test_other_words_are_no_lack_of_memory():
    for words in ("CUDA error: an illegal memory access was encountered", "CUBLAS_STATUS_EXECUTION_FAILED"):
        assert not out_of_memory(RuntimeError(words))
    assert out_of_memory(torch.OutOfMemoryError("any"))


def test_other_errors_are_not_taken_for_memory(job, world, monkeypatch):
    resolved, corpus = job
    loop = toy.loop(resolved, corpus, model_for(resolved, world))

    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "_backward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        loop.run()


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_step_that_is_not_finite_stops_before_the_weights_change(job, world, monkeypatch, poison, tmp_path):
    resolved, corpus = job
    model = model_for(resolved, world)
    loop = toy.loop(resolved, corpus, model, store=FolderStore(tmp_path), checkpoint_every=3)
    whole, states = loop._gradients, []

    def gradients(*arguments):
        trial, figures, action = whole(*arguments)
        states.append(model.files())
        if loop.step == 4:
            loop.open[0].grad.view(-1)[0] = poison
        return trial, figures, action

    monkeypatch.setattr(loop, "_gradients", gradients)
    outcome = loop.run()
    assert (outcome.reason, outcome.step) == ("diverged", 4)
    assert "step 5" in outcome.message
    assert "peak_lr" in outcome.message
    assert model.files() == states[-1]
    kept(loop)


def test_control_is_obeyed_after_the_step(job, world, tmp_path):
    resolved, corpus = job
    for action, reason in (("abort", "user"), ("checkpoint_and_exit", "yielded")):
        told = iter(["continue", "continue", action])
        options = {"control": lambda t=told: next(t), "store": FolderStore(tmp_path / action)}
        loop = toy.loop(resolved, corpus, model_for(resolved, world), **options)
        outcome = loop.run()
        assert (outcome.reason, outcome.step) == (reason, 3)
        kept(loop)
    loop = toy.loop(resolved, corpus, model_for(resolved, world), control=lambda: "dance")
    with pytest.raises(ValueError, match="'dance'"):
        loop.run()


def test_a_stage_that_opens_only_frozen_parts_is_refused(job, world):
    resolved, corpus = job
    deaf = resolved.stages[0].model_copy(update={"trainable": Trainable(lm=False, encoder=True)})
    variant = resolved.model_copy(update={"stages": [deaf, resolved.stages[1]]})
    with pytest.raises(SpecError, match=r"tuning: stage text_first has nothing to train.*\(given: 'encoder'\)"):
        toy.loop(variant, corpus, model_for(variant, world)).run()


def test_text_in_a_stage_that_trains_the_projector_alone_teaches_nothing_and_breaks_nothing(world):
    recipe = {"name": "limited_speech", "scheme": "direct_mix", "speech_presentations": 1}
    tuning = {"method": "projector", "encoder": "frozen"}
    resolved, corpus = toy.resolved(*world, recipe=recipe, tuning=tuning, steps=4)
    loop = toy.loop(resolved, corpus, model_for(resolved, world), budget=60)  # micro-batches of text alone
    assert (loop.run().reason, loop.step) == (None, 4)


def test_reset_optimizer_starts_a_stage_with_fresh_moments(job, world):
    resolved, corpus = job
    fresh = resolved.model_copy(
        update={"stages": [resolved.stages[0], resolved.stages[1].model_copy(update={"reset_optimizer": True})]}
    )
    ages = []
    for variant in (resolved, fresh):
        loop = toy.loop(variant, corpus, model_for(variant, world))
        loop.run()
        lm = next(p for k, p in loop.model.trained.items() if "lora_A" in k)
        ages.append(int(loop.optimizer.state[lm]["step"]))
    assert ages == [9, 3]


def test_gradients_are_clipped_to_the_global_norm(job, world):
    resolved, corpus = job
    model = model_for(resolved, world)
    loop = toy.loop(resolved, corpus, model)
    loop.open = list(model.trained.values())
    for p in loop.open:
        p.grad = torch.full_like(p, 0.5)
    norm = loop._gradient_norm(tokens=1)
    assert norm == pytest.approx(0.5 * math.sqrt(sum(p.numel() for p in loop.open)))
    loop._update(resolved.stages[0], 0, norm)
    clipped = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in loop.open))
    assert clipped == pytest.approx(resolved.stages[0].optimizer.clip_norm, rel=1e-5)


def test_dropout_depends_on_seed_and_step_alone(world):
    resolved, corpus = toy.resolved(*world, tuning={"rank": 4, "encoder": "frozen", "dropout": 0.3})
    files = []
    for noise in (1, 2):
        model = model_for(resolved, world)
        torch.manual_seed(noise)
        toy.loop(resolved, corpus, model).run()
        files.append(model.files())
    assert files[0] == files[1]
