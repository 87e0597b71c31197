"""How the front door prints things: plain text for people, JSON for programs. Nothing is decided here."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from attune.importing import ImportReport
from trainer.estimate import Estimate, mix_chart
from trainer.resolve import Resolved
from trainer.stage import AnyCurve, mean
from trainer.study import Expanded, presentations
from trainer.suite import Suite
from trainer.validate import Report


def _dump(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def job(resolved: Resolved, *, as_json: bool) -> None:
    """A resolved job: hash, stages, then every field."""
    data = resolved.model_dump(mode="json", by_alias=True)
    if as_json:
        _dump({"spec_hash": resolved.hash, **data})
        return
    print(f"{resolved.spec.name}  spec_hash {resolved.hash}")
    print(f"base {resolved.spec.base}  revision {resolved.base_revision or 'known when loaded'}")
    print(f"\nstages ({resolved.steps} steps of {resolved.spec.global_batch} examples)")
    for stage in resolved.stages:
        mix = ", ".join(f"{k} {_share(v)}" for k, v in stage.mix.items())
        parts = [name for name, on in stage.trainable.model_dump().items() if on]
        o = stage.optimizer
        print(f"  {stage.name}: {stage.steps} steps; {mix}; trains {', '.join(parts)}")
        shape = o.schedule if isinstance(o.schedule, str) else f"{o.schedule.kind} curve"
        part = f" (from step {o.schedule_part[0]} of {o.schedule_part[1]})" if o.schedule_part else ""
        print(f"      AdamW {o.peak_lr:g} {shape}{part}, warm-up {o.warmup_ratio:.2%}, clip {o.clip_norm:g}")
    print("\nsources")
    for name, pin in {**resolved.sources, "test": resolved.test}.items():
        subset = f" of {pin.available}" if pin.available != pin.rows else ""
        times = f", each shown {presentations(resolved, name):.2f} times" if name != "test" else ""
        print(f"  {name}: {pin.rows}{subset} rows as {pin.modality} from {pin.ref}{times}  sha256 {pin.sha256[:12]}")
    print("\nevery field")
    print(yaml.safe_dump(data["spec"], sort_keys=False, allow_unicode=True, width=110).rstrip())


def _share(value: float | AnyCurve) -> str:
    return f"{value:.1%}" if isinstance(value, float | int) else f"{mean(value):.1%} ({value.kind})"


def study(expanded: Expanded, *, as_json: bool) -> None:
    """The cells of a study and what could not be held."""
    cells = [
        {
            "cell": cell.name,
            "settings": cell.settings,
            "runs": [
                {"spec_hash": r.hash, "seed": r.spec.seed, "subset_seed": r.spec.data.subset_seed, "steps": r.steps}
                for r in cell.runs
            ],
            "stages": [s.model_dump(mode="json") for s in cell.runs[0].stages],
            "speech_presentations": presentations(cell.runs[0]),
        }
        for cell in expanded.cells
    ]
    if as_json:
        baselines = [{"name": b.name, "runs": [{"spec_hash": r.hash} for r in b.runs]} for b in expanded.baselines]
        _dump({"study": expanded.study.study, "cells": cells, "baselines": baselines, "notes": expanded.notes})
        return
    count = sum(len(c.runs) for c in expanded.cells)
    print(f"study {expanded.study.study}: {len(cells)} cells, {count} runs, {len(expanded.jobs())} distinct jobs")
    for cell in expanded.cells:
        run = cell.runs[0]
        stages = "; ".join(
            f"{s.name} {s.steps} steps ({', '.join(f'{k} {_share(v)}' for k, v in s.mix.items())}) at "
            f"{s.optimizer.peak_lr:g}, trains {', '.join(part for part, on in s.trainable if on)}"
            for s in run.stages
        )
        print(f"  {cell.name}: {len(cell.runs)} run(s); {stages}; recordings shown {presentations(run):.2f} times")
    for baseline in expanded.baselines:
        print(f"  {baseline.name}: a baseline, {len(baseline.runs)} run(s)")
    for note in expanded.notes:
        print(f"  note: {note}")
    specs = [run.spec.model_dump(mode="json", by_alias=True) for cell in expanded.cells for run in cell.runs]
    print("\nevery field that all cells share")
    print(yaml.safe_dump(_shared(specs), sort_keys=False, allow_unicode=True, width=110).rstrip())


def _shared(specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that say the same in all of them."""
    found = {}
    for key, value in specs[0].items():
        others = [spec.get(key) for spec in specs]
        tables = [other for other in others if isinstance(other, Mapping)]
        if all(other == value for other in others):
            found[key] = value
        elif len(tables) == len(others) and (inner := _shared(tables)):
            found[key] = inner
    return found


def suite(spec: Suite, *, as_json: bool) -> None:
    """A suite's shape."""
    if as_json:
        _dump(spec.model_dump(mode="json"))
        return
    print(f"suite {spec.suite}: {len(spec.jobs)} job(s), seeds {spec.seeds}, gate {', '.join(spec.gate)}")
    print("running suites needs the service and is not built yet")


def plan(resolved: Resolved, found: Estimate, *, as_json: bool) -> None:
    """What one job would do."""
    if as_json:
        _dump({"spec_hash": resolved.hash, **found.to_json()})
        return
    print(f"{resolved.spec.name}: {found.steps} steps of {resolved.spec.global_batch} = {found.examples} examples")
    wide = max([10, *map(len, found.sources)])
    for name, s in found.sources.items():
        subset = f" of {s.available}" if s.available != s.rows else ""
        audio = f", {s.audio_s / 3600:.2f} h of audio" if s.modality == "speech" else ""
        about = "" if s.exact else "about "
        tokens = "tokens unknown" if s.tokens is None else f"{about}{s.tokens:,} tokens"
        print(
            f"  {name:>{wide}} as {s.modality:<6} {s.rows}{subset} rows, {s.presentations} presentations "
            f"({s.times_shown:g} times each){audio}, {tokens}"
        )
    if resolved.stages:
        print("mix over time")
    for line in mix_chart(resolved) if resolved.stages else ["trains nothing: a baseline"]:
        print("  " + line)
    for device, seconds in found.seconds.items():
        training = f"{_time(seconds)} of training and " if resolved.stages else ""
        answering = f"{_time(found.answering_s[device])} of answering the test"
        print(f"about {training}{answering}, {found.memory_gib[device]:.1f} GiB, on {device} (rough)")
    who = f"{found.test_speakers} speakers" if found.test_speakers else "unknown speakers"
    print(
        f"test: {found.test_utterances} utterances of {who}; a true difference below about "
        f"{found.smallest_difference:.1%} would probably not show"
    )
    for note in found.notes:
        print(f"note: {note}")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def study_plan(found: Mapping[str, tuple[Resolved, Estimate, int]], expanded: Expanded, *, as_json: bool) -> None:
    """What every cell of a study would do."""
    if as_json:
        _dump({name: {"runs": n, "spec_hash": r.hash, **e.to_json()} for name, (r, e, n) in found.items()})
        return
    for resolved, one, runs in found.values():
        print(f"== {runs} run(s) of")
        plan(resolved, one, as_json=False)
    for note in expanded.notes:
        print(f"note: {note}")


def reports(found: Mapping[str, Report], *, as_json: bool) -> None:
    """Validation reports by data set, a line per problem."""
    if as_json:
        _dump({name: report.to_json() for name, report in found.items()})
        return
    for name, r in found.items():
        silent = "" if r.silence_share is None else f", {r.silence_share:.0%} of it silent"
        audio = f", {r.recordings} recordings ({r.seconds / 60:.1f} min{silent}), {r.speakers} speakers"
        audio = audio if r.recordings else ""
        print(f"{name}: {r.rows} rows{audio}; {r.errors} errors, {r.warnings} warnings, {r.notes} notes")
        for line in _facts(r):
            print(f"  {line}")
        for issue in r.issues[:50]:
            print(f"  {issue}")
        if len(r.issues) > 50:
            print(f"  … and {len(r.issues) - 50} more; --json prints all")


def _facts(r: Report) -> Iterator[str]:
    """What a data set holds, a line per kind; only what there is."""
    if len(r.by_split) > 1:
        yield "splits: " + _counts(r.by_split)
    if r.durations is not None:
        d = r.durations
        share = r.clipping_share or 0.0
        clipped = f"; {share:.2%} of the samples clipped" if share > 5e-5 else ""
        yield f"durations: {d['min']:g} to {d['max']:g} s, median {d['median']:g}, 95 % up to {d['p95']:g}{clipped}"
        yield "rates: " + _counts({f"{rate} Hz": n for rate, n in r.rates.items()})
    if r.scripts:
        yield "letters: " + _counts({script.lower(): n for script, n in r.scripts.items()})
    if r.labels:
        yield f"labels ({len(r.labels)}): " + _counts(r.labels)
    if r.counts:
        yield "found: " + _counts(r.counts)


def _counts(counts: Mapping[str, int], most: int = 12) -> str:
    said = [f"{name} {n}" for name, n in counts.items()]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def imported(report: ImportReport, out: Path, *, as_json: bool) -> None:
    """What became of a source: columns taken, rows per split, rows left out."""
    if as_json:
        _dump(report.to_json())
        return
    print(f"{out}:")
    for line in report.lines():
        print(line)
