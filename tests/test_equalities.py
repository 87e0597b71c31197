"""The three equalities (decisions, section 4): order always, bits where execution is the same, else
rounding."""

import numpy as np
import pytest
import torch
import toy
from safetensors.torch import load as tensors_of

from trainer import audio
from trainer.families import load
from trainer.plan import plan_stage
from trainer.ranks import Ranks, spawn
from trainer.spec import Execution
from trainer.store import FolderStore

ENCODERS = ["frozen", "lora"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def job(world, encoder="frozen", **changes):
    return toy.resolved(*world, tuning={"rank": 4, "alpha": 8, "encoder": encoder}, **changes)


def train(resolved, corpus, world, **options):
    """(losses, trained state) of a whole run."""
    events, files = toy.train(resolved, corpus, world, **options)
    return toy.losses(events), files


def far(a: dict[str, bytes], b: dict[str, bytes]) -> float:
    """Largest difference of two trained states, relative to the largest entry of each tensor."""
    x, y = (tensors_of(f["adapter_model.safetensors"]) for f in (a, b))
    assert x.keys() == y.keys()
    return max(float((x[k] - y[k]).abs().max() / y[k].abs().max().clamp(min=1e-3)) for k in x)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_accumulation_changes_a_step_by_rounding_only(world, encoder):
    resolved, corpus = job(world, encoder)
    whole, one_by_one = (train(resolved, corpus, world, budget=b) for b in (10**6, 1))
    assert whole[0] == pytest.approx(one_by_one[0], rel=1e-5)
    assert far(whole[1], one_by_one[1]) < 1e-3  # nine AdamW steps multiply the rounding of the first


def test_gradient_of_a_step_is_equal_however_it_is_cut(world):
    resolved, corpus = job(world)
    gradients = []
    for budget in (10**6, 300, 1):
        model = load(world[0], tuning=resolved.spec.tuning, seed=0)
        loop = toy.loop(resolved, corpus, model, budget=budget)
        groups = model.set_trainable(resolved.stages[1].trainable)
        loop.open = [model.trained[k] for names in groups.values() for k in names]
        with loop.ahead(resolved.stages[1], loop.plans[1]) as ahead:
            loop._gradients(resolved.stages[1], ahead, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in loop.open]))
    for other in gradients[1:]:
        assert float((gradients[0] - other).norm() / gradients[0].norm()) < 1e-5


def in_two(ranks, world, out):
    torch.set_num_threads(1)
    resolved, corpus = job(world)
    losses, files = train(resolved, corpus, world, ranks=ranks)
    if ranks.rank == 0:
        np.save(out / "losses.npy", losses)
    (out / f"{ranks.rank}.safetensors").write_bytes(files["adapter_model.safetensors"])


def test_two_ranks_are_one_rank_to_rounding(world, tmp_path):
    spawn(in_two, 2, world, tmp_path, method="fork")
    resolved, corpus = job(world)
    losses, files = train(resolved, corpus, world)
    assert np.load(tmp_path / "losses.npy") == pytest.approx(losses, rel=1e-5)
    both = [(tmp_path / f"{r}.safetensors").read_bytes() for r in (0, 1)]
    assert both[0] == both[1]
    assert far({"adapter_model.safetensors": both[0]}, files) < 1e-3


@pytest.mark.parametrize("encoder", ENCODERS)
def test_resume_at_every_step_is_undisturbed_bit_for_bit(world, tmp_path, encoder):
    resolved, corpus = job(world, encoder)
    losses, files = train(resolved, corpus, world)
    for stop in range(1, 9):
        store = FolderStore(tmp_path / str(stop))
        told = iter(["continue"] * (stop - 1) + ["checkpoint_and_exit"])
        first, _ = train(resolved, corpus, world, store=store, control=lambda t=told: next(t), checkpoint_every=99)
        rest, resumed = train(resolved, corpus, world, store=store, attempt=2)
        assert first + rest == losses
        assert resumed == files


def test_cached_states_train_like_states_made_in_the_batch(world):
    resolved, corpus = job(world)
    cached = train(resolved, corpus, world)
    model = load(world[0], tuning=resolved.spec.tuning, seed=0)
    model.encoder_is_base = False  # as if the encoder could change: every batch is encoded anew, padded together
    events = []
    toy.loop(resolved, corpus, model, sink=events.append).run()
    assert [e["loss"] for e in events if e["kind"] == "step"] == pytest.approx(cached[0], rel=1e-5)


def test_every_rank_reads_its_own_recordings_and_no_others(world, monkeypatch):
    resolved, corpus = job(world)
    stage, read, heard = resolved.stages[1], audio.read, []
    monkeypatch.setattr(audio, "read", lambda path, *rest: heard.append(path) or read(path, *rest))
    parts, files = [], []
    for rank in (0, 1):
        heard.clear()
        model = load(world[0], tuning=resolved.spec.tuning, seed=0)
        loop = toy.loop(resolved, corpus, model, ranks=Ranks(rank, 2))
        with loop.ahead(stage, loop.plans[1]) as ahead:
            steps = [ahead.step(t) for t in range(stage.steps)]
        parts.append([set(made) for _, made in steps])
        files.append(sorted(heard))
        for outlines, made in steps:
            assert all(len(outlines[n]) == len(e) and outlines[n].name == e.name for n, e in made.items())
            spoken = sum(e.wave is not None for e in made.values())
            assert sum(bool(np.asarray(e.wave).any()) for e in made.values() if e.wave is not None) == spoken
    assert all(not a & b and a | b == set(range(8)) for a, b in zip(*parts, strict=True))
    assert files[0]
    assert files[1]
    assert not set(files[0]) & set(files[1])  # each is shown once


def test_a_run_with_every_switch_off_is_the_same(world):
    resolved, corpus = job(world)
    usual = train(resolved, corpus, world)
    model = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed)
    model.execution = Execution(
        packing=False, share_prefix=False, attention="dense", trimming=False, encoder_batches="off",
        supervised_only=False, chunk=0, feature_cache=False, checkpointing="off", prefetch=0,
    )  # fmt: skip
    events = []
    toy.loop(resolved, corpus, model, sink=events.append).run()
    assert [e["loss"] for e in events if e["kind"] == "step"] == pytest.approx(usual[0], rel=1e-5)
    assert far(model.files(), usual[1]) < 1e-3


def test_order_is_the_same_whatever_the_execution(world):
    resolved, corpus = job(world)
    orders = []
    for budget, every in ((10**6, 2), (1, 99)):
        model = load(world[0], tuning=resolved.spec.tuning, seed=0)
        model.execution = Execution(prefetch=0)  # one after the other, so that they can be listed here
        loop = toy.loop(resolved, corpus, model, budget=budget, checkpoint_every=every)
        seen, whole = [], loop.examples
        loop.examples = lambda *a, w=whole, s=seen: s.append(a[1:4]) or w(*a)
        loop.run()
        orders.append(seen)
    plans = [plan_stage(resolved, n) for n in (0, 1)]
    names = [(s.sources[k], int(r), int(v)) for s, p in zip(resolved.stages, plans, strict=True)
             for k, r, v in zip(p.source, p.row, p.view, strict=True)]  # fmt: skip
    assert orders[0] == orders[1] == names
