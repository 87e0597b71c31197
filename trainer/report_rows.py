"""A study's cells as rows of its report (light): the trainer's own report and the service's table are made of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.predictions import CASCADE, SPEECH, TEXT, Row
from trainer.report import SHOTS, ReportRow
from trainer.resolve import Resolved
from trainer.strategies import Baseline, LimitedSpeech, Majority
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
    kind: Literal["cell", "control"]
    runs: Sequence[Run]
    source_recordings: int = 0
    languages: Sequence[str] = ()

    def seeds(self) -> list[int | str]:
        """The name of each run: its seed; with several subsets of the recordings, subset and seed."""
        several = len({run.subset_seed for run in self.runs}) > 1
        return [f"{run.subset_seed}/{run.seed}" if several else run.seed for run in self.runs]


def describe(cell: Cell) -> dict[str, Any]:
    """What a report says of a cell before anything is known of its runs, as plain data."""
    run = cell.runs[0]
    recipe, speech = run.spec.recipe, run.sources.get("speech")
    baseline = isinstance(recipe, Baseline)
    if isinstance(recipe, Majority):  # it hears nothing of what it counts
        speech = None
    return {
        "name": cell.name,
        "scheme": recipe.scheme if isinstance(recipe, LimitedSpeech) else recipe.name,
        "settings": cell.settings,
        "recordings": speech.rows if speech else 0,
        "speech_fraction": round(speech.rows / speech.available, 4) if speech else None if baseline else 0.0,
        "speech_presentations": round(presentations(run), 3) if not baseline else 1.0 if speech else 0.0,
        "kind": "control" if baseline else "cell",
        "source_recordings": run.sources["source_speech"].rows if "source_speech" in run.sources else 0,
        "languages": _languages(run),
    }


def _languages(run: Resolved) -> list[str]:
    """The languages that a job is trained on, of its data and of its source."""
    lent = {name for name in run.sources if name.startswith("source_")}
    own = [run.spec.language] if set(run.sources) - lent else []
    return [*own, *(run.spec.source.languages if run.spec.source and lent else [])]


def scored_cell(cell: Cell, predictions: Mapping[str, Mapping[str, list[Row]]]) -> ScoredCell:
    """The cell with what its runs answered, by hash."""
    runs = [Run(run.spec.seed, run.spec.data.subset_seed, predictions[run.hash]) for run in cell.runs]
    return ScoredCell(**describe(cell), runs=runs)


def report_rows(cells: Sequence[ScoredCell]) -> list[ReportRow]:
    """The cells; then those under the further conditions of their test, by number of demonstrations; beside each cell
    its text twin where the transcripts were scored, and its cascade; then the baselines, likewise."""
    trained = [cell for cell in cells if cell.kind == "cell"]
    out = [_row(cell, cell.name, cell.scheme, [_spoken(run) for run in cell.runs]) for cell in trained]
    for cell in trained:
        for apart in _further(cell):
            found = [_spoken(run, apart) for run in cell.runs]
            out.append(_row(cell, f"{cell.name}, {apart.replace('.', ', ')}", cell.scheme, found, apart=apart))
    for cell in trained:
        if SPEECH in cell.runs[0].predictions:
            out += _beside(cell, TEXT, "text twin")
        out += _beside(cell, CASCADE, CASCADE)
    controls = [cell for cell in cells if cell.kind == "control"]
    return out + [_baseline(cell, apart) for cell in controls for apart in ("", *_further(cell))]


def _further(cell: ScoredCell) -> list[str]:
    """What tells the further conditions of a cell's test from the main one, by number of demonstrations."""
    found = {name.partition(".")[2]: rows[0] for run in cell.runs for name, rows in run.predictions.items() if rows}
    return sorted((apart for apart in found if apart), key=lambda apart: (found[apart].get("shots") or 0, apart))


def _baseline(cell: ScoredCell, apart: str) -> ReportRow:
    """A baseline has no training seed: its runs differ in the recordings that it learnt from, if at all."""
    several = len(cell.runs) > 1
    return ReportRow(
        name=f"{cell.name}, {apart.replace('.', ', ')}" if apart else cell.name,
        scheme=cell.scheme,
        recordings=cell.recordings,
        speech_fraction=cell.speech_fraction,
        speech_presentations=cell.speech_presentations,
        runs={run.subset_seed if several else None: _spoken(run, apart) for run in cell.runs},
        kind="control",
        apart=apart,
        of=cell.name,
        source_recordings=cell.source_recordings,
        languages=tuple(cell.languages),
    )


def _spoken(run: Run, apart: str = "") -> list[Row]:
    """What was answered to recordings, else to transcripts, under the condition that `apart` tells."""
    names = [f"{modality}.{apart}" if apart else modality for modality in (SPEECH, TEXT)]
    known = [run.predictions[name] for name in names if name in run.predictions]
    return next((found for found in known if found), known[0])


def _beside(cell: ScoredCell, modality: str, scheme: str) -> list[ReportRow]:
    found = [run.predictions.get(modality) for run in cell.runs]
    if all(rows is None for rows in found):
        return []
    return [_row(cell, f"{cell.name}, {scheme}", scheme, found, "control")]


def _row(
    cell: ScoredCell, name: str, scheme: str, found: Sequence[list[Row] | None],
    kind: Literal["cell", "control"] = "cell", apart: str = "",
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
        settings={**cell.settings, **_condition(cell, found)},
        apart=apart,
        of=cell.name if apart else name,
        subsets={seed: run.subset_seed for seed, run in zip(seeds, cell.runs, strict=True)},
        source_recordings=cell.source_recordings,
        languages=tuple(cell.languages),
    )


def _condition(cell: ScoredCell, found: Sequence[list[Row] | None]) -> dict[str, Any]:
    """How the test was put, as settings that tell rows of the report apart, where rows of the cell say so. Without
    demonstrations nothing is looked up, which is no setting of its own."""
    every = [rows[0] for rows in cell.runs[0].predictions.values() if rows]
    first = next((rows[0] for rows in found if rows), {})
    looked_up = next((row["query_text"] for row in every if "query_text" in row), None)
    told = {SHOTS: first.get("shots"), "query text": first.get("query_text", looked_up)}
    if any("labels" in row for row in every):
        told["tested labels"] = first.get("labels", "regular")
    return {key: value for key, value in told.items() if value is not None}
