"""Tables: CSV and TSV as spreadsheets write them, and Excel workbooks."""

import csv
import io
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any

from attune.importing.source import AUDIO_SUFFIXES, BadRow, RawRow, Source, SourceError, read_text

DELIMITERS = ",;\t|"
LONGEST_CELL = 100_000
"""Characters: more than anybody says in one utterance, by far."""


def read_csv(path: Path, encoding: str | None = None) -> Source:
    """A delimited text file with a header line; the delimiter is the one that cuts the lines most evenly."""
    text = read_text(path, encoding)
    if not text.strip():
        raise SourceError(f"{path.name}: the file is empty")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    try:
        lines, quotes_are_text = _cells(path, text, delimiter, csv.QUOTE_MINIMAL), False
    except SourceError:
        if delimiter != "\t":
            raise
        lines, quotes_are_text = _cells(path, text, delimiter, csv.QUOTE_NONE), True
    source = _table(path, lines, "tsv" if delimiter == "\t" else "csv")
    if delimiter not in ",\t":
        source.notes.append(f"columns are separated by {delimiter!r}")
    if quotes_are_text:
        source.notes.append("quotes do not match, so they are read as part of the text")
    return source


def _cells(path: Path, text: str, delimiter: str, quoting: Any) -> list[tuple[int, list[str]]]:
    """Rows with the line they start on: a quoted cell may span lines."""
    limit = csv.field_size_limit(max(LONGEST_CELL, len(text)))  # long cells are refused row by row, in `_table`
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    lines, start = [], 1
    try:
        for cells in reader:
            lines.append((start, [cell.strip() for cell in cells]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{path.name}:{start}: quotes do not match ({error}); double a quote inside one") from None
    finally:
        csv.field_size_limit(limit)
    return lines


def _delimiter(text: str) -> str:
    sample = io.StringIO(text[:100_000], newline="")

    def evenness(delimiter: str) -> tuple[float, int]:
        sample.seek(0)
        widths = [len(row) for row in islice(csv.reader(sample, delimiter=delimiter), 50) if row]
        return sum(width == widths[0] for width in widths) / len(widths) * (widths[0] > 1), widths[0]

    try:
        return max(DELIMITERS, key=evenness)
    except csv.Error:
        return ","


def read_xlsx(path: Path, sheet: str | None = None) -> Source:
    """One sheet of a workbook (the first unless named). Numbers become text as Excel shows them: 3, not 3.0."""
    import openpyxl  # half a second to import

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises whatever zipfile and its XML parser raise
        raise SourceError(f"{path.name}: not a readable .xlsx workbook ({error}); save it again") from None
    if sheet is not None and sheet not in book.sheetnames:
        raise SourceError(f"{path.name}: no sheet {sheet!r}; it has: {', '.join(book.sheetnames)}")
    name = sheet or book.sheetnames[0]
    lines = [
        (number, [_shown(value) for value in values])
        for number, values in enumerate(book[name].iter_rows(values_only=True), 1)
    ]
    more = len(book.sheetnames) > 1 and sheet is None
    book.close()
    source = _table(path, lines, "xlsx")
    if more:
        source.notes.append(f"read sheet {name!r} only; name another with --sheet")
    return source


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value).strip()


def _table(path: Path, lines: list[tuple[int, list[str]]], format: str) -> Source:
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise SourceError(f"{path.name}: the table is empty")
    first, header = lines[0]
    while header and not header[-1]:
        header = header[:-1]
    _check_header(path, first, header)
    source = Source([], format, path.parent)
    for number, cells in lines[1:]:
        if any(cells[len(header) :]):
            reason = f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold the separator"
            source.bad.append(BadRow(number, reason))
            continue
        if max(map(len, cells)) > LONGEST_CELL:
            source.bad.append(BadRow(number, _too_long(header, cells)))
            continue
        cells = cells + [""] * (len(header) - len(cells))
        source.rows.append(RawRow(number, dict(zip(header, cells, strict=False))))
    return source


def _too_long(header: list[str], cells: list[str]) -> str:
    column, cell = max(zip(header, cells, strict=False), key=lambda pair: len(pair[1]))
    lines = f" over {cell.count(chr(10)) + 1} lines" if "\n" in cell else ""
    remedy = "close the quote that it begins with, or shorten it" if lines else "shorten it"
    return f"column {column!r} holds {len(cell)} characters{lines}, at most {LONGEST_CELL} are read; {remedy}"


def _check_header(path: Path, line: int, header: list[str]) -> None:
    for cell in header:
        looks_like_data = (
            not cell or cell.lower().endswith(AUDIO_SUFFIXES) or cell.replace(".", "", 1).isdigit() or len(cell) > 60
        )
        if looks_like_data:
            raise SourceError(
                f"{path.name}:{line}: the first line must name the columns, but it holds {cell!r}; "
                "add a header such as: audio,text,label,speaker"
            )
    twice = {cell for cell in header if header.count(cell) > 1}
    if twice:
        raise SourceError(f"{path.name}:{line}: the column name {min(twice)!r} appears twice; rename one")
