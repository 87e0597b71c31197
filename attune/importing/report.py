"""The report of an import: what was read, assumed, left out and written."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from attune.importing.source import BadRow
from trainer.manifest import Utterance, fingerprint
from trainer.spec import Task
from trainer.validate import Issue


@dataclass
class ImportReport:
    """What became of a source. `bad` lists the rows left out, by line."""

    id: str
    """sha256 of the canonical manifest."""
    source: str
    format: str
    columns: dict[str, str]
    """Role → column, inferred or said."""
    notes: list[str]
    suggestions: list[str]
    rows_read: int
    rows: int
    bad: list[BadRow]
    left_out: dict[str, int]
    """How many of them by reason, where a reason has several; what is quoted in it differs from row to row."""
    by_split: dict[str, int]
    speakers_by_split: dict[str, int]
    recordings: int
    seconds: float
    """Audio, seconds."""
    task: str = ""
    validation: dict[str, Any] = field(default_factory=dict)
    """Report of `trainer.validate` on the written rows, lines of the source."""
    provenance: dict[str, str] = field(default_factory=dict)
    """Where texts and recordings come from and under which licence, where more is known than the source."""
    written: bool = True
    """False if this very data set was there already."""

    @classmethod
    def of(
        cls,
        source: str,
        format: str,
        columns: Mapping[str, str],
        notes: Sequence[str],
        suggestions: Sequence[str],
        rows_read: int,
        bad: list[BadRow],
        rows: Sequence[Utterance],
    ) -> "ImportReport":
        """Counts over the rows as they are written."""
        splits = Counter(row.split for row in rows)
        speakers = {s: len({r.speaker for r in rows if r.split == s and r.speaker}) for s in splits}
        return cls(
            id=fingerprint(rows),
            source=source,
            format=format,
            columns=dict(columns),
            notes=list(notes),
            suggestions=list(suggestions),
            rows_read=rows_read,
            rows=len(rows),
            bad=bad,
            left_out={reason: n for reason, n in Counter(_kind(row.reason) for row in bad).most_common() if n > 1},
            by_split=dict(sorted(splits.items())),
            speakers_by_split=dict(sorted(speakers.items())),
            recordings=sum(row.audio is not None for row in rows),
            seconds=round(sum(row.duration_s or 0.0 for row in rows if row.audio), 3),
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; `written` is not part of it."""
        values = asdict(self)
        del values["written"]
        return values

    def lines(self, most_bad: int = 20) -> list[str]:
        """The report for a terminal: counts, columns, notes, rows left out, remarks on the rows kept."""
        said = [f"{self.rows} of {self.rows_read} rows from {self.source} ({self.format}), {len(self.bad)} left out"]
        said += [f"  {role}: column {column!r}" for role, column in self.columns.items()]
        for split, rows in self.by_split.items():
            said.append(f"  {split}: {rows} rows, {self.speakers_by_split[split] or 'unknown'} speakers")
        said.append(f"  {self.recordings} recordings, {self.seconds / 60:.1f} minutes; task {self.task}")
        said += [f"  note: {note}" for note in self.notes]
        said += [f"  suggestion: {suggestion}" for suggestion in self.suggestions]
        said += [f"  left out: {count} × {reason}" for reason, count in self.left_out.items()]
        said += [f"  left out: {row}" for row in self.bad[:most_bad]]
        if len(self.bad) > most_bad:
            said.append(f"  … and {len(self.bad) - most_bad} more, in report.json")
        issues = self.validation.get("issues", [])
        said += [f"  {Issue(**issue)}" for issue in issues[:most_bad]]
        if len(issues) > most_bad:
            said.append(f"  … and {len(issues) - most_bad} more such remarks, in report.json")
        said.append(f"  data set {self.id[:12]}{'' if self.written else ' was there already; nothing was written'}")
        return said


def _kind(reason: str) -> str:
    """A reason without what differs from row to row."""
    return re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"", "…", reason)


def readme(report: ImportReport, task: Task, name: str) -> str:
    """README.md of the data set."""
    table = "\n".join(f"| {split} | {n} | {report.speakers_by_split[split]} |" for split, n in report.by_split.items())
    notes = "\n".join(f"- {note}" for note in [*report.notes, *report.suggestions]) or "- none"
    known = [f"- {what}: {said}" for what, said in report.provenance.items()]
    provenance = "\n".join(["", "## Provenance", "", *known, ""]) if known else ""
    return f"""# {name}

Imported from `{report.source}` ({report.format}): {report.rows} of {report.rows_read} rows, {report.recordings}
recordings, {report.seconds / 60:.1f} minutes. Task `{task.name}`, answer form `{task.answer}`.

| split | rows | speakers |
| --- | --- | --- |
{table}

Id `{report.id}` is the sha256 of `manifest.jsonl`. The folder is never changed: import again to change it. The rows
that were left out are in `report.json`; `task.yaml` may be copied into a spec and edited there.

{notes}
{provenance}"""
