"""Which row next where a stage balances tasks (light, pure; arXiv 2601.12494): Uniform Task Mixing and Aligner-Based
Diverse Sampling.

A place of a step goes to a task, inside it to a cell (a label; a cluster where answers are open; or the whole task),
and then to a row of the cell, whichever source it is of. A cell shows all of its rows before any of them again.
Embeddings are whole numbers, so likeness is exact and the order is the same on every machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.clusters import kmeans
from trainer.corpus import Corpus
from trainer.resolve import Resolved
from trainer.rng import permutation, philox
from trainer.spec import Task
from trainer.stage import Balanced, Diverse, Stage, task_weights

GRID = 32767
"""Embeddings of length 1 are kept as whole numbers of this size (int16)."""
RANDOM_WIDTH = 64
"""Numbers of an embedding that knows nothing."""
Vectors = Mapping[str, np.ndarray]
"""Embedding of every row of each source, (rows, width) int16."""


def in_epochs(name: str, rows: int, start: int, count: int, seed: int) -> np.ndarray:
    """Presentations `start` to `start + count` of `rows` rows called `name`: permuted afresh every epoch."""
    if count == 0:
        return np.empty(0, dtype=np.uint32)
    first, last = start // rows, (start + count - 1) // rows
    epochs = [permutation(seed, f"epoch/{name}/{epoch}", rows) for epoch in range(first, last + 1)]
    offset = start - first * rows
    return np.concatenate(epochs)[offset : offset + count].astype(np.uint32)


def quotas(weights: Sequence[int], batch: int, steps: int) -> np.ndarray:
    """Places of each task in each step, (steps, tasks): its share of `batch`, rounded down or up. What rounding down
    leaves goes to those to whom most is owed from the steps before, of equals to the first."""
    total = sum(weights)
    whole, rest = np.divmod(batch * np.array(weights, dtype=np.int64), total)
    out, owed, left = np.tile(whole, (steps, 1)), np.zeros_like(rest), batch - int(whole.sum())
    for places in out:
        owed += rest
        first = np.argsort(np.where(rest > 0, -owed, np.iinfo(np.int64).max), kind="stable")[:left]
        places[first] += 1
        owed[first] -= total
    return out


def needs_vectors(stage: Stage, tasks: Sequence[Task]) -> bool:
    """Whether a stage's plan asks for embeddings; `tasks`: those of its rows."""
    if not isinstance(stage.sampler, Diverse):
        return False
    parts = stage.sampler.label_quota and stage.sampler.clusters > 1 and not all(task.closed for task in tasks)
    return parts or stage.sampler.diversity == "kcenter"


def whole_numbers(vectors: np.ndarray) -> np.ndarray:
    """Vectors (rows, width) of any length as int16 of length GRID; one of nothing stays so."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return np.rint(wide * (GRID / np.where(lengths > 0, lengths, 1.0))[:, None]).astype(np.int16)


def random_vectors(source: str, rows: int, seed: int) -> np.ndarray:
    """The control: (rows, RANDOM_WIDTH) int16."""
    words = philox(seed, f"embeddings/{source}", rows * RANDOM_WIDTH).reshape(rows, -1)
    return whole_numbers((words >> np.uint64(32)).astype(np.float64) - 2**31)


@dataclass(frozen=True)
class Pool:
    """The rows that a stage shows, source after source; each array of shape (rows,)."""

    source: np.ndarray
    """Index into the stage's sources."""
    row: np.ndarray
    """Index into the rows of that source."""
    of: np.ndarray
    """Index into `tasks`."""
    tasks: list[Task]
    """In the job's order."""

    def members(self, task: int) -> np.ndarray:
        """The places in the pool of a task's rows."""
        return np.flatnonzero(self.of == task)


def pool(corpus: Corpus, usable: Mapping[str, np.ndarray]) -> Pool:
    """The rows of a stage; `usable`: those that it may show of each source."""
    source = np.concatenate([np.full(len(rows), n) for n, rows in enumerate(usable.values())])
    row = np.concatenate(list(usable.values()))
    named = [corpus.sources[name].rows[r].task for name, rows in usable.items() for r in rows.tolist()]
    present = set(named)
    tasks = [task for task in corpus.tasks.values() if task.name in present]
    at = {task.name: k for k, task in enumerate(tasks)}
    return Pool(source, row, np.array([at[name] for name in named]), tasks)


def places(resolved: Resolved, stage: Stage, rows: Pool) -> np.ndarray:
    """Task of every presentation of a stage, shape (count,)."""
    sampler, batch, seed = stage.sampler, resolved.spec.global_batch, resolved.spec.seed
    assert isinstance(sampler, Balanced | Diverse)
    counts = np.bincount(rows.of, minlength=len(rows.tasks)).tolist()
    weights = task_weights(sampler, {task.name: n for task, n in zip(rows.tasks, counts, strict=True)})
    if isinstance(sampler, Balanced) or not sampler.task_quota:
        words = philox(seed, f"tasks/{stage.name}", stage.steps * batch) % np.uint64(sum(weights))
        return np.searchsorted(np.cumsum(weights), words.astype(np.int64), side="right")
    out = np.empty((stage.steps, batch), dtype=np.int64)
    for t, own in enumerate(quotas(weights, batch, stage.steps)):
        out[t] = np.repeat(np.arange(len(own)), own)[permutation(seed, f"places/{stage.name}/{t}", batch)]
    return out.reshape(-1)


def drawn_rows(
    resolved: Resolved, stage: Stage, rows: Pool, before: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(source, row) of every presentation of a balanced stage; `before`: presentations of each of `names` in the stages
    before it."""
    of, seed = places(resolved, stage, rows), resolved.spec.seed
    chosen = np.empty(len(of), dtype=np.int64)
    for k, name in enumerate(names(stage, rows)):
        at, own = np.flatnonzero(of == k), rows.members(k)
        chosen[at] = own[in_epochs(name, len(own), before.get(name, 0), len(at), seed)]
    return rows.source[chosen], rows.row[chosen]


def names(stage: Stage, rows: Pool) -> list[str]:
    """What the order of each task's rows is called: the same where the same rows are shown in several stages, and that
    of the source where they are all there is."""
    if len(rows.tasks) == 1 and len(stage.mix) == 1 and stage.tasks is None and stage.fraction == 1:
        return stage.sources
    found = []
    for k, task in enumerate(rows.tasks):
        sources = [stage.sources[n] for n in np.unique(rows.source[rows.of == k])]
        part = "" if stage.fraction == 1 else f"/{stage.name}"
        found.append(f"task/{task.name}/{'+'.join(sources)}{part}")
    return found


class _Cell:
    """Rows of one label, cluster or task: a fresh order every epoch, from which a row may be taken early."""

    def __init__(self, members: np.ndarray, name: str, seed: int):
        self.members, self.name, self.seed = members, name, seed
        self.left: list[int] = []
        self.epoch = 0

    def fill(self) -> None:
        if not self.left:
            order = permutation(self.seed, f"epoch/{self.name}/{self.epoch}", len(self.members))
            self.left, self.epoch = self.members[order[::-1]].tolist(), self.epoch + 1

    def take(self, at: int) -> int:
        """The row at a place of those left; the last of them takes its place."""
        found, self.left[at] = self.left[at], self.left[-1]
        self.left.pop()
        return found


def diverse_rows(
    resolved: Resolved, stage: Stage, rows: Pool, corpus: Corpus, vectors: Vectors | None
) -> tuple[np.ndarray, np.ndarray]:
    """(source, row) of every presentation of a diverse stage, by the `vectors` of its sources' rows."""
    sampler, batch, seed = stage.sampler, resolved.spec.global_batch, resolved.spec.seed
    assert isinstance(sampler, Diverse)
    points = None
    if needs_vectors(stage, rows.tasks):
        assert vectors is not None, "embeddings were not handed in"
        points = np.concatenate([vectors[s][rows.row[rows.source == n]] for n, s in enumerate(stage.sources)])
    cells = _cells(stage, rows, corpus, points, seed)
    farthest = sampler.diversity == "kcenter"
    turn, out = [0] * len(cells), np.empty(stage.steps * batch, dtype=np.int64)
    for t, tasks in enumerate(places(resolved, stage, rows).reshape(stage.steps, batch)):
        words = philox(seed, f"candidates/{stage.name}/{t}", batch * sampler.candidates) if farthest else None
        taken = np.empty((0, 0 if points is None else points.shape[1]))
        for n, task in enumerate(tasks.tolist()):
            cell = cells[task][turn[task] % len(cells[task])]
            turn[task] += 1
            cell.fill()
            if words is None or points is None:
                out[t * batch + n] = cell.take(len(cell.left) - 1)
                continue
            drawn = words[n * sampler.candidates : (n + 1) * sampler.candidates] % np.uint64(len(cell.left))
            at = list(dict.fromkeys(drawn.tolist())) if len(cell.left) > sampler.candidates else range(len(cell.left))
            found = points[[cell.left[k] for k in at]].astype(np.float64)
            out[t * batch + n] = chosen = cell.take(at[pick(found, taken)])
            taken = np.concatenate([taken, points[[chosen]]])
    return rows.source[out], rows.row[out]


def pick(candidates: np.ndarray, taken: np.ndarray) -> int:
    """Which of candidates (count, width) has the farthest nearest of what is taken (taken, width), by cosine; of equals
    the first. All are of one length, so cosines are ranked by products."""
    return int((candidates @ taken.T).max(1).argmin()) if len(taken) else 0


def _cells(stage: Stage, rows: Pool, corpus: Corpus, points: np.ndarray | None, seed: int) -> list[list[_Cell]]:
    """The cells of each task in the order in which they take turns."""
    sampler, out = stage.sampler, []
    assert isinstance(sampler, Diverse)
    for k, (task, name) in enumerate(zip(rows.tasks, names(stage, rows), strict=True)):
        members = rows.members(k)
        own = name if name in stage.sources else f"{stage.name}/{name}"
        if not sampler.label_quota:
            kinds = [""] * len(members)
        elif task.closed:
            kinds = [_label(corpus.sources[stage.sources[rows.source[m]]].rows[rows.row[m]].label) for m in members]
        elif sampler.clusters > 1 and points is not None:
            kinds = [f"{n}" for n in kmeans(points[members], sampler.clusters, seed).labels]
        else:
            kinds = [""] * len(members)
        different = sorted(set(kinds))
        turns = [different[n] for n in permutation(seed, f"turns/{own}", len(different))]
        of = np.array([different.index(kind) for kind in kinds])
        out.append([
            _Cell(members[of == different.index(kind)], f"{own}/{kind}" if len(different) > 1 else own, seed)
            for kind in turns
        ])  # fmt: skip
    return out


def _label(label) -> str:
    return str(label.get("intent") if isinstance(label, dict) else label)
