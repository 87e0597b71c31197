"""One study in one warm process: every distinct job once, the report.

The base is loaded once and the encoder's states are kept between jobs. Each job has its own folder under
`jobs/<hash>`, complete by itself, so an interrupted study goes on where it stopped.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from trainer import hearing
from trainer.bases import locate_base
from trainer.corpus import Corpus, Reader
from trainer.dev_curves import dev_report, sentences
from trainer.families import load as load_model
from trainer.feature_store import FeatureStore
from trainer.features import FeatureCache
from trainer.fields import problem
from trainer.metrics import named
from trainer.predictions import Row, read_predictions
from trainer.report_rows import report_rows, scored_cell
from trainer.resolve import Resolved
from trainer.result import Result, main_metric
from trainer.run import run
from trainer.spec import Task
from trainer.store import FolderStore, Store
from trainer.strategies import Baseline
from trainer.study import Cell, Expanded, StudySpec, expand
from trainer.task_reports import asked, of_task
from trainer.write_report import Report, write_report, write_tasks


class StudyFailedError(RuntimeError):
    """No report could be made; what is finished is kept, and the same command goes on from there."""


def run_study(
    study: StudySpec,
    out: Path | str,
    roots: Sequence[Path | str] = (".",),
    control: Callable[[], str] = lambda: "continue",
) -> Report:
    """Train and score all cells and baselines of `study` into the folder `out` and write its report.
    `control`: as of `trainer.run`; a study that it stops goes on when called again.

    A job that ends with a reason is left out of its cell and said in the notes; StudyFailedError where a whole
    cell is missing or no report can be made.
    """
    if str(out).startswith("s3://"):
        raise problem("--out", "a study writes to a folder; copy it to s3 afterwards", str(out))
    read = Reader(roots)
    expanded = expand(study, read)
    _one_base(expanded)
    store = FolderStore(Path(out))
    model = _base_of(expanded.cells[0].runs[0], store)
    expanded = _settle_encoder(expanded, read, model, store)
    first, jobs = expanded.cells[0].runs[0], expanded.jobs()
    rows: dict[str, dict[str, list[Row]]] = {}
    ended: dict[str, Result] = {}
    with tqdm(total=sum(job.steps for job in jobs.values()), unit="step", file=sys.stderr, dynamic_ncols=True) as bar:
        for n, (key, job) in enumerate(jobs.items(), 1):
            seed = "" if isinstance(job.spec.recipe, Baseline) else f" seed {job.spec.seed}"
            bar.set_description(f"[{n}/{len(jobs)}] {job.spec.name.split('/')[-1]}{seed}")
            try:
                rows[key] = _one(job, store, read(job.spec), model, bar, ended, control)
            finally:
                model.cache.flush()
    left_out = _left_out(expanded, {key: found for key, found in ended.items() if found.outcome != "succeeded"})
    for cell in [*expanded.cells, *expanded.baselines]:
        cell.runs = [run for run in cell.runs if rows[run.hash]]
    if missing := [cell.name for cell in expanded.cells if not cell.runs]:
        raise StudyFailedError("\n".join([f"no run of {', '.join(missing)} came to its end", *expanded.notes]))
    cells = [scored_cell(cell, rows) for cell in [*expanded.cells, *expanded.baselines] if cell.runs]
    curves = {c.name: {_seed(c, run): ended[run.hash].dev for run in c.runs} for c in expanded.cells}
    known = [task for task in first.spec.tasks or [] if isinstance(task, Task)]
    tasks, notes = asked(cells, known, main_metric(first))
    expanded.notes += notes
    if not tasks:
        raise StudyFailedError("\n".join(["no task of the test can be reported", *expanded.notes]))
    several, reports = len(tasks) > 1, {}
    for task, (metric, beside) in tasks.items():
        dev = dev_report(curves, task if several else None, higher_is_better=named(metric).higher_is_better)
        reports[task] = write_report(
            Path(out) / task if several else Path(out),
            report_rows(of_task(cells, task)),
            metric,
            study=f"{study.study}, {task}" if several else study.study,
            base=first.spec.base,
            beside=beside,
            notes=[*expanded.notes, *sentences(dev)],
            failed=left_out,
            dev=dev,
        )
    if several:
        return write_tasks(Path(out), reports, study.study, first.spec.base, expanded.notes)
    return next(iter(reports.values()))


def _left_out(expanded: Expanded, failed: dict[str, Result]) -> list[dict[str, Any]]:
    """The runs that came to no result, by cell and with the reason, for `report.json`; the notes say them too."""
    found = []
    for key, why in failed.items():
        job, folder = expanded.jobs()[key], f"jobs/{key[:16]}"
        seed = "" if isinstance(job.spec.recipe, Baseline) else f" seed {job.spec.seed}"
        said = f"{job.spec.name}{seed} is left out: {why.reason}: {why.message}"
        expanded.notes.append(f"{said} ({folder})")
        about = {"outcome": why.outcome, "reason": why.reason, "message": why.message, "job": folder}
        every = [*expanded.cells, *expanded.baselines]
        cells = [cell for cell in every if key in {member.hash for member in cell.runs}]
        found += [{"row": cell.name, "seed": _seed(cell, job), **about} for cell in cells]
    return found


def _seed(cell: Cell, run: Resolved) -> int | str:
    """The seed of a run; with several subsets, subset and seed."""
    subsets = {r.spec.data.subset_seed for r in cell.runs}
    return run.spec.seed if len(subsets) == 1 else f"{run.spec.data.subset_seed}/{run.spec.seed}"


def _one_base(expanded: Expanded) -> None:
    """SpecError where the cells cannot share one warm base, one test and one main metric."""
    runs = [run for cell in expanded.cells for run in cell.runs]
    for field, values in (
        ("base", {(r.spec.base, r.spec.revision) for r in runs}),
        ("precision", {r.spec.precision for r in runs}),
        ("evaluate.on", {r.test.sha256 for r in runs}),
        ("evaluate.metric", {main_metric(r) for r in runs}),
    ):
        if len(values) > 1:
            raise problem(field, "the cells of a study share one; make it two studies")
    if len(runs) > 1 and any(r.spec.tuning.method != "lora" for r in runs):
        message = "a study trains all its jobs on one loaded base, which only LoRA leaves as it was; run single jobs"
        other = next(r.spec.tuning.method for r in runs if r.spec.tuning.method != "lora")
        raise problem("tuning.method", message, other)


def _base_of(run: Resolved, store: Store):
    """The loaded base of all cells; what its encoder makes of recordings is kept in the study's store."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precise = run.spec.precision == "fp32" or (run.spec.precision == "auto" and device == "cpu")
    return load_model(
        locate_base(run.spec.base, run.spec.revision),
        device=device,
        dtype=torch.float32 if precise else torch.bfloat16,
        name=run.spec.base,
        cache=FeatureCache(FeatureStore(store, lambda event: tqdm.write(event["message"], file=sys.stderr))),
    )


def _settle_encoder(expanded: Expanded, read: Reader, model, store: Store) -> Expanded:
    """`encoder: auto` settled once for all cells, on the most recordings that any of them may use: cells whose
    encoders differ would not be comparable."""
    heard = [run for cell in expanded.cells for run in cell.runs if run.hearing is not None]
    tables = [expanded.study.grid, *expanded.study.also]
    if not heard or any(key.rpartition(".")[2] == "encoder" for table in tables for key in table):
        return expanded
    widest = max(heard, key=lambda run: (run.hearing.rows if run.hearing else 0, run.hash))
    assert widest.hearing is not None
    key = f"hearing/{widest.hearing.sha256[:16]}.json"
    if not store.exists(key):
        corpus = read(widest.spec)
        rows = corpus.sources[corpus.heard() or ""].rows
        found = hearing.check(model, rows, corpus.tasks[rows[0].task])
        store.put(key, (json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n").encode())
    found = json.loads(store.get(key))
    print(f"encoder: {found['encoder']}. {found['verdict']}", file=sys.stderr, flush=True)
    said = expanded.study.model_dump()
    said["tuning"] = {**said.get("tuning", {}), "encoder": found["encoder"]}
    settled = expand(StudySpec.model_validate(said), read)
    settled.notes.insert(0, f"encoder: {found['encoder']} in all cells. {found['verdict']}")
    return settled


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


def _one(
    job: Resolved,
    store: FolderStore,
    corpus: Corpus,
    model,
    bar: tqdm,
    ended: dict[str, Result],
    control: Callable[[], str],
) -> dict[str, list[Row]]:
    """Prediction rows of one job by modality, trained now or found finished, none where it failed; its result goes into
    `ended`."""
    own = FolderStore(store.root / "jobs" / job.hash[:16])
    start = bar.n
    result = run(job, own, _Progress(bar, start), control, corpus=corpus, model=model)
    if result.outcome == "yielded":
        at = f"step {result.steps} of {job.spec.name}"
        raise StudyFailedError(f"stopped at {at}; the same command goes on from there")
    bar.n = start + job.steps
    bar.update(0)
    ended[job.hash] = result
    if result.outcome != "succeeded":
        return {}
    return read_predictions(own, f"attempts/{result.attempt}")
