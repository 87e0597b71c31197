"""Checkpoints of a run, and the log segments that belong to them. Written once; whole, or not there.

    attempts/<no>/claim.json
    attempts/<no>/checkpoints/<step>/{adapter/…, optimizer.safetensors, state.json, manifest.json}
    attempts/<no>/log/<from>-<to>.jsonl
 `step` counts finished steps over all stages. A log segment counts only with the checkpoint that ends it, so
that steps which are done again never appear twice. No RNG state is kept: order is the plan, dropout is seeded
by step.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from trainer.attempts import attempts
from trainer.store import DamagedError, MissingError, Store, commit, commits, read_commit


@dataclass
class Checkpoint:
    """What a run continues from."""

    step: int
    """Finished steps over all stages."""
    adapter: dict[str, bytes]
    """Trained state as written by the family."""
    optimizer: bytes
    """AdamW's moments and step counts by parameter name, safetensors."""
    budget: int
    """Token budget of a micro-batch, as out-of-memory errors left it; part of equality B."""
    logs: list[str] = field(default_factory=list)
    """Keys of the log segments up to this step, oldest first."""


def write(store: Store, attempt: int, checkpoint: Checkpoint, log: list[dict], since: int) -> str:
    """Commits a checkpoint with the log of the steps [since, checkpoint.step). Returns its prefix."""
    prefix = f"attempts/{attempt}/checkpoints/{checkpoint.step}"
    if log:
        key = f"attempts/{attempt}/log/{since}-{checkpoint.step}.jsonl"
        store.put(key, "".join(json.dumps(event) + "\n" for event in log).encode())
        checkpoint.logs.append(key)
    state = {"step": checkpoint.step, "micro_batch_tokens": checkpoint.budget, "logs": checkpoint.logs}
    files: dict[str, Any] = {f"adapter/{name}": data for name, data in checkpoint.adapter.items()}
    files["optimizer.safetensors"] = checkpoint.optimizer
    files["state.json"] = (json.dumps(state, indent=1) + "\n").encode()
    commit(store, prefix, files)
    return prefix


def newest(store: Store, note: Callable[[dict], None]) -> Checkpoint | None:
    """The furthest whole checkpoint over all attempts. A damaged one is passed over, and `note` gets an event
    that says so."""
    for prefix in _furthest_first(store):
        try:
            return _read(store, prefix)
        except (DamagedError, MissingError) as error:
            note({"kind": "note", "level": "warning", "message": f"checkpoint {prefix} is passed over: {error}"})
    return None


def at_step(store: Store, step: int, note: Callable[[dict], None]) -> tuple[str, Checkpoint] | None:
    """(prefix, checkpoint) of a step, the latest attempt's whole one; None where there is none."""
    for prefix in _furthest_first(store):
        if int(prefix.split("/")[3]) == step:
            try:
                return prefix, _read(store, prefix)
            except (DamagedError, MissingError) as error:
                note({"kind": "note", "level": "warning", "message": f"checkpoint {prefix} is passed over: {error}"})
    return None


def furthest(store: Store) -> str | None:
    """Prefix of the furthest committed checkpoint, its files not read; None where there is none."""
    return next(iter(_furthest_first(store)), None)


def _furthest_first(store: Store) -> list[str]:
    found = [c for no in attempts(store) for c in commits(store, f"attempts/{no}/checkpoints")]
    return sorted(found, key=lambda p: (int(p.split("/")[3]), int(p.split("/")[1])), reverse=True)


def _read(store: Store, prefix: str) -> Checkpoint:
    paths = [entry["path"] for entry in read_commit(store, prefix)["files"]]
    state = json.loads(store.get(f"{prefix}/state.json"))
    adapter = {p.removeprefix("adapter/"): store.get(f"{prefix}/{p}") for p in paths if p.startswith("adapter/")}
    optimizer = store.get(f"{prefix}/optimizer.safetensors")
    return Checkpoint(state["step"], adapter, optimizer, state["micro_batch_tokens"], state["logs"])


def read_log(store: Store, keys: list[str]) -> Iterator[dict]:
    """The step events of log segments, in order."""
    for key in keys:
        for line in store.get(key).decode().splitlines():
            yield json.loads(line)


def optimizer_bytes(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]) -> bytes:
    """The optimiser's state tensors under `<parameter>:<entry>`."""
    tensors = {}
    for name, parameter in named.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{entry}"] = value.detach().cpu().contiguous()
    return save_tensors(tensors, {"format": "pt"})


def load_optimizer(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], data: bytes) -> None:
    """Puts the state written by `optimizer_bytes` back, bit for bit."""
    optimizer.state.clear()
    for key, value in load_tensors(data).items():
        name, _, entry = key.rpartition(":")
        parameter = named[name]
        on = value if entry == "step" else value.to(parameter.device)  # AdamW keeps its step count on the CPU
        optimizer.state[parameter][entry] = on
