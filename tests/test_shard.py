"""The base split over two ranks (gloo, CPUs): the same training, also where one rank hears and the other reads."""

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor

from trainer import decoding, evaluate
from trainer.batch import Shared, assign
from trainer.families import load
from trainer.fields import SpecError
from trainer.ranks import spawn
from trainer.run import run
from trainer.store import FolderStore
from trainer.views import Example

pytestmark = pytest.mark.timeout(240)


@given(st.lists(st.integers(2, 50), min_size=1, max_size=20), st.integers(1, 200), st.integers(1, 5))
def test_ranks_get_equally_many_micro_batches(lengths, budget, world):
    order = tuple(sorted(range(len(lengths)), key=lambda i: lengths[i]))
    ranks = assign(lengths, [Shared(0, order)], budget, world, even=True)
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(i for batches in ranks for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[i] for i in b) <= budget for batches in ranks for b in batches)


def gathered(model):
    """[Layers that are whole at once, at most], counted in the middle of each on its way forward and back."""
    layers, most = model.language_model.layers, []

    def count(*_):
        whole = sum(not isinstance(layer.input_layernorm.weight, DTensor) for layer in layers)
        most[:] = [max([whole, *most])]

    for layer in layers:
        layer.mlp.register_forward_pre_hook(count)
        layer.mlp.register_full_backward_hook(count)
    return most


def trained(folders, ranks=None, *, shard, budget, parts):
    """Losses of all steps, the adapter, and the share of the frozen layers on this rank."""
    torch.set_num_threads(1)
    stage = {"name": "both", "steps": 4, "mix": {"text": 0.5, "speech": 0.5}, "trainable": parts}
    resolved, corpus = toy.resolved(*folders, recipe={"name": "custom", "stages": [stage]}, steps=None)
    model = load(folders[0], tuning=resolved.spec.tuning, seed=0)
    own = set(model.trained.values())
    whole = sum(p.numel() for p in model.language_model.layers.parameters() if p not in own)
    if shard:
        model.shard()
    events: list[dict] = []
    most = gathered(model) if shard else []
    asked = Example("text", model.tokens.prompt_ids("Which tone?", "a tone"), (), None)
    assert decoding.generate(model, [asked], max_new_tokens=2)  # a resumed job may be judged before it goes on
    toy.loop(resolved, corpus, model, ranks=ranks, sink=events.append, budget=budget).run()
    held = [p for p in model.language_model.layers.parameters() if p not in own]
    assert most == [1] * shard
    share = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in held) / whole
    return [e["loss"] for e in events if e["kind"] == "step"], model.files()["adapter_model.safetensors"], share


def one_of_two(ranks, folders, out, budget, parts):
    losses, adapter, share = trained(folders, ranks, shard=True, budget=budget, parts=parts)
    np.save(out / f"{ranks.rank}.npy", [*losses, share])
    (out / f"{ranks.rank}.safetensors").write_bytes(adapter)


@pytest.mark.parametrize("parts", [{"lm": True, "projector": True}, {"lm": False, "projector": True}], ids=str)
@pytest.mark.parametrize("budget", [1000, 40])
def test_a_split_base_trains_like_a_whole_one(tmp_path, budget, parts):
    """A budget of 40 tokens cuts the step into micro-batches of text alone and of speech alone. Text reaches no
    projector: a rank that left the others' gathers out would leave them waiting."""
    folders = toy.base(tmp_path / "base"), toy.data(tmp_path / "data")
    want, _, _ = trained(folders, shard=False, budget=10**6, parts=parts)
    spawn(one_of_two, 2, folders, tmp_path, budget, parts, method="fork")
    for rank in (0, 1):
        *losses, share = np.load(tmp_path / f"{rank}.npy").tolist()
        assert losses == pytest.approx(want, rel=1e-5)
        assert share == pytest.approx(0.5, abs=0.05)
    adapters = [(tmp_path / f"{rank}.safetensors").read_bytes() for rank in (0, 1)]
    assert adapters[0] == adapters[1]


def run_of_two(ranks, folders, out, full):
    resolved, _ = toy.resolved(*folders, resources={"shard_base": True})
    generate = evaluate.generate

    def lacking(model, examples, **options):
        if full and ranks.rank == 1 and len(examples) > full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, examples, **options)

    evaluate.generate = lacking
    made = run(resolved, FolderStore(out / "split"), roots=[folders[1]], ranks=ranks, threads=1)
    assert made.outcome == "succeeded", made.message


@pytest.mark.parametrize("full", [0, 3])
def test_a_whole_job_on_a_split_base_answers_like_one_on_a_whole_base(tmp_path, full):
    """Also where one rank has room for no more than three at once."""
    folders = toy.base(tmp_path / "base"), toy.data(tmp_path / "data")
    resolved, _ = toy.resolved(*folders)
    run(resolved, FolderStore(tmp_path / "whole"), roots=[folders[1]], threads=1)
    spawn(run_of_two, 2, folders, tmp_path, full, method="fork")
    answers = [(tmp_path / name / "attempts/1/predictions/speech.jsonl").read_text() for name in ("whole", "split")]
    assert answers[0] == answers[1]


def test_what_cannot_be_split_is_refused(tmp_path):
    folders = toy.base(tmp_path / "base"), toy.data(tmp_path / "data")
    for tuning in ({"method": "full", "encoder": "frozen"}, {"dora": True, "encoder": "frozen"}):
        with pytest.raises(SpecError, match=r"resources\.shard_base"):
            toy.resolved(*folders, tuning=tuning, resources={"shard_base": True})
