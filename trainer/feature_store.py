"""What frozen encoders made of recordings, in the artifact store: for every job, seed and machine that asks again.

    features/<encoder key>/<shard>.bin      states of many recordings, one after the other
    features/<encoder key>/<shard>.json     which are where, each with its checksum; written last, so it is the commit

Shards are written once and named by the hash of their index; more states are more shards. All of it can be made again:
what is missing or damaged counts as not there, is said, and comes back in a new shard that names the damaged one. The
whole folder may be deleted at any time.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from trainer.folder_store import FolderStore
from trainer.local_cache import LocalCache
from trainer.object_store import DamagedError, MissingError, Store, StoreError

SHARD_BYTES = 64 << 20
"""States wait in memory until there are so many, or until `flush`."""
REFRESH_S = 300.0
"""What other processes have added is looked for this often, while something is asked for in vain."""
TRIES = 3
AWAY = (OSError, StoreError, BotoCoreError, ClientError)
"""What a store may say that is no damage: the states are then made anew and not kept."""


class _Place(NamedTuple):
    """Where the states of one recording are. `packed`: float32 whose lower halves are zero (bfloat16), without them."""

    shard: str
    at: int
    shape: tuple[int, ...]
    dtype: str
    packed: bool
    check: str


class _Encoder:
    """What is known of one encoder's shards."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.places: dict[str, _Place] = {}
        self.sizes: dict[str, tuple[int, str]] = {}
        """(bytes, sha256) by shard."""
        self.damaged: set[str] = set()
        self.waiting: dict[str, np.ndarray] = {}
        self.looked = -REFRESH_S


class FeatureStore:
    """States by (encoder key, wave key). `note` gets an event for what is damaged or cannot be kept; nothing of it ends
    a run. Copies of shards from S3 are bounded (`ATTUNE_CACHE_GB`); a folder is read where it is. Threads may share
    it."""

    def __init__(
        self,
        store: Store,
        note: Callable[[dict[str, Any]], None] = lambda event: None,
        *,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.store, self.note, self.shard_bytes = store, note, shard_bytes
        self._encoders: dict[str, _Encoder] = {}
        self._waiting_bytes, self._away_until = 0, 0.0
        self._lock = threading.RLock()
        """Of what is known; states themselves are read without it."""

    def get(self, encoder: str, wave: str) -> np.ndarray | None:
        """The stored states, checked; None where there are none, or none that are whole."""
        with self._lock:  # writing goes through all encoders
            known = self._encoders.setdefault(encoder, _Encoder())
        try:
            with self._lock:
                if (waiting := known.waiting.get(wave)) is not None:
                    return waiting
                if self._away:
                    return None
                if wave not in known.places:
                    self._look(encoder, known)
                place = known.places.get(wave)
            return None if place is None else self._read(encoder, known, wave, place)
        except (DamagedError, MissingError) as error:
            with self._lock:
                if (place := known.places.pop(wave, None)) is not None:
                    self._is_damaged(known, place, error)
        except AWAY as error:
            self._give_up(error)
        return None

    def put(self, encoder: str, wave: str, states: np.ndarray) -> None:
        """Keeps the states of one recording, with the next shard."""
        with self._lock:
            if self._away:
                return
            self._encoders.setdefault(encoder, _Encoder()).waiting[wave] = states
            self._waiting_bytes += states.nbytes
            if self._waiting_bytes >= self.shard_bytes:
                self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        with self._lock:
            try:
                for encoder, known in self._encoders.items():
                    if known.waiting:
                        self._write(encoder, known)
            except AWAY as error:
                self._give_up(error)
            self._forget()

    # ---- writing

    def _write(self, encoder: str, known: _Encoder) -> None:
        parts, at, entries = [], 0, {}
        for wave, states in known.waiting.items():
            plain = np.ascontiguousarray(states)
            packed = plain.dtype == np.float32 and not (plain.view(np.uint32) & 0xFFFF).any()
            data = ((plain.view(np.uint32) >> 16).astype("<u2") if packed else plain).tobytes()
            entries[wave] = [at, list(states.shape), states.dtype.str, bool(packed), _check(wave, states.shape, data)]
            parts.append(data)
            at += len(data)
        data = b"".join(parts)
        sha256 = hashlib.sha256(data).hexdigest()
        index = {"bytes": len(data), "sha256": sha256, "repairs": sorted(known.damaged), "states": entries}
        said = json.dumps(index, sort_keys=True).encode() + b"\n"
        shard, prefix = _name(said), f"features/{encoder}"
        self.store.put(f"{prefix}/{shard}.bin", data)
        self.store.put(f"{prefix}/{shard}.json", said)
        known.read.add(f"{prefix}/{shard}.json")
        self._take(known, shard, index)

    # ---- reading

    def _look(self, encoder: str, known: _Encoder) -> None:
        """Takes in indices that are new, unless that was done just now."""
        if time.monotonic() - known.looked < REFRESH_S:
            return
        known.looked = time.monotonic()
        found = {}
        for key in self.store.list(f"features/{encoder}/"):
            if key.endswith(".json") and key not in known.read:
                known.read.add(key)
                shard = key.rpartition("/")[2].removesuffix(".json")
                said = self.store.get(key)
                try:
                    if _name(said) != shard:
                        raise ValueError("its bytes are not those that were written")
                    found[shard] = json.loads(said)
                except ValueError as error:
                    known.damaged.add(shard)
                    self._warn(f"the index {key} is damaged ({error}); its encoder states are made anew")
        repaired = known.damaged | {name for index in found.values() for name in index["repairs"]}
        for shard in sorted(found, key=lambda shard: (shard not in repaired, shard)):  # later ones take the place
            self._take(known, shard, found[shard])

    @staticmethod
    def _take(known: _Encoder, shard: str, index: dict[str, Any]) -> None:
        known.sizes[shard] = index["bytes"], index["sha256"]
        for wave, (at, shape, dtype, packed, check) in index["states"].items():
            known.places[wave] = _Place(shard, at, tuple(shape), dtype, packed, check)

    def _read(self, encoder: str, known: _Encoder, wave: str, place: _Place) -> np.ndarray:
        """DamagedError, MissingError."""
        dtype = np.dtype("<u2" if place.packed else place.dtype)
        data = self._bytes(encoder, known, place, int(np.prod(place.shape)) * dtype.itemsize)
        if _check(wave, place.shape, data) != place.check:
            raise DamagedError("its bytes are not those that were written")
        states = np.frombuffer(data, dtype).reshape(place.shape)
        return (states.astype(np.uint32) << 16).view(np.float32) if place.packed else states.copy()

    def _bytes(self, encoder: str, known: _Encoder, place: _Place, count: int) -> bytes:
        key = f"features/{encoder}/{place.shard}.bin"
        for _ in range(TRIES):
            if isinstance(self.store, FolderStore):
                path = self.store.path(key)
            else:
                copies = LocalCache.named("features")
                sha256 = known.sizes[place.shard][1]
                path = copies.path(f"{self.store.uri}/{key}", lambda p: self.store.fetch(key, p), sha256=sha256)
            try:
                with open(path, "rb") as file:
                    file.seek(place.at)
                    return file.read(count)
            except FileNotFoundError:
                if isinstance(self.store, FolderStore):
                    raise MissingError("it is not in the store any more") from None
        raise OSError(f"{key}: its copies go faster than they are read; give the cache more room (ATTUNE_CACHE_GB)")

    # ---- what goes wrong

    def _is_damaged(self, known: _Encoder, place: _Place, error: Exception) -> None:
        if place.shard not in known.damaged:
            self._warn(f"cached encoder states are damaged and made anew: shard {place.shard}: {error}")
        known.damaged.add(place.shard)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            self._away_until = time.monotonic() + REFRESH_S
            self._forget()
        self._warn(f"encoder states are neither kept nor looked up for {REFRESH_S:g} s: {error}; this costs time only")

    def _forget(self) -> None:
        """Nothing waits."""
        for known in self._encoders.values():
            known.waiting = {}
        self._waiting_bytes = 0

    @property
    def _away(self) -> bool:
        return time.monotonic() < self._away_until

    def _warn(self, message: str) -> None:
        self.note({"kind": "note", "level": "warning", "message": message})


def _check(wave: str, shape: tuple[int, ...], data: bytes) -> str:
    """Of the bytes, of whose they are and how they are laid out."""
    return hashlib.sha256(f"{wave} {list(shape)}\n".encode() + data).hexdigest()[:32]


def _name(index: bytes) -> str:
    return hashlib.sha256(index).hexdigest()[:32]
