"""From the folder of a study, as far as it has come, to what is kept of it: rows, curves and verdicts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import ROOT
from benchmarks.replications.findings import Curves, Evidence, judge, least
from trainer.checkpoint import read_log
from trainer.compare import interval
from trainer.corpus import Reader
from trainer.folder_store import FolderStore
from trainer.metrics import named
from trainer.predictions import Row, read_lines, read_predictions
from trainer.report import ReportRow
from trainer.report_rows import report_rows, scored_cell
from trainer.resolve import Resolved
from trainer.result import Result
from trainer.study import Cell, StudySpec, expand

RESULTS = ROOT / "suites" / "replications" / "results"
CURVES = ("misalignment", "forgetting", "retrieval", "alignment", "grad_norm")
"""Fields of the log that are kept, where a study has them."""
POINTS = 40
"""Kept of every curve, evenly over its steps."""


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


def collect(study: StudySpec, out: Path, findings: Path) -> dict[str, Any]:
    """What is stored of a study: as much of it as has been trained."""
    expanded = expand(study, Reader([ROOT]))
    jobs = {key: out / "jobs" / key[:16] for key in expanded.jobs()}
    done = {key: Finished(folder) for key, folder in jobs.items() if (folder / "final.json").is_file()}
    cells = [cell for cell in [*expanded.cells, *expanded.baselines]]
    for cell in cells:
        cell.runs = [run for run in cell.runs if run.hash in done]
    cells = [cell for cell in cells if cell.runs]
    evidence = evidence_of(cells, done)
    said = yaml.safe_load(findings.read_text(encoding="utf-8"))
    trained = [f for f in done.values() if f.result.tokens]
    return {
        "study": study.study,
        "base": expanded.cells[0].runs[0].spec.base if expanded.cells[0].runs else "",
        "jobs": {"done": len(done), "of": len(jobs)},
        "minutes": round(sum(f.result.wall_seconds for f in done.values()) / 60, 1),
        "code": sorted({str(f.result.lineage.code) for f in trained if f.result.lineage}),
        "cores": os.cpu_count(),
        "metric": evidence.metric,
        "rows": [_row(row, evidence.metric) for row in evidence.rows.values()],
        "curves": {n: {str(s): _thinned(c) for s, c in runs.items()} for n, runs in evidence.curves.items()},
        "findings": [_finding(f, evidence) for f in said["findings"]],
        "notes": expanded.notes,
    }


def evidence_of(cells: list[Cell], done: Mapping[str, Finished]) -> Evidence:
    """Rows of the report, and of further test sets under `ROW on TASK`; curves by row and seed."""
    rows = {row.name: row for row in report_rows([scored_cell(c, {k: f.predictions for k, f in done.items()}) for c in cells])}
    curves: dict[str, dict[Any, Curves]] = {}
    for cell in cells:
        runs = {run.spec.seed: done[run.hash] for run in cell.runs}
        if not runs or cell.name not in rows:
            continue
        curves[cell.name] = {seed: found for seed, f in runs.items() if (found := f.curves())}
        guards = {seed: f.guards() for seed, f in runs.items()}
        for task in next(iter(guards.values())):
            like = rows[cell.name]
            rows[f"{cell.name} on {task}"] = _other(like, f"{cell.name} on {task}", {s: g[task][1] for s, g in guards.items()})
            before = next(iter(guards.values()))[task][0]
            rows.setdefault(f"untuned on {task}", _other(like, f"untuned on {task}", {None: before}, kind="control"))
    metric = _metric(cells[0].runs[0]) if cells else "accuracy"
    return Evidence(metric, rows, {name: runs for name, runs in curves.items() if runs})


def _metric(run: Resolved) -> str:
    return run.spec.evaluate.metric


def _other(like: ReportRow, name: str, runs: Mapping[Any, list[Row]], kind="cell") -> ReportRow:
    return ReportRow(
        name, "untuned" if kind == "control" else like.scheme, 0 if kind == "control" else like.recordings,
        like.speech_fraction, like.speech_presentations, runs, kind, like.settings,
    )  # fmt: skip


def _row(row: ReportRow, metric: str) -> dict[str, Any]:
    """A row's value by the study's metric (a further test set's by the first of its own where it has not that one)."""
    have = row.cell()[0][0]["counts"]
    meter = named(metric if metric in have else next(iter(have)))
    pooled = interval(row.cell(), meter, subsets=row.drawn())
    each = [float(meter.values(_summed(run, meter.name))) for run in row.cell()]
    return {
        "row": row.name, "kind": row.kind, "scheme": row.scheme, "settings": dict(row.settings),
        "recordings": row.recordings, "presentations": row.speech_presentations, "seeds": len(row.runs),
        "metric": meter.name, "value": round(pooled.value, 4), "ci": [round(pooled.ci_low, 4), round(pooled.ci_high, 4)],
        "each": [round(v, 4) for v in each], "n": pooled.n, "blocks": pooled.blocks, "method": pooled.method,
    }  # fmt: skip


def _summed(run, metric: str):
    import numpy as np

    return np.array([r["counts"][metric] for r in run], dtype=float).sum(0)


def _thinned(curves: Curves) -> dict[str, list[list[float]]]:
    return {
        name: [[s, round(v, 5)] for s, v in points[:: max(1, -(-len(points) // POINTS))] + points[-1:]]
        for name, points in curves.items()
    }


def _finding(finding: Mapping[str, Any], evidence: Evidence) -> dict[str, Any]:
    verdict, checks = judge(finding, evidence)
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in c._asdict().items()} for c in checks
    ]  # fmt: skip
    kept = {k: v for k, v in finding.items() if k != "checks"}
    return {**kept, "verdict": verdict, "checks": rounded}


def store(paper: str, document: Mapping[str, Any]) -> Path:
    """Writes suites/replications/results/PAPER.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{paper}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
