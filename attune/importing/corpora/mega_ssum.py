"""Mega-SSum and the like: spoken documents with a summary; documents without a recording are read, too.

Layout (huggingface.co/datasets/komats/mega-ssum, dataset card): `data/<split>-*.parquet` with id, audio,
transcription, summary, and in some splits further references summary1, summary2, summary3; splits core (train),
validation, test and duc2003, which keeps its name. The same columns as JSON lines, `<split>.jsonl`, are read alike.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attune.importing import arrow
from attune.importing.corpus import Corpus, known, need
from attune.importing.options import ImportOptions
from attune.importing.split import split_name
from trainer.spec import Task

TASK = Task(
    name="summarise", answer="text", instruction={"en": "Summarise the speech in one sentence."},
    metrics=["rouge_l", "rouge1", "rouge2"],
)  # fmt: skip
OTHERS = ("summary1", "summary2", "summary3")
LAYOUT = "data/core-*.parquet, or train.jsonl, with id, transcription, summary and perhaps audio"


def read(corpus: Corpus, options: ImportOptions) -> None:
    """One row per document, in `options.language`; further references are kept in `meta.references`."""
    corpus.task = TASK
    for path, line, split, row in _rows(corpus):
        with corpus.row(path, line):
            references = [text for name in OTHERS if (text := known(row.get(name)))]
            summary = next((text for text in [(row["summary"] or "").strip(), *references] if text), None)
            if summary is None:
                raise ValueError("no summary")
            corpus.add(
                path, line, audio=row.get("audio"), text=row["transcription"], label=summary,
                id=f"{split}-{row['id']}", language=options.language, split=split,
                meta={"references": references if set(references) - {summary} else None},
            )  # fmt: skip


def _rows(corpus: Corpus) -> Iterator[tuple[Path, int, str, dict[str, Any]]]:
    found = arrow.files_below(corpus) or corpus.files("*.jsonl")
    for path in need(found, corpus.root, "mega-ssum", LAYOUT):
        if path.suffix == ".jsonl":
            name, rows = path.stem, corpus.json_lines(path)
        else:
            name, rows = arrow.split_of(path, corpus.root) or "train", arrow.read(path, corpus)
        split = "train" if name == "core" else split_name(name) or name
        for line, row in rows:
            yield path, line, split, row
