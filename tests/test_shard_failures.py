"""One of two ranks with a base split over them fails in the middle of a step: neither waits for the other."""

import json

import pytest
import torch
import toy

from trainer.families import load
from trainer.ranks import spawn
from trainer.spec import Execution

pytestmark = pytest.mark.timeout(100)


def fails(layer, where, error, calls):
    """Raises `error` in the middle of the layer, on its way forward or back, at these of its calls; gathered it is
    then."""
    count = [0]

    def hook(*_):
        count[0] += 1
        if count[0] in calls:
            raise error

    if where == "forward":
        layer.mlp.register_forward_pre_hook(hook)
    else:
        layer.mlp.register_full_backward_hook(hook)
    return count


FULL = torch.OutOfMemoryError("CUDA out of memory")
PLACES = {
    "forward": (0, "forward", [1]), "forward, second micro-batch": (1, "forward", [2]), "back": (1, "back", [1]),
    "behind the last gather": (0, "back", [2]), "computed again": (1, "forward", [4]),
}  # fmt: skip
"""Of two layers the one in which a rank fails, on which way, at which of its calls; a step has two micro-batches."""


def failing(ranks, folders, out, victim, place, error, budget, changes):
    """Trains a stage of text and speech while rank `victim` fails; writes down how it ended."""
    torch.set_num_threads(1)
    resolved, corpus = toy.resolved(*folders, **changes)
    model = load(folders[0], tuning=resolved.spec.tuning, seed=0)
    model.execution = Execution(checkpointing="on" if place == "computed again" else "auto")
    if model.execution.checkpointing == "on":
        model.save_memory()
    model.shard()
    calls = [99]
    if ranks.rank == victim:
        layer, where, which = PLACES[place]
        calls = fails(model.language_model.layers[layer], where, error, which if budget > 1 else range(1000))
    events: list[dict] = []
    made = toy.loop(resolved, corpus, model, ranks=ranks, sink=events.append, budget=budget)
    made.stages, made.plans = made.stages[-1:], made.plans[-1:]
    try:
        end = str(made.run().reason)
    except Exception as raised:
        end = f"{type(raised).__name__}: {raised}"
    assert ranks.gather(ranks.rank) == [0, 1]  # they are still at the same place
    assert calls[0] >= max(PLACES[place][2]), "it has not failed"
    notes = [e["message"] for e in events if e["kind"] == "note"]
    (out / f"{ranks.rank}.json").write_text(json.dumps({"end": end, "step": made.step, "notes": notes}))
    (out / f"{ranks.rank}.safetensors").write_bytes(model.files()["adapter_model.safetensors"])


def ends(folders, out, victim, place, error=FULL, budget=60, **changes):
    """How both ranks ended, and what they learnt."""
    out.mkdir()
    spawn(failing, 2, folders, out, victim, place, error, budget, changes, method="fork")
    (end, other), (learnt, twin) = (
        [(out / f"{rank}.{kind}").read_bytes() for rank in (0, 1)] for kind in ("json", "safetensors")
    )
    assert end == other
    assert learnt == twin
    return json.loads(end), learnt


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


@pytest.fixture(scope="module")
def calm(folders, tmp_path_factory):
    """What is learnt with the small budget from the start."""
    end, learnt = ends(folders, tmp_path_factory.mktemp("calm") / "calm", None, "back", budget=30)
    assert end == {"end": "None", "step": 3, "notes": []}
    return learnt


@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_does_not_fit_on_one_rank_is_repeated_by_both(folders, calm, tmp_path, place):
    """The same bits as a run that had the small budget from the start: nothing of the failed try is left."""
    end, learnt = ends(folders, tmp_path / "full", 1, place)
    (note,) = end.pop("notes")
    assert end == {"end": "None", "step": 3}
    assert note == "out of memory: step 1 is repeated with micro-batches of 30 tokens"
    assert learnt == calm


def test_it_is_the_full_rank_that_says_whether_smaller_would_help(folders, tmp_path):
    """Rank 1 has one example where memory ran out on rank 0, which has two."""
    parts = {"lm": True, "projector": True}
    stage = {"name": "both", "steps": 3, "mix": {"text": 0.5, "speech": 0.5}, "trainable": parts}
    changes = {"recipe": {"name": "custom", "stages": [stage]}, "steps": None, "global_batch": 3}
    end, _ = ends(folders, tmp_path / "two", 0, "forward", budget=10**6, **changes)
    assert (end["end"], end["notes"]) == (
        "None",
        ["out of memory: step 1 is repeated with micro-batches of 500000 tokens"],
    )


def test_one_example_that_never_fits_on_one_rank_ends_both_with_the_reason(folders, tmp_path):
    end, _ = ends(folders, tmp_path / "never", 1, "back", budget=1)
    assert (end["end"], end["step"]) == ("out_of_memory", 0)
    assert ["computed again" in note for note in end["notes"]] == [True]  # that was tried


@pytest.mark.parametrize("victim", [0, 1])
def test_any_other_failure_in_the_middle_of_a_step_is_raised_on_both(folders, tmp_path, victim):
    end, _ = ends(folders, tmp_path / "bug", victim, "back", error=ZeroDivisionError("a bug"))
    assert end == {"end": "ZeroDivisionError: a bug", "step": 0, "notes": []}
