"""A study's report as files: `report.json`, `report.txt`, `learning_curve.png`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.learning_curve import draw
from trainer.report import ReportRow, document, score_rows
from trainer.report_text import whole
from trainer.task_reports import over_tasks


@dataclass(frozen=True)
class Report:
    """What `write_report` made."""

    text: str
    """Heading, table, findings and notes, as printed."""
    document: dict[str, Any]
    """The content of `report.json`."""
    files: tuple[Path, ...]


def write_report(
    out_dir: Path | str,
    rows: Sequence[ReportRow],
    metric: str,
    *,
    study: str,
    base: str,
    reference: str | None = None,
    beside: Sequence[str] = (),
    notes: Sequence[str] = (),
    failed: Sequence[Mapping[str, Any]] = (),
    dev: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
    paired_seeds: bool = False,
) -> Report:
    """Writes `report.json`, `report.txt` and `learning_curve.png` into `out_dir` and returns what they say.

    beside: further metrics, shown without interval. notes: sentences for the end, such as what `hold` could not hold.
    failed: the runs that rows are without, as `report.json` shall list them; dev: what it shall say of the dev set
    (`trainer.dev_curves`). The other parameters, and errors, as of `score_rows`.
    """
    scored = score_rows(rows, metric, reference=reference, confidence=confidence, paired_seeds=paired_seeds)
    said = {**document(scored, study, base, notes), "failed": [dict(run) for run in failed], "dev": dict(dev or {})}
    text = whole(scored, said, beside)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    files = (out / "report.json", out / "report.txt", out / "learning_curve.png")
    files[0].write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files[1].write_text(text, encoding="utf-8")
    draw(said, files[2])
    return Report(text, said, files)


def write_tasks(out: Path, reports: Mapping[str, Report], study: str, base: str, notes: Sequence[str]) -> Report:
    """`report.json` and `report.txt` over the reports of each task, which lie in folders of its name."""
    document, text = over_tasks({task: report.document for task, report in reports.items()}, study, base, notes)
    files = (out / "report.json", out / "report.txt")
    files[0].write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files[1].write_text(text, encoding="utf-8")
    return Report(text, document, (*files, *(file for report in reports.values() for file in report.files)))
