"""SLUE: sentiment (VoxCeleb), dialog acts (HVB), named entities (VoxPopuli). English.

Two layouts are read:
- the hub's Parquet (huggingface.co/datasets/asapp/slue: `voxceleb/`, `voxpopuli/`; asapp/slue-phase-2: `hvb/`), splits
  train, validation, test;
- the toolkit's folders (github.com/asappresearch/slue-toolkit, `slue_toolkit/prepare/`): `slue-voxceleb_<split>.tsv`
  with `<split>_raw/<id>.flac`, `slue-voxpopuli_<split>.tsv` with `<split>/<id>.ogg`; splits fine-tune, dev, test.

Labels are the toolkit's: three sentiments (rows marked `<mixed>` or `Disagreement` are no part of the task), 18 dialog
acts, 18 entity types combined into 7 (`generic_utils.raw_to_combined_tag_map`), the rest discarded. The tasks are the
built-in ones of `trainer/tasks/`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attune.importing import arrow
from attune.importing.corpus import Corpus, known, need
from attune.importing.options import ImportOptions
from attune.importing.split import split_name
from trainer import audio
from trainer.spec import Task, builtin_tasks

ENTITIES = {
    "DATE": "WHEN", "TIME": "WHEN", "CARDINAL": "QUANT", "ORDINAL": "QUANT", "QUANTITY": "QUANT", "MONEY": "QUANT",
    "PERCENT": "QUANT", "GPE": "PLACE", "LOC": "PLACE", "NORP": "NORP", "ORG": "ORG", "LAW": "LAW", "PERSON": "PERSON",
}  # fmt: skip
DISCARDED = ("FAC", "EVENT", "WORK_OF_ART", "PRODUCT", "LANGUAGE")
COMBINED = sorted(set(ENTITIES.values()))

SENTIMENT, DIALOG_ACT, ENTITY_PRESENCE = (
    builtin_tasks()[name] for name in ("slue_sentiment", "slue_dialog_acts", "slue_entities")
)
NAMED_ENTITIES = Task(
    name="named_entities", answer="json", slots=dict.fromkeys(COMBINED), metrics=["slue_ner_f1", "slue_ner_label_f1"],
    instruction={"en": "Which named entities does the utterance mention? Answer in JSON, by type."}, menu=True,
)  # fmt: skip
SPLITS = {"fine-tune": "train", "dev": "dev", "test": "test", "test_blind": "test"}


def read_voxceleb(corpus: Corpus, _options: ImportOptions) -> None:
    """Sentiment of a segment of an interview, from `start_second` to `end_second` of its recording."""
    corpus.task = SENTIMENT
    for path, line, split, row in _rows(corpus, "slue-voxceleb", "voxceleb", "{split}_raw/{id}.flac"):
        with corpus.row(path, line):
            if known(row.get("sentiment")) is None:
                raise ValueError("no sentiment: a blind test set; take the one with labels (since January 2024)")
            if row["sentiment"] not in (SENTIMENT.labels or ()):
                raise ValueError(f"sentiment {row['sentiment']} is no part of the task")
            start, end = float(row["start_second"]), float(row["end_second"])
            if end <= start:
                raise ValueError(f"start_second and end_second '{start} {end}': the end must come after the start")
            place = corpus.finder.find(row["audio"]) if isinstance(row["audio"], str) else row["audio"]
            cut = _is_cut(place, end - start)
            corpus.add(
                path, line, audio=place, text=row["normalized_text"], label=row["sentiment"], language="en",
                id=row["id"], split=split, speaker=known(row.get("speaker_id")) or _celebrity(row["id"]),
                offset_s=0.0 if cut else start, duration_s=None if cut else round(end - start, 6),
            )  # fmt: skip


def read_hvb(corpus: Corpus, _options: ImportOptions) -> None:
    """Dialog acts of one turn of a call to a bank."""
    corpus.task = DIALOG_ACT
    for path, line, split, row in _rows(corpus, "slue-hvb", "hvb", ""):
        with corpus.row(path, line):
            acts = row["dialog_acts"]
            if not acts:
                raise ValueError("no dialog act")
            corpus.add(
                path, line, audio=_heard(row), text=row["text"], label=list(acts), language="en", split=split,
                id=f"{row['issue_id']}_{row['start_ms']}_{row['start_ms'] + row['duration_ms']}",
                speaker=known(row["speaker_id"]), meta={k: row.get(k) for k in ("issue_id", "role", "intent")},
            )  # fmt: skip


def read_voxpopuli(corpus: Corpus, options: ImportOptions) -> None:
    """Named entities of a sentence in parliament: (type, phrase), the phrases as they stand in the normalized text;
    with `--task slue_entities` the types alone."""
    presence = options.task == ENTITY_PRESENCE.name
    corpus.task = ENTITY_PRESENCE if presence else NAMED_ENTITIES
    for path, line, split, row in _rows(corpus, "slue-voxpopuli", "voxpopuli", "{split}/{id}.ogg"):
        with corpus.row(path, line):
            if row.get("normalized_ner") is None and "blind" in path.stem:
                raise ValueError("no entities: a blind test set; take the one with labels (since January 2024)")
            text = row["normalized_text"]
            slots = [
                {"type": ENTITIES[kind], "value": _phrase(text, start, length)}
                for kind, start, length in sorted(_spans(row["normalized_ner"]), key=lambda span: span[1])
                if kind not in DISCARDED
            ]
            kinds = sorted({slot["type"].lower() for slot in slots}) or ["none"]
            corpus.add(
                path, line, audio=_heard(row), text=text, language="en", id=row["id"], split=split,
                label=kinds if presence else {"intent": None, "slots": slots}, speaker=known(row.get("speaker_id")),
            )  # fmt: skip


def _rows(
    corpus: Corpus, kind: str, configuration: str, audio_path: str
) -> Iterator[tuple[Path, int, str, dict[str, Any]]]:
    """(file, line, split, row with `audio`) of the hub's or the toolkit's layout."""
    found = arrow.files_below(corpus)
    # the hub's repository holds other configurations in folders beside this one
    found = [path for path in found if path.parent.name == configuration] or found
    if found:
        for path in found:
            split = split_name(arrow.split_of(path, corpus.root) or "")
            for line, row in arrow.read(path, corpus):
                if split is None:
                    corpus.skip(path, line, "no part of train, validation or test by its file's name")
                else:
                    yield path, line, split, row
        return
    found = corpus.files(f"{kind}_*.tsv") if audio_path else []
    need(found, corpus.root, kind, f"{configuration}/train-*.parquet of the hub" + (
        f", or {kind}_fine-tune.tsv with its recordings of the toolkit" if audio_path else ""
    ))  # fmt: skip
    for path in found:
        name = path.stem.removeprefix(f"{kind}_")
        for line, row in corpus.tsv(path):
            if name not in SPLITS:
                corpus.skip(path, line, "no part of fine-tune, dev or test by its file's name")
                continue
            place = audio_path.format(split=name.removesuffix("_blind"), id=row["id"])
            yield path, line, SPLITS[name], {**row, "audio": place}


def _is_cut(recording: Any, seconds: float) -> bool:
    """Whether a file holds the segment alone: some releases carry it cut, with the times of the whole recording."""
    return abs(audio.info(recording).duration_s - seconds) < 0.05


def _celebrity(id: str) -> str | None:
    """VoxCeleb's person: the first part of `id10059_229vKIGbxrI_00008`."""
    person = id.split("_")[0]
    return person if person.startswith("id") and person[2:].isdigit() else None


def _heard(row: dict[str, Any]) -> Any:
    if row["audio"] is None:
        raise ValueError("the row holds no recording")
    return row["audio"]


def _spans(given: Any) -> list[tuple[str, int, int]]:
    """(type, first character, characters): as a literal in a table, as a struct of lists or as a list of structs."""
    if isinstance(given, str):
        given = ast.literal_eval(given) if known(given) else []
    if isinstance(given, dict):
        given = list(zip(given["type"], given["start"], given["length"], strict=True))
    spans = [(s["type"], s["start"], s["length"]) if isinstance(s, dict) else s for s in given or []]
    return [(str(kind), int(start), int(length)) for kind, start, length in spans]


def _phrase(text: str, start: int, length: int) -> str:
    phrase = text[start : start + length].strip()
    if not phrase or start + length > len(text):
        raise ValueError(f"entity at '{start}' of length '{length}' lies outside the text")
    return phrase
