"""From the folder of a study, as far as it has come, to what is kept of it: rows, curves and verdicts."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import ROOT
from benchmarks.replications.findings import Curves, Evidence, judge, value
from trainer.checkpoint import read_log
from trainer.compare import interval
from trainer.corpus import Reader
from trainer.folder_store import FolderStore
from trainer.metrics import named
from trainer.predictions import Row, read_lines, read_predictions
from trainer.report import ReportRow
from trainer.report_rows import report_rows, scored_cell
from trainer.result import Result, main_metric
from trainer.study import Cell, StudySpec, expand

RESULTS = ROOT / "suites" / "replications" / "results"
CURVES = ("misalignment", "forgetting", "retrieval", "grad_norm")
"""Fields of the log that findings may be about."""
DRAWN = CURVES[:3]
POINTS = 30
"""Kept of every drawn curve, evenly over its steps."""


class Finished:
    """A job that came to its end."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder)
        self.result = Result.model_validate_json(self.store.get("final.json"))
        self.at = f"attempts/{self.result.attempt}"
        self.predictions = read_predictions(self.store, self.at)

    def guards(self) -> dict[str, tuple[list[Row], list[Row]]]:
        """Rows of the further test sets, by their task, before and after training."""
        found = {}
        for key in sorted(k for k in self.store.list(f"{self.at}/guards/") if k.endswith("-before.jsonl")):
            before = read_lines(self.store.get(key))
            after = read_lines(self.store.get(key.replace("-before.", "-after.")))
            found[before[0]["task"]] = (before, after)
        return found

    def curves(self) -> Curves:
        """Figures of the log by step."""
        logs = sorted(k for n in self.result.attempts for k in self.store.list(f"attempts/{n}/log/"))
        steps = {e["step"]: e for e in read_log(self.store, logs) if e["kind"] == "step"}
        return {
            name: found for name in CURVES if (found := [(s, e[name]) for s, e in sorted(steps.items()) if name in e])
        }


def collect(study: StudySpec, out: Path, findings: Path, roots: Sequence[Path] = (ROOT,)) -> dict[str, Any]:
    """What is stored of a study: as much of it as has been trained."""
    expanded = expand(study, Reader(roots))
    jobs = {key: out / "jobs" / key[:16] for key in expanded.jobs()}
    done = {key: Finished(folder) for key, folder in jobs.items() if (folder / "final.json").is_file()}
    first, cells = expanded.cells[0].runs[0], [*expanded.cells, *expanded.baselines]
    for cell in cells:
        cell.runs = [run for run in cell.runs if run.hash in done]
    cells = [cell for cell in cells if cell.runs]
    evidence = evidence_of(cells, done, main_metric(first))
    said = yaml.safe_load(findings.read_text(encoding="utf-8"))
    trained = [f for f in done.values() if f.result.tokens]
    return {
        "study": study.study,
        "base": first.spec.base,
        "jobs": {"done": len(done), "of": len(jobs)},
        "minutes": round(sum(f.result.wall_seconds for f in done.values()) / 60, 1),
        "code": sorted({str(f.result.lineage.code) for f in trained if f.result.lineage}),
        "cores": os.cpu_count(),
        "metric": evidence.metric,
        "rows": [_row(row, evidence.metric) for row in evidence.rows.values()],
        "curves": {name: _drawn(list(runs.values())) for name, runs in evidence.curves.items()},
        "findings": [_finding(f, evidence) for f in said["findings"]],
        "notes": expanded.notes,
    }


def evidence_of(cells: Sequence[Cell], done: Mapping[str, Finished], metric: str) -> Evidence:
    """Rows of the report, and of further test sets under `ROW on TASK`; curves by row and seed."""
    predictions = {key: finished.predictions for key, finished in done.items()}
    rows = {row.name: row for row in report_rows([scored_cell(cell, predictions) for cell in cells])}
    curves: dict[str, Mapping[Any, Curves]] = {}
    for cell in cells:
        runs = {run.spec.seed: done[run.hash] for run in cell.runs}
        found = {seed: finished.curves() for seed, finished in runs.items()}
        if any(found.values()):
            curves[cell.name] = found
        guards = {seed: finished.guards() for seed, finished in runs.items()}
        for task in next(iter(guards.values())):
            after, before = {seed: g[task][1] for seed, g in guards.items()}, next(iter(guards.values()))[task][0]
            like = rows[cell.name]
            rows[f"{cell.name} on {task}"] = replace(like, name=f"{cell.name} on {task}", runs=after)
            untuned = replace(
                like, name=f"untuned on {task}", scheme="untuned", kind="control", runs={None: before},
                recordings=0, speech_presentations=0.0, subsets={},
            )  # fmt: skip
            rows.setdefault(untuned.name, untuned)
    return Evidence(metric, rows, curves)


def _row(row: ReportRow, metric: str) -> dict[str, Any]:
    """A row's value by the study's metric (a further test set's by the first of its own where it has not that one)."""
    have = row.cell()[0][0]["counts"]
    meter = named(metric if metric in have else next(iter(have)))
    pooled = interval(row.cell(), meter, subsets=row.drawn())
    each = [value(run, meter) for run in row.cell()]
    at = [round(v, 4) for v in (pooled.value, pooled.ci_low, pooled.ci_high)]
    return {
        "row": row.name, "kind": row.kind, "scheme": row.scheme, "settings": dict(row.settings),
        "recordings": row.recordings, "presentations": row.speech_presentations, "seeds": len(row.runs),
        "metric": meter.name, "value": at[0], "ci": at[1:], "each": [round(v, 4) for v in each],
        "n": pooled.n, "blocks": pooled.blocks, "method": pooled.method,
    }  # fmt: skip


def _drawn(runs: Sequence[Curves]) -> dict[str, list[list[float]]]:
    """[step, mean over the runs] of what is drawn."""
    found = {}
    for name in (n for n in DRAWN if all(n in run for run in runs)):
        each = [dict(run[name]) for run in runs]
        steps = sorted(set.intersection(*map(set, each)))
        kept = steps[:: -(-len(steps) // POINTS)]
        found[name] = [[s, round(sum(points[s] for points in each) / len(each), 5)] for s in kept]
    return found


def _finding(finding: Mapping[str, Any], evidence: Evidence) -> dict[str, Any]:
    verdict, checks = judge(finding, evidence)
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in c._asdict().items()} for c in checks
    ]  # fmt: skip
    kept = {k: v for k, v in finding.items() if k != "checks"}
    return {**kept, "verdict": verdict, "checks": rounded}


def store(paper: str, document: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes FOLDER/PAPER.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{paper}.json"
    lines = (f"{json.dumps(key)}: {_lines(value)}" for key, value in document.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


def _lines(value: Any) -> str:
    """JSON with one element of a list or an object a line: short, and its changes can be read."""
    dump = partial(json.dumps, ensure_ascii=False)
    if not value or not isinstance(value, dict | list):
        return dump(value)
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f" {dump(k)}: {dump(v)}" for k, v in value.items()) + "\n}"
    return "[\n" + ",\n".join(f" {dump(v)}" for v in value) + "\n]"
