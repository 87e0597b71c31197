"""One job over three attempts with one, two and again one worker: every example once, in the order of the plan."""

import json

import pytest
import toy

from trainer.ahead import Ahead
from trainer.checkpoint import read_log
from trainer.plan import StagePlan
from trainer.ranks import Ranks, spawn
from trainer.run import run
from trainer.store import FolderStore

pytestmark = pytest.mark.timeout(200)
BATCH = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


def attempt(ranks, world, out, steps, name):
    """One attempt that is asked to leave after so many steps; writes down what each rank was shown and was told."""
    resolved, corpus = toy.resolved(*world)
    shown, events, whole, left = [], [], Ahead.step, iter(range(1, steps))

    def step(ahead, t):
        examples = whole(ahead, t)
        shown.extend([example.name, int(example.wave is not None)] for example in examples.outlines)
        return examples

    def control():
        return "checkpoint_and_exit" if next(left, None) is None else "continue"

    Ahead.step = step
    try:
        made = run(resolved, FolderStore(out / "store"), events.append, control, corpus=corpus, ranks=ranks, threads=1)
    finally:
        Ahead.step = whole
    said = [made.steps, made.outcome, shown, [e["message"] for e in events if e["kind"] == "note"]]
    (out / f"{name}-{ranks.rank}.json").write_text(json.dumps(said))


def told(out, name):
    return json.loads((out / f"{name}.json").read_text())


def planned(world, store):
    """(utterance, view) of every presentation of the stored plans."""
    resolved, corpus = toy.resolved(*world)
    plans = [StagePlan.load(store.path(f"plan/{stage.name}.npz")) for stage in resolved.stages]
    return [
        [corpus.sources[stage.sources[k]].rows[row].id, int(view)]
        for stage, plan in zip(resolved.stages, plans, strict=True)
        for k, row, view in zip(plan.source, plan.row, plan.view, strict=True)
    ]


def losses(store, out_of):
    """Training loss of every example, in order, of a finished run."""
    state = json.loads(store.get(f"{out_of}/state.json"))
    return [loss for event in read_log(store, state["logs"]) if event["kind"] == "step" for loss in event["row_losses"]]


@pytest.mark.parametrize("torn", [False, True])
def test_one_then_two_then_one_worker(world, tmp_path, torn):
    """With `torn`, the second attempt's last checkpoint lost half of a file: its two steps are done again."""
    attempt(Ranks(), world, tmp_path, 3, "first")
    spawn(attempt, 2, world, tmp_path, 3, "second", method="fork")
    store = FolderStore(tmp_path / "store")
    if torn:
        path = store.path("attempts/2/checkpoints/6/adapter/adapter_model.safetensors")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    attempt(Ranks(), world, tmp_path, 99, "third")
    first, second, other, third = (told(tmp_path, n) for n in ("first-0", "second-0", "second-1", "third-0"))
    assert [said[:2] for said in (first, second, other, third)] == [
        [3, "yielded"], [6, "yielded"], [6, "yielded"], [9, "succeeded"],
    ]  # fmt: skip
    order, again = planned(world, store), 4 if torn else 6
    assert len(order) == 9 * BATCH
    assert first[2] == order[: 3 * BATCH]
    assert second[2] == other[2] == order[3 * BATCH : 6 * BATCH]  # both ranks know the whole step
    assert third[2] == order[again * BATCH :]
    refused = [message for message in third[3] if "checkpoints/6 is passed over" in message]
    assert len(refused) == torn
    assert f"resumed after step {again}" in third[3]

    (tmp_path / "calm").mkdir()
    attempt(Ranks(), world, tmp_path / "calm", 99, "only")
    calm = FolderStore(tmp_path / "calm" / "store")
    assert told(tmp_path / "calm", "only-0")[2] == order
    # Equality R over nine steps of AdamW: another number of workers adds in another order.
    found, wanted = losses(store, "attempts/3/checkpoints/9"), losses(calm, "attempts/1/checkpoints/9")
    assert len(found) == 9 * BATCH
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
