"""Distillation (arXiv 2510.13632): its formula by hand, its neutral setting, resume, cuts, M and F."""

import json
import math
import shutil

import pytest
import torch
import toy
from toy import losses, train

from trainer.families import load
from trainer.fields import SpecError
from trainer.objectives import objective_loss
from trainer.objectives.distillation import kl
from trainer.objectives.misalignment import measure
from trainer.spec import Execution
from trainer.stage import CrossEntropy, Distillation, Divergences
from trainer.store import FolderStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def job(world, **knobs):
    """A short job of distillation; `alpha` and so on as of the recipe."""
    own = {k: knobs.pop(k) for k in ("tuning", "data") if k in knobs}
    return toy.resolved(*world, recipe={"name": "salad", **knobs}, steps=6, **own)


def model_for(resolved, world, moved=0.0):
    """The job's model; `moved`: its trained state is that far from where it begins."""
    model = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.empty(parameter.shape).normal_(0, moved, generator=generator))
    return model


def examples(resolved, corpus, model, count=6):
    """Recordings and sentences with what the objective holds them against."""
    shown, (stage,) = toy.loop(resolved, corpus, model).examples, resolved.stages
    return [shown(stage, "speech", i, 1, i) for i in range(count)] + [shown(stage, "text", i, 0, i) for i in range(2)]


def test_kl_is_the_sum_over_the_vocabulary():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert float(kl(p.log(), q.log() + 3)) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert float(kl(p.log(), p.log())) == 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_is_the_formula_one_example_at_a_time(world, direction):
    """alpha * T^2 * KL + (1 - alpha) * cross-entropy at each token of the answer, the base reading the transcript."""
    resolved, corpus = job(world)
    model = model_for(resolved, world, moved=0.05)
    shown = examples(resolved, corpus, model)
    kind = Distillation(alpha=0.25, direction=direction, temperature=2.0)
    loss = objective_loss(kind, model, model.collate(shown))
    total = 0.0
    with torch.no_grad():
        for e in shown:
            student = model.forward(model.collate([e]))
            with model.base_only():
                teacher = model.forward(model.collate([e.twin or e]))
            hard = student.log_softmax(-1)
            s, t = (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)
            p, q = (t, s) if direction == "forward" else (s, t)
            for n, token in enumerate(e.answer):
                divergence = sum(float(a.exp() * (a - b)) for a, b in zip(p[n], q[n], strict=True))
                total += 0.25 * 4 * divergence - 0.75 * float(hard[n, token])
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    loss.total.backward()
    found = [p.grad for p in model.trained.values() if p.grad is not None]
    assert found
    assert all(torch.isfinite(g).all() for g in found)


def test_cut_into_pieces_it_is_the_same(world):
    resolved, corpus = job(world)
    model = model_for(resolved, world, moved=0.05)
    batch, found = model.collate(examples(resolved, corpus, model)), []
    for _ in range(2):
        loss = objective_loss(Distillation(alpha=0.5), model, batch)
        for p in model.trained.values():
            p.grad = None
        loss.total.backward()
        found.append([loss.total.detach(), *(p.grad for p in model.trained.values() if p.grad is not None)])
        model.execution = Execution(chunk=3)
    for a, b in zip(*found, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(a.norm()) + 1e-9


def test_alpha_0_is_plain_fine_tuning_bit_for_bit(world):
    resolved, corpus = job(world, alpha=0)
    (stage,) = resolved.stages
    plain = resolved.model_copy(update={"stages": [stage.model_copy(update={"objective": CrossEntropy()})]})
    (a, one), (b, other) = train(resolved, corpus, world), train(plain, corpus, world)
    assert losses(a) == losses(b)
    assert one == other


def test_the_teacher_leaves_closed_parts_closed(world):
    """Adapters go off and on again, and PEFT would open all of them."""
    resolved, corpus = job(world)
    model = model_for(resolved, world)
    model.set_trainable(resolved.stages[0].trainable.model_copy(update={"projector": False}))
    before = {k: p.requires_grad for k, p in model.trained.items()}
    assert not all(before.values())
    objective_loss(Distillation(), model, model.collate(examples(resolved, corpus, model)))
    assert {k: p.requires_grad for k, p in model.trained.items()} == before


def test_sentences_are_held_against_the_base_on_themselves(world):
    """At the start the tuned model is the base, so text costs nothing, and speech something."""
    resolved, corpus = job(world)
    model = model_for(resolved, world)
    rows = objective_loss(Distillation(), model, model.collate(examples(resolved, corpus, model))).rows
    assert (rows[:6] > 0.01).all()
    assert (rows[6:] == 0).all()


def test_resume_is_undisturbed_and_cuts_change_rounding_only(world, tmp_path):
    resolved, corpus = job(world, measure_every=2)
    whole, files = train(resolved, corpus, world)
    store, told = FolderStore(tmp_path), iter(["continue", "continue", "checkpoint_and_exit"])
    first, _ = train(resolved, corpus, world, store=store, control=lambda: next(told), checkpoint_every=99)
    rest, resumed = train(resolved, corpus, world, store=store, attempt=2)
    assert losses(first) + losses(rest) == losses(whole)
    assert resumed == files
    assert losses(train(resolved, corpus, world, budget=1)[0]) == pytest.approx(losses(whole), rel=1e-5)


def test_misalignment_and_forgetting_of_the_same_model_are_0(world):
    resolved, corpus = job(world)
    model = model_for(resolved, world)
    shown = examples(resolved, corpus, model)
    found = measure(model, shown, 1000)
    assert found.forgetting == 0  # the tuned model is still the base
    assert found.misalignment > 0.01  # which does not hear what it reads
    assert found.predictions == sum(len(e.answer) for e in shown)
    assert measure(model, shown[6:], 1000)[:2] == (0, 0)  # and reads what it reads


def test_misalignment_and_forgetting_are_means_over_predicted_tokens(world):
    resolved, corpus = job(world)
    model = model_for(resolved, world, moved=0.05)
    model.train(False)
    shown, sums = examples(resolved, corpus, model), [0.0, 0.0]
    with torch.no_grad():
        for e in shown:
            heard, read = (model.forward(model.collate([x])) for x in (e, e.twin or e))
            with model.base_only():
                base = model.forward(model.collate([e.twin or e]))
            sums[0] += float(kl(read, heard).sum())
            sums[1] += float(kl(base, read).sum())
    found = measure(model, shown, 60)  # several micro-batches
    assert (found.misalignment, found.forgetting) == pytest.approx([s / found.predictions for s in sums], rel=1e-4)


def test_measuring_is_logged_and_changes_no_training(world):
    resolved, corpus = job(world, measure_every=4)
    events, files = train(resolved, corpus, world)
    assert [e["step"] for e in events if "misalignment" in e] == [4, 6]
    assert all(e["forgetting"] > 0 for e in events if "forgetting" in e)
    (stage,) = resolved.stages
    silent = resolved.model_copy(update={"stages": [stage.model_copy(update={"measure": None})]})
    assert train(silent, corpus, world)[1] == files
    assert silent.hash != resolved.hash


def test_the_recipe_is_refused_where_it_cannot_be_followed(world):
    mute = shutil.copytree(world[1] / "speech", world[1] / "mute")
    lines = [json.loads(line) for line in (mute / "train.jsonl").read_text().splitlines()]
    del lines[3]["text"]
    (mute / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for knobs, words in [
        ({"phase": "active_selection"}, "needs the source 'synthetic'"),
        ({"text_share": 1}, "nothing would be heard"),
        ({"data": {"speech": "mute"}}, "data.speech: 1 rows have no transcript.* the first is train-3"),
        ({"tuning": {"method": "full", "encoder": "frozen"}}, "use method: lora"),
    ]:
        with pytest.raises(SpecError, match=words):
            job(world, **knobs)


def test_the_recipe_mixes_sentences_in_and_holds_the_rate(world):
    (stage,) = job(world, measure_every=3)[0].stages
    assert stage.mix == {"text": pytest.approx(1 / 3), "speech": pytest.approx(2 / 3)}
    assert stage.optimizer.schedule == "wsd"
    assert stage.measure == Divergences(every=3)
