"""A study whose test has several tasks: a report for each, and over them the mean of the cells' ranks (light).

Metrics of different tasks do not mix, ranks do: arXiv 2601.12494 speaks of an overall balance without saying how it is
taken, so this is inferred. A mean rank describes; whether two cells differ is for the reports of the tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.metrics import named
from trainer.predictions import Row
from trainer.report_text import number

ByModality = Mapping[str, Sequence[Row]]


def of_task(found: ByModality, task: str) -> dict[str, list[Row]]:
    """The prediction rows of one task, by modality."""
    return {modality: [row for row in rows if row["task"] == task] for modality, rows in found.items()}


def ranks(values: Mapping[str, float], *, higher_is_better: bool) -> dict[str, float]:
    """Rank of each value from 1, the best; equal ones share the mean of their ranks."""
    sign = -1 if higher_is_better else 1
    return {
        name: 1 + sum(sign * v < sign * own for v in values.values()) + (list(values.values()).count(own) - 1) / 2
        for name, own in values.items()
    }


def over_tasks(
    documents: Mapping[str, Mapping[str, Any]], study: str, base: str, notes: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """`report.json` and `report.txt` over what `report.json` says of each task, which lies in a folder of its name."""
    table: dict[str, dict[str, Any]] = {}
    for task, said in documents.items():
        values = {row["row"]: row["value"] for row in said["pooled"] if row["kind"] == "cell"}
        values = {name: value for name, value in values.items() if value is not None}
        placed = ranks(values, higher_is_better=named(said["metric"]).higher_is_better)
        for name, value in values.items():
            table.setdefault(name, {})[task] = {"metric": said["metric"], "value": value, "rank": placed[name]}
    rows = [
        {"row": name, "mean_rank": sum(t["rank"] for t in by_task.values()) / len(by_task), "tasks": by_task}
        for name, by_task in table.items()
    ]
    rows.sort(key=lambda row: row["mean_rank"])
    document = {
        "study": study, "base": base, "tasks": {task: f"{task}/report.json" for task in documents}, "rows": rows,
        "notes": list(notes),
    }  # fmt: skip
    text = "\n".join([f"{study}: {len(documents)} tasks, base {base}; each task's own report is in its folder", "",
                      *_table(rows, list(documents)), "", *notes]) + "\n"  # fmt: skip
    return document, text


def _table(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    """Rows by mean rank; for each task its value and, in brackets, the rank."""
    lines = [["row", "mean rank", *tasks]]
    for row in rows:
        cells = [row["tasks"].get(task) for task in tasks]
        said = [f"{number(c['value'])} [{c['rank']:g}]" if c else "–" for c in cells]
        lines.append([row["row"].replace("_", " "), f"{row['mean_rank']:.2f}", *said])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
