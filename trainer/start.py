"""Where a job starts that does not start from the base alone (light): the trained weights that an earlier job left.

They are named by the earlier job's id, its folder, or the folder of an adapter, and pinned by content. Optimiser and
order are the job's own.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from trainer.fields import problem
from trainer.spec import Tuning
from trainer.store import Store, StoreError, open_store

ADAPTER, WHOLE = "adapter_model.safetensors", "model.safetensors"
"""What the folder of a trained state holds: LoRA beside its adapter_config.json, or whole parts under the stock model's
names."""
_JOB = re.compile(r"(ftjob-[0-9a-z]{26})(?:/.*)?")
_CHECKPOINT = re.compile(r"(.+)/attempts/\d+/checkpoints/\d+(?:/adapter)?/?")
"""The job's folder in the place of one of its checkpoints."""


@dataclass(frozen=True)
class Start:
    """Trained weights as they lie in a store."""

    ref: str
    """Reference as the user wrote it."""
    store: Store
    key: str
    """Of the weights in the store."""
    base_revision: str | None = None
    """The base under them, as `trainer.bases.pin_base` says it; None where nothing beside them does."""
    lora: dict[str, Any] | None = None
    """The adapter's config; None for whole parts."""

    @cached_property
    def sha256(self) -> str:
        """Of the weights' bytes."""
        return self.store.digest(self.key)[1]

    def weights(self) -> bytes:
        """safetensors."""
        return self.store.get(self.key)


def job_named(ref: str) -> str | None:
    """The id of the service's job that a reference names, None for a folder."""
    match = _JOB.fullmatch(ref)
    return match[1] if match else None


def find_start(ref: str, roots: Sequence[Path | str] = (".",), jobs: str | None = None) -> Start:
    """The weights that `ref` names; folders are tried under each root. `jobs`: where the service keeps the project's
    jobs by id. SpecError where there are none."""
    places = [ref] if "://" in ref else [str(Path(root) / ref) for root in roots]
    if job_named(ref):
        if jobs is None:
            message = (
                "the service alone knows jobs by their id; submit this job to it, or name the earlier folder"
            )
            raise problem("init_from", message, ref)
        places = [f"{jobs}/{ref}"]
    try:
        found = next((start for place in places if (start := _read(ref, open_store(place), _base(place)))), None)
    except (StoreError, OSError, BotoCoreError, ClientError, json.JSONDecodeError) as error:
        raise problem("init_from", f"cannot be read: {error}", ref) from None
    if found is None:
        message = f"no job's folder, and no {ADAPTER} or {WHOLE} in it; looked in {', '.join(places)}"
        raise problem("init_from", message, ref)
    return found


def _base(place: str) -> str | None:
    """The base under a checkpoint that lies in its job's folder; None for any other place."""
    match = _CHECKPOINT.fullmatch(place)
    job = open_store(match[1]) if match else None
    return json.loads(job.get("spec.json")).get("base_revision") if job and job.exists("spec.json") else None


def _read(ref: str, store: Store, base: str | None) -> Start | None:
    if store.exists("final.json"):
        checkpoint = json.loads(store.get("final.json")).get("checkpoint")
        if not checkpoint:
            raise problem("init_from", "that job trained nothing, so it left no weights", ref)
        base = json.loads(store.get("spec.json")).get("base_revision")
        return _weights(ref, store, f"{checkpoint}/adapter/", base)
    if store.exists("spec.json"):
        message = "that job has not come to its end; wait for it, or name a checkpoint's folder"
        raise problem("init_from", message, ref)
    if store.exists("config.json"):
        raise problem("init_from", "is a whole model; name it in base", ref)
    return _weights(ref, store, "", base) or _weights(ref, store, "adapter/", base)


def _weights(ref: str, store: Store, prefix: str, base: str | None) -> Start | None:
    if store.exists(f"{prefix}{ADAPTER}"):
        config = json.loads(store.get(f"{prefix}adapter_config.json"))
        return Start(ref, store, f"{prefix}{ADAPTER}", base, config)
    return Start(ref, store, f"{prefix}{WHOLE}", base) if store.exists(f"{prefix}{WHOLE}") else None


def refuse_misfit(start: Start, tuning: Tuning, base_revision: str | None) -> None:
    """SpecError where the weights cannot be this job's, as far as it is known before the base is loaded; whether each
    of them has a place is seen then (`trainer.adapter.start_from`)."""
    said = []
    if None not in (start.base_revision, base_revision) and start.base_revision != base_revision:
        said.append(f"trained on the base {str(start.base_revision)[:18]}, here it is {str(base_revision)[:18]}")
    if start.lora is not None and tuning.method != "lora":
        said.append(f"a LoRA adapter, here tuning.method is {tuning.method}")
    elif start.lora is not None:
        fields = {"rank": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "dora": "use_dora"}
        for name, key in fields.items():
            theirs, ours = start.lora.get(key, False), getattr(tuning, name)
            if theirs != ours:
                said.append(f"{name} {theirs}, here tuning.{name} is {ours}")
    if said:
        raise problem("init_from", f"does not fit this job: {'; '.join(said)}", start.ref)
