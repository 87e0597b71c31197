"""The rows that every comparison needs beside its cells: majority, untuned, linear probe, cascade.

What a control answered is kept under `controls/`, so a study that is run again does not ask twice.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer import baselines
from trainer.evaluate import Row, limited
from trainer.fields import problem
from trainer.report import ReportRow
from trainer.resolve import Resolved
from trainer.spec import Task
from trainer.store import Store
from trainer.study import Expanded, Read
from trainer.views import Recordings


def task_of(run: Resolved) -> Task:
    """The task of the test."""
    tasks = [t for t in run.spec.tasks or [] if isinstance(t, Task)]
    return tasks[0]


def refuse(expanded: Expanded, read: Read) -> None:
    """SpecError for controls that could only fail after all cells are trained."""
    run = expanded.cells[0].runs[0]
    test = read(run.spec).test
    assert test is not None
    names = sorted({u.task for u in test.rows})
    if len(names) > 1:
        raise problem("evaluate.on", f"a study compares one task; the test has {', '.join(names)}")
    asked = set(expanded.controls)
    if not all(u.audio for u in test.rows) and (silent := sorted(asked & {"untuned", "linear_probe", "cascade"})):
        raise problem("controls", f"{', '.join(silent)} answer recordings, which the test has not; leave them out")
    if "linear_probe" in asked and task_of(run).answer == "text":
        raise problem("controls", f"a linear probe cannot answer text, which task {task_of(run).name} asks for")
    if "linear_probe" in asked and not _heard(expanded):
        raise problem("controls", "a linear probe learns from recordings, and no cell has any; leave it out")


def rows_of(control: str, expanded: Expanded, read: Read, model, store: Store) -> list[ReportRow]:
    """The rows of a control that answers the test itself; those that learn see the recordings that cells see."""
    first = expanded.cells[0].runs[0]
    test = limited(read(first.spec).test.rows, first.spec.evaluate.limit)  # type: ignore[union-attr]
    task, decode = task_of(first), first.spec.evaluate.decode
    recordings = Recordings(model.tokens.shape.sampling_rate, trim_silence=first.spec.data.trim_silence == "on")
    limit, trims = first.spec.evaluate.limit, recordings.trim_silence
    common = (first.base_revision, first.test.sha256, limit, task.model_dump_json(), trims)

    def kept(name: str, *depends: Any, make: Callable[[], list[Row]]) -> list[Row]:
        digest = hashlib.sha256(repr((common, depends)).encode()).hexdigest()[:16]
        key = f"controls/{name}/{digest}.jsonl"
        if not store.exists(key):
            store.put(key, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in make()).encode())
        return [json.loads(line) for line in store.get(key).decode().splitlines()]

    if control == "majority":
        widest = max(expanded.cells, key=lambda c: sum(p.rows for p in c.runs[0].sources.values())).runs[0]
        train = [u for name in widest.sources for u in read(widest.spec).sources[name].rows]
        pins = sorted(p.sha256 for p in widest.sources.values())
        return [_plain(control, kept(control, pins, make=lambda: baselines.majority(train, test, task)))]
    if control == "untuned":
        found = kept(control, decode, make=lambda: baselines.untuned(model, test, task, decode, recordings))
        return [_plain(control, found)]
    if control == "linear_probe":
        features = baselines.pooled_features(model, recordings)

        def probe(run: Resolved) -> list[Row]:
            train = read(run.spec).sources["speech"].rows
            make = lambda: baselines.linear_probe(train, test, task, features)  # noqa: E731
            return kept(control, run.sources["speech"].sha256, make=make)

        return [_probe_row(runs, {seed: probe(run) for seed, run in runs.items()}) for runs in _heard(expanded)]
    return []


def _heard(expanded: Expanded) -> list[dict[int | None, Resolved]]:
    """The sets of recordings that cells train on, smallest first; those that differ in `subset_seed` only are
    repetitions of one row."""
    sets: dict[str, Resolved] = {}
    for cell in expanded.cells:
        for run in cell.runs:
            if "speech" in run.sources:
                sets.setdefault(run.sources["speech"].sha256, run)
    rows: dict[tuple, dict[int | None, Resolved]] = {}
    for run in sets.values():
        data = run.spec.data
        key = (run.sources["speech"].rows, data.speech_fraction, data.speech_per_label, data.speech, data.corpus)
        rows.setdefault(key, {})[data.subset_seed] = run
    ordered = [rows[k] for k in sorted(rows, key=repr)]
    ordered.sort(key=lambda runs: next(iter(runs.values())).sources["speech"].rows)
    return [runs if len(runs) > 1 else {None: next(iter(runs.values()))} for runs in ordered]


def _probe_row(runs: Mapping[int | None, Resolved], found: Mapping[Any, Sequence[Row]]) -> ReportRow:
    pin = next(iter(runs.values())).sources["speech"]
    fraction = round(pin.rows / pin.available, 4)
    return ReportRow(f"linear probe, {pin.rows} recordings", "linear_probe", pin.rows, fraction, 1.0, found, "control")


def _plain(name: str, found: list[Row]) -> ReportRow:
    return ReportRow(name, name, 0, None, 0.0, {None: found}, "control")
