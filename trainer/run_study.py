"""One study in one warm process: every distinct job once, the controls, the report.

The base is loaded once and the encoder's states are kept between jobs. Each job has its own folder under
`jobs/<hash>`, complete by itself, so an interrupted study goes on where it stopped.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from trainer import baselines
from trainer.corpus import Corpus, read_corpus
from trainer.evaluate import CASCADE, SPEECH, TEXT, Row, limited
from trainer.families import load as load_model
from trainer.features import FeatureCache
from trainer.report import Report, ReportRow, write_report
from trainer.resolve import Resolved
from trainer.result import main_metric
from trainer.run import run
from trainer.spec import JobSpec, Task
from trainer.store import FolderStore, Store
from trainer.strategies import LimitedSpeech
from trainer.study import Cell, Expanded, StudySpec, expand, presentations
from trainer.tokens import locate_base
from trainer.views import Recordings


class StudyFailedError(RuntimeError):
    """A job of the study ended with a reason; the others are kept."""


def run_study(study: StudySpec, out: Path | str, roots: Sequence[Path | str] = (".",)) -> Report:
    """Train and score all cells and controls of `study` into the folder `out` and write its report."""
    corpora: dict[str, Corpus] = {}

    def read(job: JobSpec) -> Corpus:
        key = f"{job.data!r} {job.evaluate.on} {job.tasks!r}"
        if key not in corpora:
            corpora[key] = read_corpus(job, roots)
        return corpora[key]

    expanded = expand(study, read)
    first = expanded.cells[0].runs[0]
    store, cache = FolderStore(Path(out)), FeatureCache()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precise = first.spec.precision == "fp32" or (first.spec.precision == "auto" and device == "cpu")
    model = load_model(
        locate_base(first.spec.base, first.spec.revision),
        device=device,
        dtype=torch.float32 if precise else torch.bfloat16,
        name=first.spec.base,
        cache=cache,
    )
    rows: dict[str, dict[str, list[Row]]] = {}
    jobs = expanded.jobs()
    with tqdm(total=sum(job.steps for job in jobs.values()), unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        for n, (key, job) in enumerate(jobs.items(), 1):
            bar.set_description(f"[{n}/{len(jobs)}] {job.spec.name.split('/')[-1]} seed {job.spec.seed}")
            rows[key] = _one(job, store, read(job.spec), model, cache, bar)
    report_rows = _report_rows(expanded, rows)
    for control in study.controls:
        print(f"control: {control}", file=sys.stderr, flush=True)
        report_rows += _control(control, expanded, rows, read, model)
    metric = main_metric(first)
    task = _task(first)
    beside = [m for m in task.metrics if m != metric][:3] or (["macro_f1"] if metric == "accuracy" else [])
    return write_report(
        Path(out), report_rows, metric, study=study.study, base=first.spec.base, beside=beside, notes=expanded.notes
    )


class _Progress:
    """`sink` of one job: moves the study's bar."""

    def __init__(self, bar: tqdm, done: int):
        self.bar, self.start = bar, done

    def __call__(self, event: dict[str, Any]) -> None:
        match event:
            case {"kind": "step", "step": step, "loss": loss}:
                self.bar.n = self.start + step
                self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                self.bar.update(0)
            case {"kind": "state", "state": state}:
                self.bar.set_postfix_str(state)
            case {"kind": "note", "message": message}:
                self.bar.write(message, file=sys.stderr)


def _one(job: Resolved, store: FolderStore, corpus: Corpus, model, cache, bar: tqdm) -> dict[str, list[Row]]:
    """Prediction rows of one job by modality, trained now or found finished."""
    own = FolderStore(store.root / "jobs" / job.hash[:16])
    start = bar.n
    result = run(job, own, _Progress(bar, start), corpus=corpus, model=model, cache=cache)
    if result.outcome != "succeeded":
        raise StudyFailedError(f"{job.spec.name} (jobs/{job.hash[:16]}): {result.reason}: {result.message}")
    bar.n = start + job.steps
    bar.update(0)
    return _predictions(own, result.attempt)


def _predictions(store: Store, attempt: int) -> dict[str, list[Row]]:
    found = {}
    for key in store.list(f"attempts/{attempt}/predictions/"):
        modality = key.rsplit("/", 1)[-1].removesuffix(".jsonl")
        found[modality] = [json.loads(line) for line in store.get(key).decode().splitlines()]
    return found


def _spoken(by_modality: dict[str, list[Row]]) -> list[Row]:
    return by_modality.get(SPEECH) or by_modality[TEXT]


def _report_rows(expanded: Expanded, rows: dict[str, dict[str, list[Row]]]) -> list[ReportRow]:
    """The cells, and beside each its text twin where the transcripts were scored."""
    out = []
    for cell in expanded.cells:
        runs = {_seed(cell, run): _spoken(rows[run.hash]) for run in cell.runs}
        out.append(_row(cell, cell.name, _scheme(cell.runs[0]), runs))
    for cell in expanded.cells:
        twins = {_seed(cell, run): rows[run.hash][TEXT] for run in cell.runs if TEXT in rows[run.hash]}
        if twins and SPEECH in rows[cell.runs[0].hash]:
            out.append(_row(cell, f"{cell.name}, text twin", "text twin", twins, kind="control"))
    return out


def _seed(cell: Cell, run: Resolved) -> int | str:
    """The seed of a run; with several subsets, subset and seed."""
    subsets = {r.spec.data.subset_seed for r in cell.runs}
    return run.spec.seed if len(subsets) == 1 else f"{run.spec.data.subset_seed}/{run.spec.seed}"


def _scheme(run: Resolved) -> str:
    return run.spec.recipe.scheme if isinstance(run.spec.recipe, LimitedSpeech) else run.spec.recipe.name


def _row(cell: Cell, name: str, scheme: str, runs: dict, kind: Any = "cell") -> ReportRow:
    run = cell.runs[0]
    speech = run.sources.get("speech")
    return ReportRow(
        name=name,
        scheme=scheme,
        recordings=speech.rows if speech else 0,
        speech_fraction=round(speech.rows / speech.available, 4) if speech else 0.0,
        speech_presentations=round(presentations(run), 3),
        runs=runs,
        kind=kind,
    )


def _task(run: Resolved) -> Task:
    task = (run.spec.tasks or [None])[0]
    assert isinstance(task, Task), "resolve() writes tasks out"
    return task


def _control(control: str, expanded: Expanded, rows, read, model) -> list[ReportRow]:
    """The rows of one control; those that train see the same recordings as the cells do."""
    first = expanded.cells[0].runs[0]
    test = limited(read(first.spec).test.rows, first.spec.evaluate.limit)
    task = _task(first)
    recordings = Recordings(model.tokens.shape.sampling_rate, trim_silence=first.spec.data.trim_silence == "on")
    heard = [run for cell in expanded.cells for run in cell.runs if "speech" in run.sources]
    subsets = {run.sources["speech"].sha256: run for run in heard}
    if control == "majority":
        known = max(expanded.cells, key=lambda c: sum(p.rows for p in c.runs[0].sources.values())).runs[0]
        train = [u for name in known.sources for u in read(known.spec).sources[name].rows]
        return [_plain("majority", baselines.majority(train, test, task))]
    if control == "untuned":
        return [_plain("untuned", baselines.untuned(model, test, task, first.spec.evaluate.decode, recordings))]
    if control == "linear_probe":
        probes: dict[int, dict[int, Resolved]] = {}  # by number of recordings, then by which of them
        for run in subsets.values():
            probes.setdefault(run.sources["speech"].rows, {})[run.spec.data.subset_seed] = run
        features = baselines.pooled_features(model, recordings)
        out = []
        for count, runs in sorted(probes.items()):
            found: dict[Any, list[Row]] = {
                seed if len(runs) > 1 else None: baselines.linear_probe(
                    read(run.spec).sources["speech"].rows, test, task, features
                )
                for seed, run in runs.items()
            }
            pin = next(iter(runs.values())).sources["speech"]
            name, fraction = f"linear probe, {count} recordings", round(pin.rows / pin.available, 4)
            out.append(ReportRow(name, "linear_probe", count, fraction, 1.0, found, "control"))
        return out
    if control == "cascade":
        return [
            _row(cell, f"{cell.name}, cascade", CASCADE, found, kind="control")
            for cell in expanded.cells
            if (found := {_seed(cell, r): rows[r.hash][CASCADE] for r in cell.runs if CASCADE in rows[r.hash]})
        ]
    return []


def _plain(name: str, found: list[Row]) -> ReportRow:
    return ReportRow(name, name, 0, None, 0.0, {None: found}, "control")
