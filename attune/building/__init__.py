"""`attune build`: labelled texts become recordings with labels, by any speech synthesiser that is a command.

    attune build speech DATA --tts "espeak-ng -v {language} -w {wav} -f {text_file}" --out FOLDER
    attune build summaries news.csv --language ar --tts … --out FOLDER

Clips are kept beside the new folder until it is written, so a build that was ended goes on where it was.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attune.building.clips import SOURCE, kept
from attune.building.engine import Engine
from attune.building.pairs import PairOptions, read_pairs
from attune.building.spoken import Progress, Speech, speak, split_by_text
from attune.importing import ImportOptions, ImportReport, SourceError, write_found
from attune.importing.found import Found
from attune.importing.records import Record
from attune.importing.source import BadRow
from attune.importing.write import check_writable, dataset_at
from trainer.corpus import tasks_of
from trainer.manifest import Utterance, load

__all__ = ["Engine", "PairOptions", "Speech", "build_speech", "build_summaries", "check_new", "finish", "found_in"]


def build_summaries(
    source: str | Path,
    out: str | Path,
    ask: PairOptions,
    speech: Speech | None,
    *,
    licence: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ImportReport:
    """A data set of spoken documents with summaries: their speech is synthesised (`speech`) or exists (`ask.audio`).
    Returns the report, which is also in the folder. SourceError as of `import_dataset`."""
    source, out = Path(source), Path(out)
    if (speech is None) == (not ask.audio):
        raise SourceError("documents are either spoken by --tts or have recordings, --audio; give one of the two")
    check_new(out)
    with kept(out) as folder:
        work = folder / SOURCE
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        found = read_pairs(source, ask, work)
        if speech is not None or not any(record.speaker for record in found.records):
            split_by_text(found, seed)
        if speech is not None:
            speak(found, folder, speech, ask.language, progress)
        found.provenance |= {"texts": source.name, "licence of the texts": licence or "not stated"}
        return finish(found, source, out, language=ask.language, seed=seed)


def build_speech(
    data: str,
    out: str | Path,
    speech: Speech,
    *,
    licence: str | None = None,
    roots: Sequence[Path | str] = (".",),
    progress: Progress | None = None,
) -> ImportReport:
    """The rows of a data set, each with a synthetic recording of its text; ids, labels and splits stay."""
    out = Path(out)
    check_new(out)
    with kept(out) as folder:
        found = found_in(data, roots)
        speak(found, folder, speech, None, progress)
        found.provenance |= {"texts": data, "licence of the texts": licence or "not stated"}
        return finish(found, Path(data), out)


def check_new(out: Path) -> None:
    """SourceError where a data set lies at `out`, or none can be written there: said before hours of synthesis."""
    if (there := dataset_at(out)) is not None:
        raise SourceError(f"{out} holds a data set ({there[:12]}), and data sets are never changed; choose another")
    check_writable(out)


def found_in(data: str, roots: Sequence[Path | str] = (".",)) -> Found:
    """The rows of a data set of ours as they come from any other source."""
    rows, known = load(data, roots), tasks_of(data, roots)
    if len(names := sorted({row.task for row in rows})) > 1:
        raise SourceError(f"{data}: its rows are of the tasks {', '.join(names)}; build one task at a time")
    if names[0] not in known:
        raise SourceError(f"{data}: the task {names[0]!r} is not defined; put a task.yaml beside the manifest")
    found = Found("manifest", len(rows), [], [], [], known[names[0]])
    for number, row in enumerate(rows, 1):
        if row.text and row.text.strip():
            found.records.append(_record(number, row))
        else:
            found.bad.append(BadRow(number, "no text to speak"))
    if not found.records:
        raise SourceError(f"{data}: no row has a text to speak")
    if heard := sum(row.audio is not None for row in rows):
        found.notes.append(f"{heard} rows had a recording, which the synthetic one replaces")
    return found


def _record(number: int, row: Utterance) -> Record:
    meta: dict[str, Any] = dict(row.meta or {})
    return Record(
        number, id=row.id, text=row.text, label=row.label, split=row.split, language=row.language,
        question=row.question, choices=row.choices, meta=meta,
    )  # fmt: skip


def finish(
    found: Found,
    source: Path,
    out: Path,
    *,
    language: str | None = None,
    seed: int = 0,
    beside: Mapping[str, Path] | None = None,
) -> ImportReport:
    """Write the data set as an import does, with files `beside` its manifest."""
    found.beside = dict(beside or {})
    options = ImportOptions(language=language, seed=seed)
    return write_found(found, source, out, options, None, out.with_name(f".{out.name}-copied"))
