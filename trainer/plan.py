"""Who is shown when: a pure function of the resolved job, its row counts and its seed (decisions, section 4).

A plan is an array of presentations. Step t owns presentations [tB, (t+1)B), whatever the world size, the
micro-batches or the number of attempts. Which source comes next is settled by deterministic error diffusion, so
that realised shares stay within one example of the requested ones at every presentation; which row of it, by a
fresh Philox permutation per source and epoch.
"""

import hashlib
import heapq
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.balance import Vectors, diverse_rows, drawn_rows, in_epochs, names, places, pool
from trainer.corpus import Corpus
from trainer.object_store import Store
from trainer.resolve import Resolved
from trainer.rng import permutation
from trainer.stage import AnyCurve, Balanced, Diverse, Stage, cumulative
from trainer.tokens import DataError

TEXT, SPEECH = 0, 1
BLOCK = 1 << 20
"""Presentations that are hashed at a time."""


@dataclass(frozen=True)
class StagePlan:
    """The presentations of one stage, each array of shape (steps * global_batch,)."""

    source: np.ndarray
    """Index into `Stage.sources`, uint16."""
    row: np.ndarray
    """Index into the usable rows of that source, uint32."""
    view: np.ndarray
    """0 text, 1 speech, uint8."""

    def __len__(self) -> int:
        return len(self.source)

    def step(self, t: int, global_batch: int) -> slice:
        """Presentations of step `t` of the stage."""
        return slice(t * global_batch, (t + 1) * global_batch)

    @property
    def sha256(self) -> str:
        """Hash of the three arrays, little-endian, in the order source, row, view."""
        digest = hashlib.sha256()
        for array, kind in ((self.source, "<u2"), (self.row, "<u4"), (self.view, "u1")):
            for start in range(0, len(array), BLOCK):
                digest.update(np.ascontiguousarray(array[start : start + BLOCK], dtype=kind).tobytes())
        return digest.hexdigest()

    def save(self) -> bytes:
        """The plan as an npz file, not compressed, so that it can be mapped into memory."""
        buffer = io.BytesIO()
        np.savez(buffer, source=self.source, row=self.row, view=self.view)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "StagePlan":
        """A plan from a file with the bytes of `save`: the arrays are mapped, so a step reads its own presentations
        only. The file may go once this has returned (POSIX). Compressed ones of earlier versions are read whole.
        BadZipFile where it is damaged."""
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{path}: {damaged} is not what was written")
            if all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist()):
                return cls(*(_mapped(path, archive, f"{name}.npy") for name in ("source", "row", "view")))
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["source"], arrays["row"], arrays["view"])

    @classmethod
    def fetch(cls, store: Store, key: str) -> "StagePlan":
        """`load` from a store, by way of this machine's disk."""
        with tempfile.TemporaryDirectory(prefix="attune-plan-") as folder:
            store.fetch(key, path := Path(folder) / "plan.npz")
            return cls.load(path)


def _mapped(path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an npz file that is not compressed."""
    with archive.open(name) as member:
        assert np.lib.format.read_magic(member) == (1, 0), "numpy writes newer headers for structured arrays only"
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        header = member.tell()
    with open(path, "rb") as file:  # the local header says where the member begins; the directory does not
        file.seek(archive.getinfo(name).header_offset + 26)
        lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    if not shape[0]:
        return np.empty(shape, dtype)
    start = archive.getinfo(name).header_offset + 30 + lengths + header
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)


def plan_stage(
    resolved: Resolved, stage_index: int, corpus: Corpus | None = None, vectors: Vectors | None = None
) -> StagePlan:
    """The plan of one stage. A source's epochs run on through the stages that show it.

    `corpus`: where the stage picks among tasks (`Stage.tasks`, or another sampler than `mixture`). `vectors`: the
    embeddings of its rows, where `trainer.balance.needs_vectors`.
    """
    stage = resolved.stages[stage_index]
    usable = usable_rows(resolved, stage, corpus)
    views = [SPEECH if resolved.sources[name].modality == "speech" else TEXT for name in stage.mix]
    count, seed = stage.steps * resolved.spec.global_batch, resolved.spec.seed
    if isinstance(stage.sampler, Balanced | Diverse):
        assert corpus is not None, "a stage that balances tasks is planned with its corpus"
        rows = pool(corpus, usable)
        if isinstance(stage.sampler, Diverse):
            source, row = diverse_rows(resolved, stage, rows, corpus, vectors)
        else:
            source, row = drawn_rows(resolved, stage, rows, _drawn_before(resolved, stage_index, corpus))
        view = np.asarray(views, dtype=np.uint8)[source]
        return StagePlan(source.astype(np.uint16), row.astype(np.uint32), view)
    # A stage of some tasks has an order of its own: that of its sources runs on over all of their rows.
    called = {str(name): str(name) if stage.tasks is None else f"{stage.name}/{name}" for name in stage.mix}
    mix = {called[name]: curve for name, curve in stage.mix.items()}
    before = {called[name]: n for name, n in shown_before(resolved, stage_index).items()}
    found = present(mix, {called[name]: len(own) for name, own in usable.items()}, before, views, count, seed)
    for n, own in enumerate(usable.values()):
        at = found.source == n
        found.row[at] = own[found.row[at]]
    return found


def usable_rows(resolved: Resolved, stage: Stage, corpus: Corpus | None) -> dict[str, np.ndarray]:
    """The rows that a stage may show, by source."""
    usable: dict[str, np.ndarray] = {}
    for name in map(str, stage.mix):
        many = resolved.sources[name].rows
        rows = np.arange(many)
        if stage.fraction < 1:
            seed = resolved.spec.data.subset_seed
            rows = permutation(seed, f"fraction/{name}", many)[: stage.kept(many)]
        if stage.tasks is not None:
            assert corpus is not None, "a stage of some tasks is planned with its corpus"
            all_rows = corpus.sources[name].rows
            rows = rows[[stage.shows(all_rows[r].task) for r in rows.tolist()]]
        if stage.picks and stage.fraction < 1:
            assert corpus is not None, "a stage that picks among tasks is planned with its corpus"
            _refuse_lost(stage, name, corpus, rows)
        usable[name] = rows
    return usable


def _refuse_lost(stage: Stage, source: str, corpus: Corpus, rows: np.ndarray) -> None:
    """DataError where none of the `rows` that a stage's fraction leaves of a source is of a task it shows there."""
    every = [u.task for u in corpus.sources[source].rows]
    kept = {every[r] for r in rows.tolist()}
    if lost := sorted({task for task in every if stage.shows(task)} - kept):
        share = f"fraction {stage.fraction:g} of stage {stage.name}"
        raise DataError(f"{share} leaves no row of task {lost[0]} in the source {source}; raise it")


def _drawn_before(resolved: Resolved, stage_index: int, corpus: Corpus) -> dict[str, int]:
    """Presentations of each task in the balanced stages before a stage, by what its order is called."""
    found: dict[str, int] = {}
    for stage in resolved.stages[:stage_index]:
        if isinstance(stage.sampler, Balanced):
            rows = pool(corpus, usable_rows(resolved, stage, corpus))
            shown = np.bincount(places(resolved, stage, rows), minlength=len(rows.tasks)).tolist()
            for name, n in zip(names(stage, rows), shown, strict=True):
                found[name] = found.get(name, 0) + n
    return found


def shown_before(resolved: Resolved, stage_index: int) -> dict[str, int]:
    """Presentations of each source of a stage in the stages before it. A stage that shows a part of the rows, or picks
    among tasks, has epochs of its own."""
    stage = resolved.stages[stage_index]
    before: dict[str, int] = dict.fromkeys(map(str, stage.mix), 0)
    if not stage.runs_on:
        return before
    for earlier in (s for s in resolved.stages[:stage_index] if s.runs_on):
        shown = interleave(list(earlier.mix.values()), earlier.steps * resolved.spec.global_batch)
        for n, name in enumerate(earlier.mix):
            if name in before:
                before[name] += int(np.count_nonzero(shown == n))
    return before


def present(
    mix: Mapping[str, float | AnyCurve],
    rows: Mapping[str, int],
    before: Mapping[str, int],
    views: Sequence[int],
    count: int,
    seed: int,
) -> StagePlan:
    """`count` presentations of `rows[source]` rows each, of which `before[source]` were shown in earlier stages."""
    source = interleave(list(mix.values()), count)
    row = np.empty(count, dtype=np.uint32)
    for n, name in enumerate(mix):
        at = np.flatnonzero(source == n)
        row[at] = in_epochs(name, rows[name], before[name], len(at), seed)
    view = np.asarray(views, dtype=np.uint8)[source]
    return StagePlan(source.astype(np.uint16), row, view)


def interleave(mix: Sequence[float | AnyCurve], count: int) -> np.ndarray:
    """Index of the source of each of `count` presentations, shape (count,): error diffusion.

    One or two sources: the nearest integer to the share due, so the deviation is at most 1/2. More: Tijdeman's
    solution of the chairman assignment problem (Discrete Mathematics 32, 1980), every source's j-th presentation
    between its release and its deadline, earliest deadline first; the deviation is at most 1 - 1/(2n - 2).
    """
    due = np.stack([cumulative(curve, count) for curve in mix])
    if len(mix) == 1:
        return np.zeros(count, dtype=np.int64)
    if len(mix) == 2:
        second = np.floor(due[1] + 0.5 - 1e-9).astype(np.int64)
        return np.diff(np.maximum(second, 0), prepend=0)
    return _earliest_deadline_first(due)


def _earliest_deadline_first(due: np.ndarray) -> np.ndarray:
    sources, count = due.shape
    slack = 1 / (2 * sources - 2)
    jobs: list[tuple[int, int, int]] = []  # (release, deadline, source)
    for n in range(sources):
        number = np.arange(1, int(np.ceil(due[n, -1] + slack)) + 2, dtype=np.float64)
        release = np.searchsorted(due[n], number - 1 + slack - 1e-9, side="left")
        deadline = np.searchsorted(due[n], number - slack - 1e-9, side="left")
        jobs += [(int(r), int(d), n) for r, d in zip(release, deadline, strict=True)]
    jobs.sort()
    out, ready, next_job = np.empty(count, dtype=np.int64), [], 0
    for slot in range(count):
        while next_job < len(jobs) and jobs[next_job][0] <= slot:
            release, deadline, n = jobs[next_job]
            heapq.heappush(ready, (deadline, n, release))
            next_job += 1
        if not ready:  # rounding left a slot without a released presentation: take the next one early
            release, deadline, n = jobs[next_job]
            heapq.heappush(ready, (deadline, n, release))
            next_job += 1
        out[slot] = heapq.heappop(ready)[1]
    return out
