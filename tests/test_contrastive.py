"""Contrastive pre-training (arXiv 2412.15712): losses against plain loops, groups, neutral setting, resume, cuts."""

import math

import numpy as np
import pytest
import torch
import toy
from toy import losses, train

from trainer.batch import Shared, assign
from trainer.families import load
from trainer.fields import SpecError
from trainer.objectives import Size, objective_loss
from trainer.objectives.contrastive import pair_losses
from trainer.objectives.sinkhorn import divergences
from trainer.plan import plan_stage
from trainer.ranks import spawn
from trainer.stage import Contrastive, CrossEntropy, Plain, Stage
from trainer.store import FolderStore
from trainer.strategies.contrastive import Contrastive as Recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def job(world, **knobs):
    """3 steps of pre-training on 18 recordings, 3 of tuning; knobs as of the recipe."""
    own = {} if knobs.get("pretrain") in ("asr", "mixed") and "group_size" not in knobs else {"group_size": 4}
    recipe = {"name": "contrastive", "pretrain_epochs": 8 * 3 / 18, **own, **knobs}
    return toy.resolved(*world, recipe=recipe, steps=6)


@pytest.fixture(scope="module")
def heard(world):
    """(model, 8 examples of the first step)"""
    resolved, corpus = job(world)
    model = load(world[0], tuning=resolved.spec.tuning, seed=0)
    loop = toy.loop(resolved, corpus, model)
    with loop.ahead(resolved.stages[0], loop.plans[0]) as ahead:
        return model, list(ahead.step(0).outlines)


def stock_states(model, example):
    """All hidden states of a transcript and of a recording, by the stock forward: two lists of (tokens, width)."""
    out = []
    for ids, waves in ((example.twin.prompt, []), ((model.tokens.audio_id,) * audio_count(model, example), [1])):
        inputs = model.embed(torch.tensor([ids]), [example.wave] if waves else [])
        made = model.language_model(inputs_embeds=inputs, output_hidden_states=True)
        out.append([h[0] for h in made.hidden_states])
    return out


def audio_count(model, example):
    return example.prompt.count(model.tokens.audio_id)


@pytest.mark.parametrize("pretrain", ["none", "asr", "contrastive"])
def test_a_stored_recipe_is_read_back(pretrain):
    recipe = Recipe(pretrain=pretrain)
    assert Recipe.model_validate(recipe.model_dump()) == recipe


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_cosine_loss_is_the_double_loop(heard, symmetric):
    """One pair after the other, one layer after the other, by the stock forward."""
    model, examples = heard
    kind = Contrastive(group_size=4, symmetric=symmetric, layers=[0.0, 0.5, 1.0])
    with torch.no_grad():
        found, figures = pair_losses(kind, model, model.collate(examples))
        states = [stock_states(model, e) for e in examples]
        want, right, alike = [0.0] * 8, 0, 0.0
        for layer in (0, 1, 2):
            text, speech = ([s[side][layer].double().mean(0).numpy() for s in states] for side in (0, 1))
            for i in range(8):
                others = range(4 * (i // 4), 4 * (i // 4) + 4)
                scores = {j: cosine(text[i], speech[j]) / 0.1 for j in others}
                loss = math.log(sum(math.exp(s) for s in scores.values())) - scores[i]
                if symmetric:
                    back = {j: cosine(text[j], speech[i]) / 0.1 for j in others}
                    loss = (loss + math.log(sum(math.exp(s) for s in back.values())) - back[i]) / 2
                want[i] += loss
                if layer == 2:
                    right += max(scores, key=scores.get) == i
                    alike += scores[i] * 0.1
    assert found.tolist() == pytest.approx(want, rel=1e-3)
    assert figures.tolist() == pytest.approx([sum(want), right, alike], rel=1e-3)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_recordings_of_the_same_words_are_no_counter_examples(heard):
    model, examples = heard
    kind = Contrastive(group_size=2, layers="embedding")
    with torch.no_grad():
        found, _ = pair_losses(kind, model, model.collate([examples[0], examples[0]]))
    assert found.tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------ Sinkhorn


def plain_transport(x, y, blur=0.05):
    """Dual value of the regularised transport by the same schedule, one number after the other."""
    cost = np.array([[((p - q) ** 2).sum() / 2 for q in y] for p in x])
    epsilons, value = [4.0], 2 * math.log(2)
    while value > 2 * math.log(blur):
        epsilons.append(math.exp(value))
        value += 2 * math.log(0.5)
    epsilons.append(blur**2)

    def soft(epsilon, row, potential):
        return -epsilon * math.log(
            sum(math.exp((p - c) / epsilon) / len(row) for c, p in zip(row, potential, strict=True))
        )

    f = [soft(4.0, row, [0] * len(y)) for row in cost]
    g = [soft(4.0, row, [0] * len(x)) for row in cost.T]
    for epsilon in epsilons:
        new_f = [soft(epsilon, row, g) for row in cost]
        new_g = [soft(epsilon, row, f) for row in cost.T]
        f, g = ([(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in ((f, new_f), (g, new_g)))
    f, g = [soft(epsilon, row, g) for row in cost], [soft(epsilon, row, f) for row in cost.T]
    return sum(f) / len(f) + sum(g) / len(g)


def clouds(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in sizes]
    return [torch.nn.functional.normalize(c, dim=-1) for c in made]


def test_sinkhorn_is_the_plain_iteration():
    x, y = clouds(3, 5, 2), clouds(4, 1, 6, seed=1)
    found = divergences(x, y, 0.05)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            u, v = a.numpy(), b.numpy()
            want = plain_transport(u, v) - plain_transport(u, u) / 2 - plain_transport(v, v) / 2
            assert float(found[i, j]) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_sinkhorn_is_0_from_itself_and_half_the_square_between_points():
    x = clouds(4, 4)
    assert float(divergences(x[:1], x[:1], 0.05).abs()) < 1e-12
    a, b = clouds(1, 1, seed=3)
    assert float(divergences([a], [b], 0.05)) == pytest.approx(float(((a - b) ** 2).sum() / 2))


def test_sinkhorns_gradient_points_along_its_change():
    """The held potentials are almost optimal, so the gradient is almost that of finite differences."""
    (x,), (y,) = clouds(4, seed=5), clouds(3, seed=6)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(divergences([x], [y], 0.5).sum(), x)
    with torch.no_grad():
        turn = torch.linalg.qr(torch.eye(5, dtype=torch.float64) + 0.5 * clouds(5, seed=7)[0])[0]
        step = x @ (turn - turn.T) * 1e-5  # along the sphere
        change = divergences([x + step], [y], 0.5) - divergences([x - step], [y], 0.5)
    assert float(change) / 2 == pytest.approx(float((gradient * step).sum()), rel=0.05)


@pytest.mark.parametrize("kind", [
    Contrastive(group_size=4), Contrastive(group_size=4, similarity="wasserstein", layers=[0.0, 1.0]),
    Contrastive(group_size=8, layers="embedding", answer_weight=1.0),
], ids=["cosine", "wasserstein", "with answers"])  # fmt: skip
def test_gradients_reach_the_projector_and_are_finite(heard, kind):
    model, examples = heard
    for p in model.trained.values():
        p.grad = None
    objective_loss(kind, model, model.collate(examples)).total.backward()
    moved = {model.part_of(k) for k, p in model.trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "projector" in moved
    assert all(torch.isfinite(p.grad).all() for p in model.trained.values() if p.grad is not None)


def test_sinkhorn_scores_are_those_of_the_states(heard):
    """The loss of a pair by hand from the divergences of its group's states."""
    model, examples = heard
    with torch.no_grad():
        kind = Contrastive(group_size=4, similarity="wasserstein", layers="embedding")
        found, _ = pair_losses(kind, model, model.collate(examples[:4]))
        states = [stock_states(model, e) for e in examples[:4]]
        sides = [[torch.nn.functional.normalize(s[side][0], dim=-1) for s in states] for side in (0, 1)]
        want = -torch.log_softmax(-divergences(*sides, 0.05) / 0.1, 1).diagonal()
    assert found.tolist() == pytest.approx(want.tolist(), rel=1e-3)


# ---------------------------------------------------------------------------------------------- in the loop


def test_groups_stay_whole_on_one_rank():
    lengths = [5, 9, 4, 4, 3, 8, 1, 1, 2, 2, 2, 2]
    for budget in (1, 25, 1000):
        for world_size in (1, 2, 3):
            ranks = assign(lengths, [Shared(0, tuple(range(12)))], budget, world_size, unit=4)
            units = [tuple(b[i : i + 4]) for rank in ranks for b in rank for i in range(0, len(b), 4)]
            assert sorted(units) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert assign(lengths, [], 35, unit=4) == [[list(range(8)), list(range(8, 12))]]


def test_a_micro_batch_counts_by_the_whole_step(heard):
    """Pairs are averaged over the step's pairs, answers over its tokens, whatever a micro-batch holds of either."""
    model, examples = heard
    kind = Contrastive(group_size=4, answer_weight=0.5, weight=2.0)
    size = Size(8, sum(len(e.answer) for e in examples))
    with torch.no_grad():
        whole = objective_loss(kind, model, model.collate(examples), size)
        parts = [objective_loss(kind, model, model.collate(examples[a : a + 4]), size) for a in (0, 4)]
        pairs, _ = pair_losses(kind, model, model.collate(examples))
        answers = objective_loss(CrossEntropy(), model, model.collate(examples)).total
    assert float(sum(p.total for p in parts)) == pytest.approx(float(whole.total), rel=1e-5)
    want = 2.0 * float(pairs.mean()) + 0.5 * float(answers) / size.tokens
    assert float(whole.total) / size.tokens == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("pretrain", ["contrastive", "contrastive+asr"])
def test_resume_is_undisturbed_and_cuts_change_rounding_only(world, tmp_path, pretrain):
    resolved, corpus = job(world, pretrain=pretrain)
    whole, files = train(resolved, corpus, world)
    assert [e["stage"] for e in whole] == ["pretraining"] * 3 + ["tuning"] * 3
    assert all(0 <= e["retrieval"] <= 1 and -1 <= e["alignment"] <= 1 for e in whole[:3])
    assert not any("retrieval" in e for e in whole[3:])
    if pretrain == "contrastive":
        assert [e["contrastive"] for e in whole[:3]] == pytest.approx(losses(whole)[:3], rel=1e-5)
    store, told = FolderStore(tmp_path), iter(["continue", "checkpoint_and_exit"])
    first, _ = train(resolved, corpus, world, store=store, control=lambda: next(told), checkpoint_every=99)
    rest, resumed = train(resolved, corpus, world, store=store, attempt=2)
    assert losses(first) + losses(rest) == losses(whole)
    assert resumed == files
    assert losses(train(resolved, corpus, world, budget=1)[0]) == pytest.approx(losses(whole), rel=1e-5)


def in_two(ranks, world, out):
    torch.set_num_threads(1)
    resolved, corpus = job(world)
    events, files = train(resolved, corpus, world, ranks=ranks, budget=1)
    if ranks.rank == 0:
        np.save(out / "losses.npy", [[e["loss"], e.get("retrieval", 0), e.get("alignment", 0)] for e in events])
    (out / f"{ranks.rank}.safetensors").write_bytes(files["adapter_model.safetensors"])


def test_two_ranks_are_one_rank_to_rounding(world, tmp_path):
    spawn(in_two, 2, world, tmp_path, method="fork")
    resolved, corpus = job(world)
    events, _ = train(resolved, corpus, world)
    want = [[e["loss"], e.get("retrieval", 0), e.get("alignment", 0)] for e in events]
    assert np.load(tmp_path / "losses.npy") == pytest.approx(np.array(want), rel=1e-4, abs=1e-6)
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_weight_0_is_plain_fine_tuning_bit_for_bit(world):
    resolved, corpus = toy.resolved(*world, recipe="sft", data={"speech": "speech"}, steps=3)
    (stage,) = resolved.stages
    neutral = stage.model_copy(update={"objective": Contrastive(weight=0, answer_weight=1)})
    a, one = train(resolved, corpus, world)
    b, other = train(resolved.model_copy(update={"stages": [neutral]}), corpus, world)
    assert losses(a) == losses(b)
    assert one == other


def test_without_pretraining_the_recipe_is_plain_fine_tuning_bit_for_bit(world):
    plain, corpus = toy.resolved(*world, recipe="sft", steps=3)
    none, _ = toy.resolved(*world, recipe={"name": "contrastive", "pretrain": "none"}, steps=3)
    assert train(plain, corpus, world)[1] == train(none, corpus, world)[1]


def test_pretraining_asks_for_the_transcript_and_trains_the_projector_alone(world):
    resolved, corpus = job(world, pretrain="asr")
    first, last = resolved.stages
    model = load(world[0], tuning=resolved.spec.tuning, seed=0)
    asked, plain = (toy.loop(resolved, corpus, model).examples(s, "speech", 4, 1, 0) for s in (first, last))
    assert model.tokens.tokenizer.decode(asked.answer[:-1]) == "tone 4 is middle"
    assert model.tokens.tokenizer.decode(plain.answer[:-1]) == "middle"
    assert "Transcribe" in model.tokens.tokenizer.decode(asked.prompt)
    assert (first.trainable.lm, first.trainable.projector, first.objective) == (False, True, CrossEntropy())
    assert last.view == Plain()


def test_a_tenth_of_the_task_is_the_same_rows_all_along(world):
    resolved, _ = job(world, data_fraction=0.25)
    plan = plan_stage(resolved, 1)
    shown = {s: set(plan.row[plan.source == n].tolist()) for n, s in enumerate(resolved.stages[1].sources)}
    assert {s: len(rows) for s, rows in shown.items()} == {"text": 6, "speech": 5}
    wider = plan_stage(job(world, data_fraction=0.5)[0], 1)
    for n, rows in enumerate(shown.values()):
        assert rows <= set(wider.row[wider.source == n].tolist())


def test_another_tenth_is_another_job(world):
    """Of a fraction the subset's seed chooses the rows, which no pin knows; of whole sources it says nothing."""

    def seeded(fraction, seed):
        recipe = {"name": "contrastive", "pretrain": "none", "data_fraction": fraction}
        data = {"text": "text", "speech": "speech", "subset_seed": seed}
        return toy.resolved(*world, recipe=recipe, data=data)[0]

    plans = [plan_stage(seeded(0.25, seed), 0).sha256 for seed in (0, 1)]
    assert plans[0] != plans[1]
    assert seeded(0.25, 0).hash != seeded(0.25, 1).hash
    assert seeded(1, 0).hash == seeded(1, 1).hash
    plan = plan_stage(seeded(1e-12, 0), 0)
    assert len(set(zip(plan.source.tolist(), plan.row.tolist(), strict=True))) == 2  # one row of each source


def test_layers_are_shares_of_the_depth():
    assert Contrastive().depths(32) == [0, 5, 10, 15, 20, 25, 32]
    assert Contrastive().depths(2) == [0, 1, 2]
    assert Contrastive(layers="embedding").depths(28) == [0]


@pytest.mark.parametrize(("knobs", "words"), [
    ({"pretrain": "mixed"}, "18 rows have no times of two words"), ({"init_from": "x"}, "say init_from beside recipe"),
    ({"pretrain": "asr", "group_size": 4}, "compares nothing; leave group_size out"),
    ({"group_size": 3}, "multiple of the objective"), ({"layers": []}, "makes no stage: layers names none"),
    ({"pretrain_epochs": 3}, "pre-training takes 7 steps of 6"),
])  # fmt: skip
def test_what_cannot_be_followed_is_refused(world, knobs, words):
    with pytest.raises(SpecError, match=words):
        job(world, **knobs)


def test_without_pretraining_sentences_are_enough(world):
    recipe, fields = {"name": "contrastive", "pretrain": "none"}, {"data": {"text": "text"}}
    fields["evaluate"] = {"on": "speech:test"}
    resolved, _ = toy.resolved(*world, recipe=recipe, **fields)
    assert [stage.name for stage in resolved.stages] == ["tuning"]
    with pytest.raises(SpecError, match="tune: projector needs the source 'speech'"):
        toy.resolved(*world, recipe={**recipe, "tune": "projector"}, **fields)


def test_a_blur_beyond_the_sphere_is_refused():
    with pytest.raises(ValueError, match="less than or equal to 2"):
        Contrastive(similarity="wasserstein", blur=2.5)
    cloud = torch.nn.functional.normalize(torch.ones(2, 3), dim=-1)
    assert float(divergences([cloud], [cloud], blur=2.0)) == pytest.approx(0, abs=1e-5)


def test_text_has_no_recording_to_be_compared_with():
    with pytest.raises(ValueError, match="leave text out of mix"):
        Stage(name="x", steps=1, mix={"text": 0.5, "speech": 0.5}, objective=Contrastive())
    Stage(name="x", steps=1, mix={"text": 0.5, "speech": 0.5}, objective=Contrastive(weight=0, answer_weight=1))
