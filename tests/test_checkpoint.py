import contextlib
import json
import threading

import pytest
import torch
import toy

from trainer.attempts import attempts, claim
from trainer.checkpoint import load_optimizer, newest, optimizer_bytes, read_log
from trainer.families import load
from trainer.store import FolderStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return toy.base(folder / "base"), toy.data(folder / "data")


class Killed(Exception):  # noqa: N818
    """Ends a run as a crash does: nothing is written any more."""


def train(world, store, attempt=1, steps=8, **options):
    """Runs the toy job until it is killed after `steps` steps; returns (model, events, loop)."""
    resolved, corpus = toy.resolved(*world)
    model = load(world[0], tuning=resolved.spec.tuning)
    left = iter(range(steps))
    events = []

    def control():
        if next(left, None) is None:
            raise Killed
        return "continue"

    options = {"store": store, "attempt": attempt, "sink": events.append, "control": control, **options}
    loop = toy.loop(resolved, corpus, model, **options)
    found = newest(store, events.append)
    if found:
        loop.resume(found)
    with contextlib.suppress(Killed):
        loop.run()
    return model, events, loop


def test_layout_and_state(world, tmp_path):
    store = FolderStore(tmp_path)
    train(world, store)
    assert attempts(store) == [1]
    keys = store.list("attempts/1/")
    for step in (2, 4, 6, 8):
        at = f"attempts/1/checkpoints/{step}"
        assert {f"{at}/adapter/adapter_config.json", f"{at}/adapter/adapter_model.safetensors",
                f"{at}/optimizer.safetensors", f"{at}/state.json", f"{at}/manifest.json"} <= set(keys)  # fmt: skip
    assert [k for k in keys if "/log/" in k] == [f"attempts/1/log/{n}-{n + 2}.jsonl" for n in (0, 2, 4, 6)]
    assert json.loads(store.get("attempts/1/checkpoints/4/state.json")) == {
        "step": 4, "micro_batch_tokens": 1000, "logs": ["attempts/1/log/0-2.jsonl", "attempts/1/log/2-4.jsonl"],
    }  # fmt: skip


def test_optimizer_comes_back_bit_for_bit(world, tmp_path):
    resolved, corpus = toy.resolved(*world)
    model = load(world[0], tuning=resolved.spec.tuning)
    loop = toy.loop(resolved, corpus, model)
    loop.run()
    data = optimizer_bytes(loop.optimizer, model.trained)
    other = toy.loop(resolved, corpus, model)
    load_optimizer(other.optimizer, model.trained, data)
    assert optimizer_bytes(other.optimizer, model.trained) == data
    for parameter, state in loop.optimizer.state.items():
        for entry, value in state.items():
            assert torch.equal(value, other.optimizer.state[parameter][entry])


def test_steps_done_again_appear_once(world, tmp_path):
    store = FolderStore(tmp_path)
    _, _, cut = train(world, store, steps=5)
    assert cut.step == 5  # steps 5 of attempt 1 has no checkpoint: it is done again
    _, events, outcome = train(world, store, attempt=2, steps=99)
    assert [e["step"] for e in events if e["kind"] == "step"] == [5, 6, 7, 8, 9]
    log = [e for e in read_log(store, outcome.logs) if e["kind"] == "step"]
    assert [e["step"] for e in log] == list(range(1, 10))
    assert all(len(e["row_losses"]) == 8 for e in log)
    assert outcome.logs[2] == "attempts/2/log/4-6.jsonl"


@pytest.mark.parametrize("damage", ["bytes", "missing", "manifest", "uncommitted"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(world, tmp_path, damage):
    store = FolderStore(tmp_path)
    train(world, store)
    at = tmp_path / "attempts/1/checkpoints/8"
    if damage == "bytes":
        content = (at / "optimizer.safetensors").read_bytes()
        (at / "optimizer.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        (at / "adapter/adapter_model.safetensors").unlink()
    elif damage == "manifest":
        (at / "manifest.json").write_text('{"files": [')
    else:
        (at / "manifest.json").unlink()
    events = []
    found = newest(store, events.append)
    assert found is not None
    assert found.step == 6
    said = [e["message"] for e in events]
    assert len(said) == (damage != "uncommitted")  # without its manifest a checkpoint was never there
    assert all("attempts/1/checkpoints/8 is passed over" in m for m in said)
    calm, _, _ = train(world, FolderStore(tmp_path / "calm"), steps=99)
    resumed, _, _ = train(world, store, attempt=2, steps=99)
    assert resumed.files() == calm.files()


def test_the_furthest_checkpoint_of_all_attempts_counts(world, tmp_path):
    store = FolderStore(tmp_path)
    train(world, store, attempt=2, steps=7)
    for key in store.list("attempts/2/checkpoints/2"):
        store.put(key.replace("attempts/2", "attempts/3"), store.get(key))
    found = newest(store, lambda event: None)
    assert found is not None
    assert found.step == 6
    assert newest(FolderStore(tmp_path / "empty"), lambda event: None) is None


def test_budget_left_by_out_of_memory_is_kept(world, tmp_path):
    store = FolderStore(tmp_path)
    train(world, store, steps=5, budget=123)
    resolved, corpus = toy.resolved(*world)
    loop = toy.loop(resolved, corpus, load(world[0], tuning=resolved.spec.tuning))
    found = newest(store, lambda event: None)
    assert found is not None
    loop.resume(found)
    assert (loop.step, loop.budget) == (4, 123)


def test_every_attempt_has_a_number_of_its_own(tmp_path):
    store, numbers = FolderStore(tmp_path), []
    store.put("attempts/3/result.json", b"{}")
    threads = [threading.Thread(target=lambda: numbers.append(claim(FolderStore(tmp_path)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(4, 12))
    assert attempts(store) == list(range(3, 12))
    claims = [json.loads(store.get(f"attempts/{n}/claim.json"))["claim"] for n in numbers]
    assert len(set(claims)) == 8
