"""CoNLL-like files: a token and its tag on each line, a blank line after each sentence."""

import re
from pathlib import Path
from typing import Any

from attune.importing.slots import parse_tags
from attune.importing.source import BadRow, RawRow, Source, SourceError, read_text

_COMMENT = re.compile(r"#\s*([\w-]+)\s*[:=]\s*(.*)")


def looks_like_bio(text: str) -> bool:
    """Whether most lines end in a tag such as `O` or `B-time` after a tab or blank."""
    lines = [line for line in text.splitlines()[:200] if line.strip() and not line.startswith("#")]
    tagged = sum(re.search(r"\s(O|[BIESLU]-\S+)\s*$", line) is not None for line in lines)
    return bool(lines) and tagged > len(lines) * 0.8


def read_bio(path: Path, encoding: str | None = None) -> Source:
    """Sentences with slots. The tag is the last column; a leading token number (xSID, CoNLL-U) is skipped.

    `# intent: …` and `# text: …` comments are used, other comments become metadata; without `# text` the text is
    the tokens joined by blanks. In xSID's four columns (number, token, intent, tag) the third is the intent.
    """
    source = Source([], "bio", path.parent)
    sentence: list[list[str]] = []
    comments: dict[str, str] = {}
    start = 1
    for number, line in enumerate([*read_text(path, encoding).splitlines(), ""], 1):
        if not line.strip():
            if sentence:
                try:
                    source.rows.append(RawRow(start, _sentence(sentence, comments)))
                except ValueError as error:
                    source.bad.append(BadRow(start, str(error)))
            sentence, comments = [], {}
            continue
        if not sentence and not comments:
            start = number
        if line.startswith("#") and (match := _COMMENT.fullmatch(line.strip())):
            comments[match[1].lower()] = match[2].strip()
        elif not line.startswith(("# ", "-DOCSTART-")):
            sentence.append([cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())])
    if not source.rows and not source.bad:
        raise SourceError(f"{path.name}: no sentences; each line needs a token and a tag, with blank lines between")
    return source


def _sentence(lines: list[list[str]], comments: dict[str, str]) -> dict[str, Any]:
    if any(len(cells) < 2 for cells in lines):
        raise ValueError(f"a line without tag: {next(cells for cells in lines if len(cells) < 2)[0]!r}")
    numbered = [cells[0] for cells in lines] == [str(n) for n in range(1, len(lines) + 1)]
    at = 1 if numbered and len(lines[0]) > 2 else 0
    tokens, tags = [cells[at] for cells in lines], [cells[-1] for cells in lines]
    row: dict[str, Any] = dict(comments)
    row["text"] = comments.get("text") or " ".join(tokens)
    row["slots"] = parse_tags(tokens, tags)
    if "intent" not in row and at and len(lines[0]) == 4:
        row["intent"] = lines[0][2]
    return row
