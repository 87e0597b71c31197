"""JSON and JSON lines: rows as Hugging Face writes them, the datasets server's answer, our own manifests."""

import json
from pathlib import Path
from typing import Any

from attune.importing.chat import is_chat, read_chat
from attune.importing.source import BadRow, RawRow, Source, SourceError, read_text


def read_json(path: Path, encoding: str | None = None) -> Source:
    """A JSON list, JSON lines, or an object with `data` or `rows`; conversations go to `read_chat`."""
    source = Source([], "json", path.parent)
    text = read_text(path, encoding)
    stripped = text.lstrip()
    if not stripped:
        raise SourceError(f"{path.name}: the file is empty")
    try:
        whole: Any = json.loads(text) if stripped[0] == "[" or ".jsonl" not in path.name.lower() else None
    except json.JSONDecodeError as error:
        if stripped[0] == "[":
            raise SourceError(f"{path.name}:{error.lineno}: not JSON ({error.msg})") from None
        whole = None  # JSON lines under the name .json
    if whole is None:
        _lines(text, source)
    else:
        _whole(path, whole, source)
    if not source.rows and not source.bad:
        raise SourceError(f"{path.name}: holds no rows")
    _class_names(path.parent / "dataset_info.json", source)
    if source.rows and sum(is_chat(row.cells) for row in source.rows) * 2 > len(source.rows):
        return read_chat(source)
    return source


def _lines(text: str, source: Source) -> None:
    source.format = "jsonl"
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                _add(source, number, json.loads(line))
            except json.JSONDecodeError as error:
                source.bad.append(BadRow(number, f"not JSON: {error.msg} at column {error.colno}"))


def _whole(path: Path, whole: Any, source: Source) -> None:
    if isinstance(whole, dict):
        _features(whole.get("features"), source)
        rows = next((whole[k] for k in ("data", "rows", "examples") if isinstance(whole.get(k), list)), None)
        if rows is None:
            rows = _columns(whole)
    else:
        rows = whole
    if rows is None:
        raise SourceError(f"{path.name}: expected a list of rows, or an object with 'data' or 'rows'")
    for number, row in enumerate(rows, 1):
        _add(source, number, row["row"] if isinstance(row, dict) and isinstance(row.get("row"), dict) else row)


def _columns(whole: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of a table written by column: {"text": ["a", "b"], "label": [0, 1]}."""
    columns = {key: value for key, value in whole.items() if isinstance(value, list)}
    if len(columns) != len(whole) or len({len(column) for column in columns.values()}) != 1:
        return None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _add(source: Source, number: int, row: Any) -> None:
    if not isinstance(row, dict):
        source.bad.append(BadRow(number, f"must be an object, not {type(row).__name__}"))
        return
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and value.keys() & {"path", "bytes", "array", "src"}:
            value = value.get("path") or value.get("src")  # Hugging Face Audio
            if not value:
                source.bad.append(BadRow(number, f"{key}: the recording has no path; export the files beside the JSON"))
                return
        cells[key] = value
    source.rows.append(RawRow(number, cells))


def _class_names(info: Path, source: Source) -> None:
    if info.is_file():
        try:
            _features(json.loads(info.read_text(encoding="utf-8")).get("features"), source)
        except (json.JSONDecodeError, AttributeError):
            source.notes.append(f"{info.name} is not readable; numbers are kept as labels")


def _features(features: Any, source: Source) -> None:
    """ClassLabel names out of `features`, as a mapping by column or as the datasets server's list."""
    if isinstance(features, list):
        features = {item.get("name"): item.get("type") for item in features if isinstance(item, dict)}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, dict) and isinstance(feature.get("names"), list):
            source.names[column] = [str(name) for name in feature["names"]]
