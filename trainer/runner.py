"""A runner: `python -m trainer.runner`, the entry point of a Ray job. Claims attempts over HTTP and runs them one after
the other on a base that is loaded once; leaves when there is no work.

    ATTUNE_RUNNER_ID, ATTUNE_POOL     who it is, and whose jobs it takes
    ATTUNE_BOOTSTRAP_CODE             single use, exchanged for a token that is kept in memory only
    ATTUNE_API_URL                    where the service is
    ATTUNE_STORE, ATTUNE_DATA         artifact store; folders of data sets, separated like PATH
    ATTUNE_CACHE                      where copies of uploaded data sets and of bases are kept (the user's cache)
    ATTUNE_CACHE_GB                   what recordings from S3 and encoder states may take there, each (20)
    ATTUNE_WORLD_SIZE                 ranks that share each step (1)
    ATTUNE_IDLE_EXIT_S (60), ATTUNE_DETACHED_MAX_S (1800), ATTUNE_BEAT_S (5), ATTUNE_CODE (the package's version)
    ATTUNE_START_S                    how long to wait for Ray's workers (300)

Exit codes: 0 no work left, or asked to leave; 1 something went wrong; 2 the environment is not complete. `--local` runs
the ranks as processes of this machine instead of workers of Ray. Only `on_ray` imports ray.
"""

import argparse
import gc
import logging
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer import protocol
from trainer.bases import cache_folder
from trainer.datasets import materialise
from trainer.families import load_base, own_device
from trainer.feature_store import FeatureStore
from trainer.features import FeatureCache
from trainer.lease import RETRY_S, FencedError, Lease, LeasedStore
from trainer.loop import Event
from trainer.protocol import Api, AwayError, GoneError, RefusedError
from trainer.ranks import Ranks, spawn
from trainer.resolve import Resolved
from trainer.result import Result, reason_of
from trainer.run import run
from trainer.store import Store, open_store
from trainer.terminal import Limit

WAIT_S = 20
"""The ranks hear from the first one at least this often, work or not: gloo gives up on a silent one."""
BOOTSTRAP = "ATTUNE_BOOTSTRAP_CODE"
LEFT_OVER = 1 << 30
"""Bytes of GPU memory that may stay taken after an attempt (allocator, kernels); more is a leak."""


class SettingsError(ValueError):
    """The environment does not say what a runner needs."""


class EndedError(RuntimeError):
    """The runner cannot go on; what is finished is in the store."""


@dataclass(frozen=True)
class Settings:
    """What a runner is told by its environment."""

    runner: str
    api: str
    store: str
    pool: str
    data: list[str] = field(default_factory=lambda: ["."])
    world_size: int = 1
    idle_exit_s: float = 60.0
    """Leaves after so many seconds without work."""
    detached_max_s: float = 1800.0
    """Trains on for so many seconds without the service, then writes a checkpoint and leaves."""
    beat_s: float = 5.0
    """Seconds between heartbeats."""
    start_s: float = 300.0
    """Waits for so many seconds for the workers that it asks Ray for."""
    code: str = version("attune")

    @classmethod
    def read(cls, environment: MutableMapping[str, str]) -> tuple["Settings", str]:
        """(settings, bootstrap code) of `environment`; the code is taken out of it. SettingsError."""
        code = environment.pop(BOOTSTRAP, "")
        needed = {"runner": "RUNNER_ID", "api": "API_URL", "store": "STORE", "pool": "POOL"}
        missing = [f"ATTUNE_{name}" for name in needed.values() if not environment.get(f"ATTUNE_{name}")]
        if missing or not code:
            raise SettingsError(f"set {', '.join(missing + ([] if code else [BOOTSTRAP]))}")
        given: dict[str, Any] = {key: environment[f"ATTUNE_{name}"] for key, name in needed.items()}
        numbers = {"WORLD_SIZE": int, "IDLE_EXIT_S": float, "DETACHED_MAX_S": float, "BEAT_S": float, "START_S": float}
        for name, kind in numbers.items():
            if value := environment.get(f"ATTUNE_{name}"):
                try:
                    given[name.lower()] = kind(value)
                except ValueError:
                    raise SettingsError(f"ATTUNE_{name} is {value!r}; it must be a number") from None
        if code_version := environment.get("ATTUNE_CODE"):
            given["code"] = code_version
        if data := environment.get("ATTUNE_DATA"):
            given["data"] = [part for part in data.split(os.pathsep) if part]
        return cls(**given), code


def serve(ranks: Ranks, settings: Settings, bootstrap: str, watch: Callable[[Event], None] | None = None) -> str:
    """What every rank does until there is no more work; returns why it leaves. `watch` sees the events too.
    FencedError, EndedError, and whatever a job was not expected to raise."""
    os.environ.pop(BOOTSTRAP, None)  # a worker of Ray inherits it from its job
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # Ray's workers log everything, a line per heartbeat
    with tempfile.TemporaryDirectory(prefix="attune-runner-") as folder:
        return Runner(ranks, settings, bootstrap, Path(folder), watch).serve()


class Runner:
    """One rank of a runner. The first rank alone speaks with the service and writes to the store."""

    def __init__(
        self, ranks: Ranks, settings: Settings, bootstrap: str, folder: Path, watch: Callable[[Event], None] | None
    ):
        self.ranks, self.settings, self.folder = ranks, settings, folder
        self.api = Api(settings.api)
        self._bootstrap, self._token = bootstrap, ""
        self._watch = watch or self._say_event
        self.lease: Lease | None = None
        features = FeatureStore(open_store(settings.store), self._sink)
        self.model, self.cache, self.free = None, FeatureCache(features), 0
        self.leave = ""
        self._idle_since, self._failures = time.monotonic(), 0

    def serve(self) -> str:
        """Works until there is a reason to leave, and returns it."""
        while True:
            order: dict[str, Any] = self.ranks.from_first(self._order() if self.ranks.rank == 0 else {})
            if leave := order.get("leave"):
                return leave
            if "job_id" in order:
                self._work(order)

    # ---- the first rank: what all ranks do next

    def _order(self) -> dict[str, Any]:
        """A claim, `{"leave": reason}`, or nothing: ask again. Takes about WAIT_S at most."""
        if self.lease is not None:
            if not self.lease.acknowledged(WAIT_S):
                if self.lease.detached:
                    raise EndedError(f"the service is away; how {self.lease.name} ended stands in the store")
                return {}
            self.lease, self._idle_since = None, time.monotonic()
        if self.leave:
            return {"leave": self.leave}
        idle = time.monotonic() - self._idle_since
        wait = max(0, min(WAIT_S, math.ceil(self.settings.idle_exit_s - idle)))
        try:
            claim = self._claim(wait)
            self._failures = 0
        except GoneError:
            return {"leave": "asked to leave"}
        except AwayError as error:
            self._failures += 1
            self._say(f"the service is away ({error})")
            time.sleep(min(RETRY_S * 2 ** min(self._failures - 1, 10), wait))
            claim = None
        if claim is not None:
            own = Lease(
                self.api, claim, self.folder, beat_s=self.settings.beat_s, detached_max_s=self.settings.detached_max_s
            )
            self.lease = own.start()
            return {key: claim[key] for key in ("job_id", "attempt", "prefix", "resolved", "spec_hash", "inputs")}
        if time.monotonic() - self._idle_since >= self.settings.idle_exit_s:
            return {"leave": f"no work for {self.settings.idle_exit_s:g} s"}
        return {}

    def _claim(self, wait_s: float) -> dict[str, Any] | None:
        """The next attempt, if there is one within so many seconds."""
        me = f"/runners/{self.settings.runner}"
        if not self._token:
            try:
                self._token = self.api.post(f"{me}/register", {"code": self._bootstrap})["token"]
            except RefusedError as error:
                if error.status == 401:
                    raise EndedError("the service does not know this runner, or its code was used before") from None
                raise
            self._bootstrap = ""
        asked = {
            "protocol": protocol.VERSION, "pool": self.settings.pool, "code": self.settings.code,
            "world_size": self.ranks.world_size, "device": "cuda" if torch.cuda.is_available() else "cpu",
            "kinds": ["train"], "max": 1, "wait_s": wait_s,
        }  # fmt: skip
        return next(iter(self.api.post(f"{me}/claim", asked, self._token, wait_s).get("claims", [])), None)

    # ---- all ranks: an attempt

    def _work(self, claim: dict[str, Any]) -> None:
        """Runs the attempt; on the first rank its end is ready to be told afterwards."""
        try:
            self._attempt(claim)
        except FencedError:
            raise
        except Exception as error:
            reason = reason_of(error)
            if self.lease is not None:
                self.lease.end("failed", reason or "infrastructure", f"{type(error).__name__}: {error}")
            if reason is None:  # nobody knows what state this process is in now
                self._last_words()
                raise

    def _attempt(self, claim: dict[str, Any]) -> None:
        lease = self.lease
        with self.ranks.together():
            store = open_store(f"{self.settings.store.rstrip('/')}/{claim['prefix']}")
            resolved = Resolved.model_validate(claim["resolved"])
            if resolved.hash != claim["spec_hash"]:
                raise EndedError(f"the job's hash is {resolved.hash[:12]} in the code {self.settings.code} of this "
                                 f"runner and {claim['spec_hash'][:12]} in the service's")  # fmt: skip
            resolved = _placed(resolved, roots := [*self.settings.data, self._brought(claim)])
        if lease is not None:
            lease.limit = Limit(resolved.spec.resources.time)
            store = LeasedStore(store, lease)
        try:
            made = run(
                resolved, store, self._sink, lease or (lambda: "continue"), roots=roots,
                jobs=f"{self.settings.store.rstrip('/')}/{claim['prefix'].rpartition('/')[0]}",
                model=self._base(resolved), cache=self.cache, ranks=self.ranks, attempt=claim["attempt"],
            )  # fmt: skip
        finally:
            self.cache.flush()
        if lease is not None:
            key = "final.json" if made.outcome == "succeeded" else f"attempts/{claim['attempt']}/result.json"
            self.leave = self._reason_to_leave(resolved, made)
            lease.end(made.outcome, made.reason, made.message, _digest(store, key))

    def _brought(self, claim: dict[str, Any]) -> str:
        """Folder of uploaded data sets on this machine, those of the claim among them."""
        folder, store = cache_folder() / "datasets", open_store(self.settings.store)
        for dataset_id, sha256 in claim["inputs"].items():
            materialise(store, claim["prefix"].partition("/jobs/")[0], sha256, folder / dataset_id)
        return str(folder)

    def _base(self, resolved: Resolved):
        """The warm base; None for a job that changes the base itself, and where there is none to load: `run` then
        meets the same error and says it as the attempt's."""
        if not resolved.spec.lends_base:
            self.model = None
            return None
        if self.model is None:
            began = time.perf_counter()
            device = own_device(self.ranks.rank, torch.cuda.device_count())
            try:
                with self.ranks.together():
                    model = load_base(resolved, device, self.cache)
            except Exception as error:
                if reason_of(error) is None:
                    raise
                return None
            self.model = model
            self.free = _free_memory()
            message = f"base {resolved.spec.base} loaded in {time.perf_counter() - began:.1f} s"
            self._sink({"kind": "note", "level": "info", "message": message})
        return self.model

    def _sink(self, event: Event) -> None:
        if self.lease is not None:
            self.lease.sink(event)
            self._watch(event)

    def _reason_to_leave(self, resolved: Resolved, made: Result) -> str:
        """Why this process should not take another attempt; empty where it may. That the base is as it was loaded,
        `run` has checked when it took the adapter off."""
        if not resolved.spec.lends_base:
            return "the job changed or split the base: one attempt per runner"
        if made.reason == "out_of_memory" or _free_memory() < self.free - LEFT_OVER:
            return "memory was short: the next attempt gets a fresh process"
        return ""

    def _last_words(self) -> None:
        """Tells the service how the attempt ended before the process does; the store says it too."""
        try:
            while self.lease and not (self.lease.acknowledged(WAIT_S) or self.lease.detached):
                pass
        except FencedError:
            pass

    def _say_event(self, event: Event) -> None:
        match event:
            case {"kind": "state", "state": state}:
                self._say(f"{state} {event.get('step', '')}".rstrip())
            case {"kind": "note" | "error", "message": message}:
                self._say(message)

    def _say(self, message: str) -> None:
        print(f"{self.lease.name if self.lease else self.settings.runner}: {message}", file=sys.stderr, flush=True)


def _digest(store: Store, key: str) -> str | None:
    """What the service may check the result by; None where the store does not answer, for the result is there."""
    try:
        return store.digest(key)[1]
    except Exception as error:
        print(f"{store.uri}/{key}: written, but not read back ({error})", file=sys.stderr, flush=True)
        return None


def _placed(resolved: Resolved, roots: Sequence[str]) -> Resolved:
    """The job with a base that is named relative to a data folder by its whole path: Ray's workers stand elsewhere."""
    base = resolved.spec.base
    folder = next((path for root in roots if (path := Path(root).absolute() / base).is_dir()), None)
    if folder is None:
        return resolved
    return resolved.model_copy(update={"spec": resolved.spec.model_copy(update={"base": str(folder)})})


def _free_memory() -> int:
    """Free bytes of the GPU after tidying up; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def on_this_machine(settings: Settings, bootstrap: str) -> None:
    """Ranks as processes of this machine; one is this process itself."""
    if settings.world_size > 1:
        spawn(_local_rank, settings.world_size, settings, bootstrap)
    else:
        _local_rank(Ranks(), settings, bootstrap)


def _local_rank(ranks: Ranks, settings: Settings, bootstrap: str) -> None:
    left = serve(ranks, settings, bootstrap)
    if ranks.rank == 0:
        print(f"{settings.runner}: leaves: {left}", file=sys.stderr, flush=True)


def on_ray(settings: Settings, bootstrap: str) -> None:
    """Ranks as workers of Ray Train, one GPU each where the cluster has as many. Ray retries nothing: any death ends
    the runner, and the service decides what comes next."""
    # Ray waits for a minute, which is little where a cluster has yet to grow.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.start_s)
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, get_context
    from ray.train.torch import TorchConfig, TorchTrainer

    def rank() -> None:
        place = get_context()
        _local_rank(Ranks(place.get_world_rank(), place.get_world_size()), settings, bootstrap)

    # Ray's own actors look for the cluster too, and would not know which where a machine has two
    ray.init(runtime_env={"env_vars": {k: v for k, v in os.environ.items() if k == "RAY_ADDRESS"}})
    gpus = ray.cluster_resources().get("GPU", 0) >= settings.world_size
    wanted = f"{settings.world_size} worker(s) of one CPU{' and one GPU' if gpus else ''} each"
    free = ray.available_resources()
    free = f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
    print(f"{settings.runner}: asks Ray for {wanted}; free are {free}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="attune-ray-") as folder:  # Ray's own notes; ours go to the store
        trainer = TorchTrainer(
            rank,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=settings.world_size, use_gpu=gpus),
            run_config=RunConfig(
                name=settings.runner,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            raise EndedError(f"Ray did not start {wanted}: {error.controller_failure}".splitlines()[0]) from None
        finally:
            ray.shutdown()  # what its processes print comes before our last words, which the service keeps


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.runner", description="Claim and run attempts.")
    parser.add_argument("--local", action="store_true", help="without Ray: the ranks are processes of this machine")
    options = parser.parse_args(arguments)
    try:
        settings, bootstrap = Settings.read(os.environ)
        (on_this_machine if options.local else on_ray)(settings, bootstrap)
        return 0
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (FencedError, EndedError) as error:
        print(f"{settings.runner}: {error}", file=sys.stderr)
    except Exception:  # the process boundary: whatever it was, the job of Ray has failed and its log says why
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    from trainer.runner import main as importable  # what goes to other processes must not belong to __main__

    sys.exit(importable())
