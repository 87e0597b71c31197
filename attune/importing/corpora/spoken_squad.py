"""Spoken-SQuAD: questions in writing about a passage that is read aloud. English, synthetic speech.

Layout (github.com/Chia-Hsuan-Lee/Spoken-SQuAD, README): `spoken_train-v1.1.json`, `spoken_test-v1.1.json` in SQuAD's
form, their contexts what a recogniser heard; `train_wav/` and `dev_wav/` (of the test set) with one recording per
sentence, `<topic>_<paragraph>_<sentence>.wav`, counted from 0 as in SQuAD's file. `…_WER44.json` and `…_WER54.json` are
transcripts of noisier recordings that are not in the archive.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from attune.importing.corpus import Corpus, files, need
from attune.importing.options import ImportOptions
from attune.importing.source import SourceError, read_text
from trainer.spec import Task

TASK = Task(
    name="question_answering", answer="text", metrics=["qa_f1", "qa_exact_match"],
    instruction={"en": "Answer the question about the speech with a few words from it."},
)  # fmt: skip
SETS = {"spoken_train-v1.1.json": ("train", "train_wav"), "spoken_test-v1.1.json": ("test", "dev_wav")}


def read(corpus: Corpus, _options: ImportOptions) -> None:
    """One row per question, all right answers as its label; a passage's sentences are joined into one recording."""
    corpus.task = TASK
    found = need(corpus.files(*SETS), corpus.root, "spoken-squad", f"{', '.join(SETS)}, train_wav/ and dev_wav/")
    if noisy := files(corpus.root, "spoken_test-v1.1_WER*.json"):
        corpus.notes.append(f"not read: {', '.join(p.name for p in noisy)} (transcripts of noisier recordings)")
    for path in found:
        split, folder = SETS[path.name]
        sentences = _sentences(corpus, folder)
        asked = 0  # questions are counted, since the file is one line
        for topic, entry in enumerate(_topics(path)):
            for number, paragraph in enumerate(entry["paragraphs"]):
                passage = sentences.get((topic, number), {})
                _questions(corpus, path, asked, split, passage, f"{topic}_{number}", paragraph)
                asked += len(paragraph["qas"])


def _questions(
    corpus: Corpus, path: Path, asked: int, split: str, sentences: dict[int, Path], name: str, paragraph: dict[str, Any]
) -> None:
    joined: Path | None = None
    for number, qa in enumerate(paragraph["qas"], asked + 1):
        with corpus.row(path, number):
            if sorted(sentences) != list(range(len(sentences))) or not sentences:
                raise ValueError(f"recordings of passage '{name}' are missing or not numbered from 0; unpack them")
            joined = joined or _join(sentences, corpus.work / f"{split}-{name}.flac")
            answers = list(dict.fromkeys(answer["text"] for answer in qa["answers"]))
            if not answers:
                raise ValueError("a question without answer")
            corpus.add(
                path, number, audio=joined, text=paragraph["context"], question=qa["question"],
                label=answers if len(answers) > 1 else answers[0], id=qa["id"], language="en", split=split,
                meta={"passage": name},
            )  # fmt: skip


def _topics(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(read_text(path))["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not in SQuAD's form ({type(error).__name__}: {error}); copy it again") from None


def _sentences(corpus: Corpus, folder: str) -> dict[tuple[int, int], dict[int, Path]]:
    """Recordings by (topic, paragraph) and sentence."""
    found: dict[tuple[int, int], dict[int, Path]] = defaultdict(dict)
    for path in files(corpus.finder.root, f"{folder}/*.wav"):
        numbers = path.stem.split("_")
        if len(numbers) == 3 and all(n.isdigit() for n in numbers):
            topic, paragraph, sentence = map(int, numbers)
            found[topic, paragraph][sentence] = path
    return found


def _join(sentences: dict[int, Path], target: Path) -> Path:
    """One recording of all sentences; ValueError where their rates differ or one cannot be read."""
    try:
        waves, rates = zip(*(soundfile.read(sentences[n], dtype="int16") for n in sorted(sentences)), strict=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"passage '{target.stem}' cannot be read ('{error}'); unpack it again") from None
    if len(set(rates)) > 1:
        raise ValueError(f"recordings of passage '{target.stem}' have different rates '{sorted(set(rates))}'")
    soundfile.write(target, np.concatenate(waves), rates[0])
    return target
