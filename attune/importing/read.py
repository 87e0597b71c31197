"""Which reader a file or folder needs."""

from pathlib import Path
from typing import Any

from attune.importing.bio import looks_like_bio, read_bio
from attune.importing.folder import read_folder
from attune.importing.rows import read_json
from attune.importing.source import BadRow, RawRow, Source, SourceError, read_text
from attune.importing.split import split_name
from attune.importing.tables import read_csv, read_xlsx

TABLES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".jsonl.gz", ".conll")


def read_source(path: Path, encoding: str | None = None, sheet: str | None = None) -> Source:
    """The raw rows of a source, by its kind; SourceError where that cannot be told."""
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if path.is_dir():
        tables = [path / f"metadata{suffix}" for suffix in TABLES]  # Hugging Face AudioFolder
        if table := next((table for table in tables if table.is_file()), None):
            return read_source(table, encoding, sheet)
        if by_split := _split_files(path):
            return _read_splits(path, by_split, encoding, sheet)
    name = path.name.lower()
    if sheet is not None and not name.endswith(".xlsx"):
        raise SourceError(f"{path.name}: --sheet is for .xlsx workbooks; leave it out")
    if path.is_dir():
        return read_folder(path)
    if name.endswith((".csv", ".tsv")):
        return read_csv(path, encoding)
    if name.endswith(".xlsx"):
        return read_xlsx(path, sheet)
    if name.endswith((".json", ".jsonl", ".jsonl.gz")):
        return read_json(path, encoding)
    if name.endswith((".conll", ".conllu", ".bio", ".iob")):
        return read_bio(path, encoding)
    if name.endswith((".txt", ".text")):
        text = read_text(path, encoding)
        if looks_like_bio(text):
            return read_bio(path, encoding)
        lines = enumerate(text.splitlines(), 1)
        rows = [RawRow(n, {"text": line.strip()}) for n, line in lines if line.strip()]
        return Source(rows, "lines", path.parent)
    if name.endswith(".xls"):
        raise SourceError(f"{path.name}: the old Excel format; save it as .xlsx or CSV")
    kinds = ".csv, .tsv, .xlsx, .json, .jsonl, .conll or .txt file, or a folder of clips"
    raise SourceError(f"{path.name}: what this is cannot be told; give a {kinds}")


def _split_files(folder: Path) -> dict[Path, str]:
    """Tables that are named after their split: train.csv, valid.jsonl, de.test.conll, …"""
    found = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in TABLES if path.name.lower().endswith(s)), None)
        if suffix and path.is_file():
            names = [split for part in path.name[: -len(suffix)].split(".") if (split := split_name(part))]
            if len(names) == 1:
                found[path] = names[0]
    return found


def _read_splits(folder: Path, files: dict[Path, str], encoding: str | None, sheet: str | None) -> Source:
    """All files as one source; lines run on from file to file, each file's first is said in a note."""
    whole = Source([], "", folder)
    offset = 0
    for path, split in files.items():
        part = read_source(path, encoding, sheet)
        rows = [RawRow(offset + row.line, _with_split(row.cells, split)) for row in part.rows]
        bad = [BadRow(offset + (row.line or 0), row.reason) for row in part.bad]
        whole.notes += [f"{path.name} is {split}, its lines count from {offset + 1}", *part.notes]
        whole.rows, whole.bad = whole.rows + rows, whole.bad + bad
        whole.names |= part.names
        whole.format, whole.instruction = part.format, whole.instruction or part.instruction
        offset = max([offset, *(row.line or 0 for row in [*rows, *bad])])
    return whole


def _with_split(cells: dict[str, Any], split: str) -> dict[str, Any]:
    """The row with the split of its file, unless it names one itself; another thing under that name moves aside."""
    own = cells.get("split")
    if own in (None, ""):
        return {**cells, "split": split}
    return cells if split_name(str(own)) else {**cells, "split": split, "split_in_file": own}
