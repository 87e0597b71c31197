"""`attune words`: times of words from a forced aligner or recogniser, laid beside a data set's rows as a new data set.

    CTM       recording channel start duration word [confidence], a word a line (NIST sclite)
    TextGrid  a file per recording, long or short form, words in a tier named words (Praat; Montreal Forced Aligner)

A name is that of an utterance, whose times count from its own start, or of a recording, whose times count from the
recording's; each utterance in it takes the words whose middle it holds.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attune.importing.report import ImportReport, readme
from attune.importing.source import SourceError
from attune.importing.write import check_writable, dataset_at, name_audio, write_dataset
from trainer.corpus import tasks_of
from trainer.manifest import Utterance, load
from trainer.validate import validate
from trainer.words import Word, faulty, places

SILENT = {"sil", "sp", "spn"}
"""Marks of silence and noise in TextGrids; words where a transcript says them."""
_TOKEN = re.compile(r'"(?:[^"]|"")*"|<\w+>|(?<![\w\[.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w\]])')


def read_ctm(path: Path) -> dict[str, list[Word]]:
    """Words by the name in the first column, in order of time. SourceError names the line."""
    found: dict[str, list[Word]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        cells = line.split()
        if not cells or line.startswith(";;"):
            continue
        try:
            start, seconds, word = float(cells[2]), float(cells[3]), cells[4]
            if not math.isfinite(start + seconds):
                raise ValueError("no time")
        except (IndexError, ValueError):
            raise SourceError(
                f"{path}:{number}: must be: recording channel start duration word (given: {line.strip()[:80]!r})"
            ) from None
        found.setdefault(cells[0], []).append(_word(word, start, start + seconds))
    return {name: sorted(words, key=_time) for name, words in found.items()}


def read_textgrids(folder: Path) -> dict[str, list[Word]]:
    """Words by the file's name without its ending, in order of time. SourceError names the file."""
    files = sorted(folder.rglob("*.TextGrid"))
    if not files:
        raise SourceError(f"{folder}: no .TextGrid in it")
    by_name = {path.stem: path for path in files}
    if twice := next((path for path in files if by_name[path.stem] is not path), None):
        remedy = "recordings find their times by the file's name; give each its own"
        raise SourceError(f"{twice} and {by_name[twice.stem]}: {remedy}")
    return {name: sorted(_words_of(path), key=_time) for name, path in by_name.items()}


def _words_of(path: Path) -> list[Word]:
    tiers = list(_tiers(path))
    named = [t for t in tiers if re.fullmatch(r"(.*- )?words?", t[0].strip(), re.IGNORECASE)]
    if not named and len(tiers) > 1:
        said = ", ".join(repr(name) for name, _ in tiers)
        raise SourceError(f"{path}: which tier has the words? none of {said} is named words; rename it")
    return [word for _, words in named or tiers for word in words]


def _tiers(path: Path) -> Iterator[tuple[str, list[Word]]]:
    """Names and intervals of the interval tiers. The long form writes the short one's values behind labels."""
    values = _TOKEN.findall(_text(path))
    try:
        if "textgrid" not in values[1].lower():
            raise ValueError("not a TextGrid")
        at = values.index("<exists>") + 2
        for _ in range(int(values[at - 1])):
            kind, name, many = _unquoted(values[at]), _unquoted(values[at + 1]), int(values[at + 4])
            at += 5
            width = 3 if kind == "IntervalTier" else 2
            rows = [values[at + n * width : at + (n + 1) * width] for n in range(many)]
            at += many * width
            if kind == "IntervalTier":
                yield name, [_word(_unquoted(text), float(start), float(end)) for start, end, text in rows]
    except (IndexError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a TextGrid ({error}); save it from Praat as text") from None


def _unquoted(value: str) -> str:
    return value[1:-1].replace('""', '"')


def _word(text: str, start: float, end: float) -> Word:
    return {"text": text.strip(), "start": round(start, 6), "end": round(end, 6)}


def _time(word: Word) -> tuple[float, float]:
    return word["start"], word["end"]


def _text(path: Path) -> str:
    """Praat writes UTF-16 where a file has letters beyond ASCII."""
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read ({error})") from None


def timed(row: Utterance, found: Mapping[str, Sequence[Word]]) -> Utterance:
    """The row with the words that are its own; as it was where there are none."""
    if row.audio is None:
        return row
    if row.id in found:
        inside = list(found[row.id])
    else:
        end = row.offset_s + row.duration_s if row.duration_s is not None else float("inf")
        here = [w for w in found.get(Path(row.audio).stem, ()) if row.offset_s <= (w["start"] + w["end"]) / 2 < end]
        inside = [_word(w["text"], max(0.0, w["start"] - row.offset_s), w["end"] - row.offset_s) for w in here]
    if row.duration_s is not None:
        inside = [w | {"end": min(w["end"], max(row.duration_s, w["start"]))} for w in inside]
    words = [w for w in inside if any(c.isalnum() for c in w["text"]) and not re.fullmatch(r"<.*>|\[.*\]", w["text"])]
    if row.text and places(row.text, words) is None:
        words = [w for w in words if w["text"].lower() not in SILENT]
    return replace(row, words=tuple(words)) if words else row


def add_words(
    ref: str,
    found: Mapping[str, Sequence[Word]],
    out: Path,
    *,
    roots: Sequence[Path | str] = (".",),
    link: bool = False,
) -> ImportReport:
    """Write the data set that `ref` names with the times `found` as the new data set `out`. Rows without times stay as
    they are, and the report counts them. SourceError: nothing fits, or `out` holds another data set."""
    dataset_at(out)
    check_writable(out)
    before = load(ref, roots)
    named_alike: dict[str, str] = {}
    for row in before:
        if row.audio is None or row.id in found or (name := Path(row.audio).stem) not in found:
            continue
        if (other := named_alike.setdefault(name, row.audio)) != row.audio:
            remedy = "name the times by the utterances' ids"
            raise SourceError(f"{ref}: {other} and {row.audio} are both {name}, as times are named; {remedy}")
    rows = [timed(row, found) for row in before]
    got = [row for old, row in zip(before, rows, strict=True) if row is not old]
    spoken = [row for row in rows if row.audio]
    if not got:
        some = ", ".join(list(found)[:3])
        raise SourceError(
            f"{ref}: none of its {len(spoken)} recordings or ids is among the names with times ({some} …)"
        )
    if wrong := next(((row, what) for row in got if (what := faulty(row.words or ()))), None):
        raise SourceError(f"utterance {wrong[0].id}: {wrong[1]}; correct the times")
    notes = [f"times of words for {len(got)} of {len(spoken)} recordings"]
    if bare := [row.id for row in spoken if not row.words]:
        notes.append(f"without times: {', '.join(bare[:20])}{' …' if len(bare) > 20 else ''}")
    task = tasks_of(ref, roots).get(rows[0].task)
    if task is None:
        raise SourceError(f"{ref}: its task {rows[0].task!r} is not defined; put a task.yaml beside the manifest")
    named, files = (rows, {}) if link else name_audio(rows)
    report = ImportReport.of(ref, "words", {}, notes, [], len(rows), [], named)
    report.task, report.validation = task.name, validate(rows, listen=False).to_json()
    about = readme(report, task, out.name)
    report.written = write_dataset(out, named, task, report.to_json(), files, about, ours=out.absolute())
    return report
