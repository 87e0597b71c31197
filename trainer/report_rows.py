"""A study's cells as rows of its report (light): the trainer's own report and the service's table are made of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.predictions import CASCADE, SPEECH, TEXT, Row
from trainer.report import ReportRow
from trainer.resolve import Resolved
from trainer.strategies import LimitedSpeech
from trainer.study import Cell, presentations


@dataclass(frozen=True)
class Run:
    """One scored run of a cell."""

    seed: int
    subset_seed: int
    predictions: Mapping[str, list[Row]]
    """By modality."""


@dataclass(frozen=True)
class ScoredCell:
    """A cell with those of its runs that have been scored; what it is as of `describe`."""

    name: str
    scheme: str
    settings: Mapping[str, Any]
    recordings: int
    speech_fraction: float
    speech_presentations: float
    runs: Sequence[Run]

    def seeds(self) -> list[int | str]:
        """The name of each run: its seed; with several subsets of the recordings, subset and seed."""
        several = len({run.subset_seed for run in self.runs}) > 1
        return [f"{run.subset_seed}/{run.seed}" if several else run.seed for run in self.runs]


def describe(cell: Cell) -> dict[str, Any]:
    """What a report says of a cell before anything is known of its runs, as plain data."""
    run = cell.runs[0]
    speech = run.sources.get("speech")
    return {
        "name": cell.name,
        "scheme": scheme_of(run),
        "settings": cell.settings,
        "recordings": speech.rows if speech else 0,
        "speech_fraction": round(speech.rows / speech.available, 4) if speech else 0.0,
        "speech_presentations": round(presentations(run), 3),
    }


def scheme_of(run: Resolved) -> str:
    """What a run's recipe is called in a report."""
    return run.spec.recipe.scheme if isinstance(run.spec.recipe, LimitedSpeech) else run.spec.recipe.name


def report_rows(cells: Sequence[ScoredCell]) -> list[ReportRow]:
    """The cells, and beside each its text twin where the transcripts were scored, and its cascade."""
    out = [_row(cell, cell.name, cell.scheme, [_spoken(run) for run in cell.runs]) for cell in cells]
    for cell in cells:
        if SPEECH in cell.runs[0].predictions:
            out += _beside(cell, TEXT, "text twin")
        out += _beside(cell, CASCADE, CASCADE)
    return out


def control_row(name: str, found: list[Row]) -> ReportRow:
    """A control that was trained on nothing and has no seed."""
    return ReportRow(name, name, 0, None, 0.0, {None: found}, "control")


def _spoken(run: Run) -> list[Row]:
    return run.predictions.get(SPEECH) or run.predictions[TEXT]


def _beside(cell: ScoredCell, modality: str, scheme: str) -> list[ReportRow]:
    found = [run.predictions.get(modality) for run in cell.runs]
    if all(rows is None for rows in found):
        return []
    return [_row(cell, f"{cell.name}, {scheme}", scheme, found, "control")]


def _row(
    cell: ScoredCell, name: str, scheme: str, found: Sequence[list[Row] | None],
    kind: Literal["cell", "control"] = "cell",
) -> ReportRow:  # fmt: skip
    seeds = cell.seeds()
    return ReportRow(
        name=name,
        scheme=scheme,
        recordings=cell.recordings,
        speech_fraction=cell.speech_fraction,
        speech_presentations=cell.speech_presentations,
        runs={seed: rows for seed, rows in zip(seeds, found, strict=True) if rows is not None},
        kind=kind,
        settings=cell.settings,
        subsets={seed: run.subset_seed for seed, run in zip(seeds, cell.runs, strict=True)},
    )
