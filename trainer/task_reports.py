"""A study whose test has several tasks: a report for each, and over them the mean of the cells' ranks (light).

Metrics of different tasks do not mix, ranks do: arXiv 2601.12494 speaks of an overall balance without saying how it is
taken, so this is inferred. A mean rank describes; whether two cells differ is for the reports of the tasks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from trainer.metrics import named
from trainer.report_rows import ScoredCell
from trainer.report_text import number
from trainer.spec import Task


class Asked(NamedTuple):
    """How a task of the test is reported."""

    metric: str
    beside: list[str]
    """Further metrics, without interval."""


def asked(cells: Sequence[ScoredCell], tasks: Sequence[Task], metric: str) -> tuple[dict[str, Asked], list[str]]:
    """The tasks that were tested, in the order of `tasks`: one with the study's `metric`, of several each with its own
    first; and a sentence for each of several that has too few utterances to report."""
    rows = (row for cell in cells for run in cell.runs for own in run.predictions.values() for row in own)
    counts = Counter(task for task, _ in {(row["task"], row["utterance"]) for row in rows})
    found = [task for task in tasks if task.name in counts]
    several = len(found) > 1
    notes = [
        f"{task.name}: {counts[task.name]} utterance was tested, and a report takes two"
        for task in found
        if several and counts[task.name] < 2
    ]
    made = {}
    for task in (t for t in found if not several or counts[t.name] > 1):
        own = task.metrics[0] if several else metric
        made[task.name] = Asked(own, [m for m in task.metrics if m not in (own, "invalid_rate")][:3])
    return made, notes


def of_task(cells: Sequence[ScoredCell], task: str) -> list[ScoredCell]:
    """The cells with what they answered to one task, without those that answered nothing to it: there is no majority of
    open answers, for one."""
    found = []
    for cell in cells:
        runs = []
        for run in cell.runs:
            own = {name: [row for row in rows if row["task"] == task] for name, rows in run.predictions.items()}
            if kept := {name: rows for name, rows in own.items() if rows}:
                runs.append(replace(run, predictions=kept))
        if runs:
            found.append(replace(cell, runs=runs))
    return found


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
