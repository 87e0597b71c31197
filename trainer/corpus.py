"""The corpus of a job: its sources' usable rows, its test rows and its tasks, read from the data sets it names."""

import contextlib
import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from trainer import streamed
from trainer.fields import UnfitDataError, problem
from trainer.manifest import ManifestError, Utterance, fingerprint, load, locate, manifests_in
from trainer.rng import permutation
from trainer.spec import Data, JobSpec, Task, builtin_tasks, read_task

Modality = Literal["text", "speech"]
MODALITY: dict[str, Modality] = {"text": "text", "speech": "speech", "synthetic": "speech"}


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source."""

    ref: str
    """Reference as the user wrote it."""
    rows: list[Utterance]
    """Usable rows, audio paths absolute."""
    available: int
    """Rows before `speech_fraction` or `speech_per_label` chose among them."""
    folder: Path
    """Folder that the manifest's audio paths are relative to."""

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the usable rows: manifest lines and the bytes of their recordings (in S3: size and ETag)."""
        digest = hashlib.sha256(fingerprint(self.rows, self.folder).encode())
        for path in dict.fromkeys(u.audio for u in self.rows if u.audio):
            digest.update(_bytes_of(path))
        return digest.hexdigest()


@dataclass(frozen=True)
class Corpus:
    """All that a job reads."""

    sources: dict[str, SourceRows]
    test: SourceRows | None
    tasks: dict[str, Task]
    dev: SourceRows | None = None
    """What checkpoints are scored on."""
    guards: tuple["Guarded", ...] = ()
    """What is scored before and after training."""
    pools: tuple[SourceRows, ...] = ()
    """What demonstrations come from where `evaluate.demos.from` says so: rows of the test's tasks."""

    def shown(self) -> list[Utterance]:
        """The rows that demonstrations of the test are drawn from."""
        pools = self.pools or [s for name, s in self.sources.items() if name == self.demonstrators()]
        return [row for pool in pools for row in pool.rows]

    def demonstrators(self) -> str | None:
        """The source that demonstrations are drawn from: the first that has transcripts with labels."""
        shows = (name for name, s in self.sources.items() if any(u.text and u.label is not None for u in s.rows))
        return next(shows, None)

    def task_rows(self, shows: Callable[[str], bool] = lambda task: True) -> dict[str, dict[str, int]]:
        """Usable rows by task, in the job's order, and source; `shows`: of which tasks."""
        found = {name: Counter(u.task for u in s.rows) for name, s in self.sources.items()}
        every = {task: {name: n[task] for name, n in found.items() if n[task]} for task in self.tasks if shows(task)}
        return {task: rows for task, rows in every.items() if rows}

    def counts(self) -> dict[str, int]:
        """Usable rows per source."""
        return {name: len(s.rows) for name, s in self.sources.items()}


@dataclass(frozen=True)
class Guarded:
    """A further test set and its own tasks."""

    source: SourceRows
    tasks: dict[str, Task]


_hashed: dict[tuple[str, int, int], bytes] = {}


def _bytes_of(path: str) -> bytes:
    """sha256 of a recording, remembered while size and time of change stay; a missing one is for validation."""
    if streamed.is_streamed(path):
        return streamed.stamp(path) or b"missing"
    try:
        at = os.stat(path)
        key = (path, at.st_size, at.st_mtime_ns)
        if key not in _hashed:
            with open(path, "rb") as file:
                _hashed[key] = hashlib.file_digest(file, "sha256").digest()
        return _hashed[key]
    except OSError:
        return b"missing"


class Reader:
    """Reads corpora for many jobs of one process, each data set once."""

    def __init__(self, roots: Sequence[Path | str] = (".",)):
        self.roots, self._read = roots, {}

    def __call__(self, spec: JobSpec) -> Corpus:
        given = [t if isinstance(t, str) else t.name for t in spec.tasks or []]
        evaluate = spec.evaluate
        also = f"{evaluate.guards} {evaluate.demos.from_ if evaluate.demos.most else []}"
        key = f"{spec.data!r} {evaluate.on} {evaluate.dev} {evaluate.select} {also} {given}"
        if key not in self._read:
            self._read[key] = read_corpus(spec, self.roots)
        return self._read[key]


def read_corpus(spec: JobSpec, roots: Sequence[Path | str] = (".",)) -> Corpus:
    """Read what the spec names. SpecError names the field whose data set is missing, empty or unfit."""
    data = spec.data
    sources: dict[str, SourceRows] = {}
    if data.corpus:
        whole = _read("data.corpus", data.corpus, roots, "train")
        texts = [u for u in whole.rows if u.text]
        if texts:
            sources["text"] = SourceRows(whole.ref, texts, len(texts), whole.folder)
        if any(u.audio for u in whole.rows):
            sources["speech"] = _recordings("data.corpus", whole, data)
    if data.text:
        found = _read("data.text", data.text, roots, "train")
        if bare := [u.id for u in found.rows if not u.text]:
            message = f"{len(bare)} rows have no text, the first is {bare[0]}"
            raise problem("data.text", message, data.text, UnfitDataError)
        sources["text"] = found
    if data.synthetic:
        found = _read("data.synthetic", data.synthetic, roots, "train")
        _need_audio("data.synthetic", found, data.synthetic)
        sources["synthetic"] = found
    if data.speech:
        found = _read("data.speech", data.speech, roots, "train")
        _need_audio("data.speech", found, data.speech)
        sources["speech"] = _recordings("data.speech", found, data)
    test = _test(spec, roots)
    dev = _dev(spec, roots)
    held = [found for found in (test, dev) if found]
    pools = _pools(spec, roots, test, dev)
    tasks = _tasks(spec, [*sources.values(), *held, *pools])
    trained = {f"data.{name}": source for name, source in sources.items()}
    _no_leak(trained, test, "test")
    _no_leak({**trained, "evaluate.on": test} if test else trained, dev, "dev")
    guards = tuple(_guarded(n, ref, roots, trained) for n, ref in enumerate(spec.evaluate.guards))
    return Corpus(sources, test, tasks, dev, guards, pools)


def subset(rows: list[Utterance], data: Data, field: str) -> list[Utterance]:
    """The recordings that may be used: a prefix of one seeded order, so that 2 % is part of 5 %.

    The order depends on ids and `subset_seed` alone, not on the order of the manifest.
    """
    if data.speech_fraction == 1.0 and data.speech_per_label is None:
        return rows
    by_id = sorted(rows, key=lambda u: u.id)
    order = [by_id[i] for i in permutation(data.subset_seed, "subset", len(by_id))]
    if data.speech_per_label is None:
        count = math.ceil(data.speech_fraction * len(order) - 1e-9)
        kept = order[:count]
    else:
        kept, seen = [], defaultdict(int)
        for row in order:
            if not isinstance(row.label, str):
                raise problem(
                    "data.speech_per_label",
                    f"row {row.id} of {field} has no single label; use speech_fraction",
                    data.speech_per_label,
                )
            if seen[row.label] < data.speech_per_label:
                seen[row.label] += 1
                kept.append(row)
        short = {k: n for k, n in seen.items() if n < data.speech_per_label}
        if short:
            label, n = min(short.items(), key=lambda kv: kv[1])
            raise problem(
                "data.speech_per_label",
                f"label '{label}' has {n} recordings; ask for at most {n}",
                data.speech_per_label,
            )
    chosen = {u.id for u in kept}
    return [u for u in rows if u.id in chosen]


def _recordings(field: str, found: SourceRows, data: Data) -> SourceRows:
    heard = [u for u in found.rows if u.audio]
    return SourceRows(found.ref, subset(heard, data, field), len(heard), found.folder)


def _need_audio(field: str, found: SourceRows, ref: str) -> None:
    if mute := [u.id for u in found.rows if not u.audio]:
        raise problem(field, f"{len(mute)} rows have no recording, the first is {mute[0]}", ref, UnfitDataError)


def _read(field: str, ref: str, roots: Sequence[Path | str], default_split: str | None) -> SourceRows:
    try:
        where = locate(ref, roots)
        plain_folder = where.split is None and len(where.files) != 1
        if default_split and (plain_folder or Path(ref).name == where.folder.name):
            splits = manifests_in(where.folder)
            if default_split in splits or "manifest" in splits:
                where, ref_used = locate(f"{ref}:{default_split}", roots), f"{ref}:{default_split}"
            else:
                ref_used = ref
        else:
            ref_used = ref
        rows = load(ref_used, roots)
    except (ManifestError, OSError) as error:
        raise problem(field, str(error), ref, UnfitDataError) from None
    if not rows:
        raise problem(field, "the data set has no rows", ref, UnfitDataError)
    return SourceRows(ref_used, rows, len(rows), where.folder)


def _test(spec: JobSpec, roots: Sequence[Path | str]) -> SourceRows | None:
    """The rows that the job is scored on; by default the speech data's test split, else its dev split."""
    if spec.evaluate.on:
        return _read("evaluate.on", spec.evaluate.on, roots, "test")
    base = spec.data.corpus or spec.data.speech
    if base is None:
        raise problem("evaluate.on", "names no test set, and there is no speech data with one; give evaluate.on")
    try:
        where = locate(base, roots)
    except ManifestError as error:
        raise problem("data.speech", str(error), base, UnfitDataError) from None
    for split in ("test", "dev"):
        if split in manifests_in(where.folder) or "manifest" in manifests_in(where.folder):
            try:
                return _read("evaluate.on", f"{where.words}:{split}", roots, None)
            except ValueError:
                continue
    raise problem("evaluate.on", f"{base} has neither a test nor a dev split; give evaluate.on")


def _dev(spec: JobSpec, roots: Sequence[Path | str]) -> SourceRows | None:
    """The rows that checkpoints are scored on; where none are named but a choice is wanted, the speech data's."""
    if spec.evaluate.dev or spec.evaluate.select == "last":
        return _read("evaluate.dev", spec.evaluate.dev, roots, "dev") if spec.evaluate.dev else None
    base = spec.data.corpus or spec.data.speech
    if base is not None:
        with contextlib.suppress(ManifestError):
            where = locate(base, roots)
            if "dev" in manifests_in(where.folder) or "manifest" in manifests_in(where.folder):
                return _read("evaluate.dev", f"{where.words}:dev", roots, None)
    message = f"chooses on a dev set, and {base or 'the job without speech data'} has none; give evaluate.dev"
    raise problem("evaluate.select", message, spec.evaluate.select)


def _pools(
    spec: JobSpec, roots: Sequence[Path | str], test: SourceRows | None, dev: SourceRows | None
) -> tuple[SourceRows, ...]:
    """The rows of `evaluate.demos.from` that name a task of the test, none of them tested."""
    demos, found = spec.evaluate.demos, []
    tested = {u.task for u in test.rows} if test else set()
    for n, ref in enumerate(demos.from_ if demos.most else []):
        field = f"evaluate.demos.from[{n}]"
        whole = _read(field, ref, roots, "train")
        pool = replace(whole, rows=[u for u in whole.rows if u.task in tested])
        if not pool.rows:
            has = ", ".join(sorted({u.task for u in whole.rows}))
            raise problem(field, f"has rows of {has}, none of the test's {', '.join(sorted(tested))}", ref)
        _no_leak({field: pool}, test, "test")
        _no_leak({field: pool}, dev, "dev")
        found.append(pool)
    return tuple(found)


def _guarded(n: int, ref: str, roots: Sequence[Path | str], trained: dict[str, SourceRows]) -> Guarded:
    field = f"evaluate.guards[{n}]"
    found = _read(field, ref, roots, "test")
    known = tasks_of(ref, roots)
    if missing := sorted({u.task for u in found.rows} - set(known)):
        message = f"its rows name the task '{missing[0]}', which is not defined; put a task.yaml beside the manifest"
        raise problem(field, message, ref)
    _no_leak(trained, found, "guard")
    return Guarded(found, {u.task: known[u.task] for u in found.rows})


def tasks_of(ref: str, roots: Sequence[Path | str] = (".",)) -> dict[str, Task]:
    """The tasks that a data set's rows may name: built in, and its own task.yaml."""
    known = builtin_tasks()
    path = locate(ref, roots).folder / "task.yaml"
    if path.is_file():
        task = read_task(path)
        known[task.name] = task
    return known


def _tasks(spec: JobSpec, read: list[SourceRows]) -> dict[str, Task]:
    """The tasks of all rows: as given in the spec, else in the data sets' task.yaml, else built in."""
    known = builtin_tasks()
    for source in read:
        path = source.folder / "task.yaml"
        if path.is_file():
            task = read_task(path)
            known[task.name] = task
    given: dict[str, Task] = {}
    for n, item in enumerate(spec.tasks or []):
        task = known.get(item) if isinstance(item, str) else item
        if task is None:
            raise problem(f"tasks[{n}]", f"no such task; known: {', '.join(sorted(known))}", item)
        given[task.name] = task
    wanted = {u.task for source in read for u in source.rows}
    tasks = given or {name: known[name] for name in sorted(wanted) if name in known}
    if missing := sorted(wanted - set(tasks)):
        raise problem(
            "tasks",
            f"rows name the task '{missing[0]}', which is not defined; write it out in tasks, or put a task.yaml "
            f"beside the manifest; known: {', '.join(sorted(tasks) or sorted(known))}",
        )
    return {name: tasks[name] for name in tasks if name in wanted}


def _no_leak(sources: dict[str, SourceRows], held: SourceRows | None, kind: str) -> None:
    """No utterance of the sources, by their fields, is among those that are held out; shared texts are for `attune
    validate` to report."""
    if held is None:
        return
    kept = {(u.audio, u.offset_s) for u in held.rows if u.audio} | {(held.folder, u.id) for u in held.rows}
    for field, source in sources.items():
        for row in source.rows:
            if (row.audio, row.offset_s) in kept or (source.folder, row.id) in kept:
                message = f"utterance {row.id} is in the {kind} set too; take it out of one of them"
                raise problem(field, message, kind=UnfitDataError)
