"""MASSIVE and the two corpora that speak it: Speech-MASSIVE and ITALIC. Intent and slots in one label.

- MASSIVE (github.com/alexa/massive, README): `data/<locale>.jsonl` with id, locale, partition, scenario, intent,
  utt, annot_utt (`[time : nine am]` in the text).
- Speech-MASSIVE (huggingface.co/datasets/FBK-MT/Speech-MASSIVE and …-test): `<locale>/<split>-*.parquet` with id,
  locale, intent_str, utt, annot_utt, audio, speaker_id, …; splits train, train_115 (few-shot), validation, test; `all/`
  holds every locale once more.
- ITALIC (its README at zenodo.org/record/8040649): `<configuration>_<split>.json`, one object a line with id,
  speaker_id, intent, utt, …, and `recordings/<id>.wav`; configurations massive, hard_speaker, hard_noisy.
"""

from pathlib import Path
from typing import Any

from attune.importing import arrow
from attune.importing.corpus import Corpus, files, known, need
from attune.importing.options import ImportOptions
from attune.importing.slots import parse_inline
from attune.importing.source import SourceError, is_language
from attune.importing.split import split_name

ITALIC_CONFIGURATIONS = ("massive", "hard_speaker", "hard_noisy")


def read_massive(corpus: Corpus, options: ImportOptions) -> None:
    """Sentences of every locale, or of `options.language` only."""
    found = [p for p in corpus.files("*.jsonl") if is_language(p.stem) and "-" in p.stem]
    found = _of_language(found, lambda path: path.stem, options.language, "massive")
    need(found, corpus.root, "massive", "data/<locale>.jsonl, e.g. data/it-IT.jsonl")
    for path in found:
        for line, row in corpus.json_lines(path):
            with corpus.row(path, line):
                if "intent" not in row:
                    raise ValueError("no intent: a row of the unlabelled evaluation set")
                corpus.add(
                    path, line, id=f"massive-{row['locale']}-{row['id']}", text=row["utt"], language=row["locale"],
                    split=_split(row["partition"]), label=_label(row["intent"], row["annot_utt"]),
                )  # fmt: skip


def read_speech_massive(corpus: Corpus, options: ImportOptions) -> None:
    """Recordings of every locale, or of `options.language` only.

    `train_115` is part of `train` where a locale has both: its rows are marked `meta.few_shot` there; elsewhere it is
    the train split.
    """
    found = arrow.files_below(corpus)
    locales = {path: _locale(path, corpus.root) for path in found}
    if any(locale not in (None, "all") for locale in locales.values()):
        found = [path for path in found if locales[path] != "all"]
    found = _of_language(found, lambda path: locales[path] or "", options.language, "speech-massive")
    need(found, corpus.root, "speech-massive", "<locale>/<split>-00000-of-0000N.parquet, e.g. fr-FR/test-….parquet")
    found.sort(key=lambda path: (arrow.split_of(path, corpus.root) == "train_115", path))
    trained: dict[tuple[str, str], dict[str, Any]] = {}
    for path in found:
        split = arrow.split_of(path, corpus.root) or ""
        for line, row in arrow.read(path, corpus):
            with corpus.row(path, line):
                key = (row["locale"], str(row["id"]))
                if options.language not in (None, row["locale"]):
                    raise ValueError(f"language {row['locale']!r} was not asked for")
                if split == "train_115" and key in trained:
                    trained[key]["few_shot"] = True
                    raise ValueError("of train_115: is in train already, marked few_shot there")
                names = ("speaker_sex", "speaker_age", "is_validated", "is_transcript_reported")
                meta = {name: row.get(name) for name in names} | ({"few_shot": True} if split == "train_115" else {})
                corpus.add(
                    path, line, id=f"speech-massive-{key[0]}-{key[1]}", text=row["utt"], language=key[0],
                    split="train" if split == "train_115" else _split(split), audio=_heard(row),
                    speaker=known(row.get("speaker_id")), label=_label(row["intent_str"], row["annot_utt"]), meta=meta,
                )  # fmt: skip
                if split == "train":
                    trained[key] = corpus.records[-1].meta


def read_italic(corpus: Corpus, options: ImportOptions) -> None:
    """Recordings of one configuration (`options.config`, default massive).

    ITALIC has intents; slots come from MASSIVE's `it-IT.jsonl` where that lies in the folder, by text and intent.
    """
    config = options.config or "massive"
    if config not in ITALIC_CONFIGURATIONS:
        raise SourceError(f"--config {config!r}: must be one of {', '.join(ITALIC_CONFIGURATIONS)}")
    found = corpus.files(f"{config}_*.json")
    need(found, corpus.root, "italic", f"{config}_train.json, …_validation.json, …_test.json and recordings/<id>.wav")
    corpus.notes.append(f"configuration {config} (others: --config); the three differ in their splits only")
    slots = _italian_slots(corpus)
    for path in found:
        split = _split(path.stem.removeprefix(f"{config}_"))
        for line, row in corpus.json_lines(path):
            with corpus.row(path, line):
                label: Any = row["intent"]
                if slots is not None:
                    label = slots.get((row["utt"], row["intent"]))
                    if label is None:
                        raise ValueError("its text and intent are not in it-IT.jsonl of MASSIVE, so slots are unknown")
                names = ("age", "gender", "region", "nationality", "lisp", "education", "environment", "device")
                corpus.add(
                    path, line, id=f"italic-{row['id']}", text=row["utt"], label=label, language="it-IT", split=split,
                    speaker=known(row.get("speaker_id", row.get("speaker"))),
                    audio=f"recordings/{row['id']}.wav", meta={name: row.get(name) for name in names},
                )  # fmt: skip


def _italian_slots(corpus: Corpus) -> dict[tuple[str, str], Any] | None:
    path = next(iter(files(corpus.root, "it-IT.jsonl")), None)
    if path is None:
        corpus.notes.append("intents alone; for slots put it-IT.jsonl of MASSIVE into the folder")
        return None
    found = {}
    for line, row in corpus.json_lines(path):
        with corpus.row(path, line):
            found[row["utt"], row["intent"]] = _label(row["intent"], row["annot_utt"])
    return found


def _label(intent: str, annotated: str) -> dict[str, Any]:
    return {"intent": intent, "slots": parse_inline(annotated)[1]}


def _split(name: str) -> str:
    if (split := split_name(name)) is None:
        raise ValueError(f"split {name!r}: must be train, dev or test")
    return split


def _heard(row: dict[str, Any]) -> Any:
    if row["audio"] is None:
        raise ValueError("the row holds no recording")
    return row["audio"]


def _locale(path: Path, root: Path) -> str | None:
    """The configuration that a file lies in: its folder's name, or that of the folder which was given."""
    name = path.parent.name if path.parent != root else root.name
    return name if name == "all" or (is_language(name) and "-" in name) else None


def _of_language(found: list[Path], locale: Any, language: str | None, kind: str) -> list[Path]:
    """Files of the language that was asked for; files that name no locale stay, their rows are looked at."""
    if language is None:
        return found
    kept = [path for path in found if locale(path) in (language, "", "all")]
    if found and not kept:
        there = ", ".join(sorted({locale(path) for path in found}))
        raise SourceError(f"{kind}: no files for --language {language}; there are: {there}")
    return kept
