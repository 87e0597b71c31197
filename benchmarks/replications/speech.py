"""The data sets of the replications: committed sentences spoken by espeak-ng, voices of training and test disjoint.

    python -m benchmarks.replications.speech [fr de en en_unseen en_tasks en_accent] [--out build/replications]

Sentences, labels and licences: suites/replications/text. All test voices and all sentences are new to the tiny base;
the training voices are among those it was trained on. espeak-ng (GPL-3; extra `base`) is a tool of this module alone,
what it says is not covered by its licence. The same command makes the same files.
"""

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import yaml

from models.recipe.speech import ACCENTS, RATE, UNSEEN, VARIANTS, Espeak, resample

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "suites" / "replications" / "text"
BUILD = ROOT / "build" / "replications"
VOICES = VARIANTS[:36]
"""Of the training side: the plainer ones."""
SEED = 0


class Sentence(NamedTuple):
    """A row of `text/LANGUAGE.tsv.gz`."""

    key: str
    intent: str
    group: str
    """German only: the group that the base's own text-only task gives its English translation."""
    text: str

    @property
    def area(self) -> str:
        """The scenario of the intent."""
        return self.intent.split("_")[0]


class Said(NamedTuple):
    """A row of a manifest to be made."""

    sentence: Sentence
    task: str
    label: str | None
    """None: the answer is the sentence."""
    accent: str | None = None
    """As espeak-ng calls it; None: any of the language."""


class Split(NamedTuple):
    """A manifest to be made."""

    rows: list[Said]
    voices: Sequence[str]


def sentences(language: str) -> list[Sentence]:
    """The committed sentences, in one seeded order."""
    with gzip.open(TEXT / f"{language}.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    found = [Sentence(row[0], row[1], row[2] if len(row) == 4 else "", row[-1]) for row in rows]
    return [found[i] for i in np.random.default_rng(SEED).permutation(len(found))]


def french() -> dict[str, Split]:
    """limited_speech: the intent, of 59."""
    rows = [Said(s, "intent", s.intent) for s in sentences("fr")]
    return {"test": Split(rows[:480], UNSEEN), "train": Split(rows[480:1184], VOICES)}


def german() -> dict[str, Split]:
    """salad: the base's own text-only task, of 20 groups. `narrow` speaks of few scenarios, `broad` of all."""
    rows = [Said(s, "group", s.group) for s in sentences("de")]
    test, rest = rows[:400], rows[400:]
    narrow = [row for row in rest if row.sentence.area in NARROW]
    return {
        "test": Split(test, UNSEEN),
        "narrow": Split(narrow[:TAUGHT], VOICES),
        "broad": Split(rest[:TAUGHT], VOICES),
    }


NARROW = ("calendar", "alarm", "datetime", "weather", "email")
TAUGHT = 480


def english() -> dict[str, Split]:
    """label_permutation: the scenario, of six that are trained."""
    rows = [Said(s, "seen", s.area) for s in sentences("en") if s.area in MEANT["seen"]]
    return {"test": Split(rows[:200], UNSEEN), "train": Split(rows[200:1000], VOICES)}


def english_unseen() -> dict[str, Split]:
    """label_permutation: the scenario, of six others; `pool` is for demonstrations."""
    rows = [Said(s, "unseen", s.area) for s in sentences("en") if s.area in MEANT["unseen"]]
    return {"test": Split(rows[:400], UNSEEN), "pool": Split(rows[400:], VOICES)}


def english_tasks() -> dict[str, Split]:
    """data_scheduling: in one manifest transcripts, scenarios (of 18) and accents (of four), each of sentences of its
    own and uneven, as published corpora are; `heard` is the test of transcripts."""
    rows = sentences("en")
    test, heard, rest = rows[:300], rows[300:400], rows[600:]
    transcribed = [Said(s, "transcribe", None) for s in rest[:400]]
    scenarios = [Said(s, "scenario", s.area) for s in rest[400:640]]
    accents = _accents(rest[640:760], [name for name, share in ACCENT_SHARES.items() for _ in range(share)])
    return {
        "test": Split([Said(s, "scenario", s.area) for s in test], UNSEEN),
        "heard": Split([Said(s, "transcribe", None) for s in heard], UNSEEN),
        "train": Split([*transcribed, *scenarios, *accents], VOICES),
    }


def english_accents() -> dict[str, Split]:
    """data_scheduling: the test of accents, even."""
    return {"test": Split(_accents(sentences("en")[400:600], [*SPOKEN]), UNSEEN)}


def _accents(rows: list[Sentence], names: list[str]) -> list[Said]:
    """These accents as often each, in a seeded order: voices take turns, and no voice may tell an accent."""
    order = np.random.default_rng(SEED).permutation(len(rows)) % len(names)
    drawn = [names[n] for n in order]
    return [Said(s, "accent", name, SPOKEN[name]) for s, name in zip(rows, drawn, strict=True)]


SPOKEN = {"american": "en-us", "british": "en-gb-x-rp", "scottish": "en-gb-scotland", "caribbean": "en-029"}
ACCENT_SHARES = {"american": 7, "british": 4, "scottish": 2, "caribbean": 2}
"""Of fifteen."""
SETS = {
    "fr": french, "de": german, "en": english, "en_unseen": english_unseen, "en_tasks": english_tasks,
    "en_accent": english_accents,
}  # fmt: skip
ASKED = {
    "intent": "What does the speaker want?",
    "group": "Name the group.",
    "seen": "What is the request about?",
    "unseen": "What is the request about?",
    "scenario": "What is the request about?",
    "accent": "Which accent has the speaker?",
}
"""Instructions; `group` is asked as the base was taught."""
MEANT = {
    "seen": {
        "calendar": "meetings, appointments and reminders",
        "play": "starting a song, radio, podcast, book or game",
        "email": "reading and writing mail, and contacts",
        "iot": "lights, sockets, the coffee machine and the vacuum cleaner",
        "weather": "rain, sun, wind and temperature",
        "lists": "making, reading or changing a list",
    },
    "unseen": {
        "news": "headlines and what happened",
        "transport": "trains, taxis, tickets and traffic",
        "datetime": "what time or day it is",
        "alarm": "setting or stopping an alarm to wake up",
        "music": "which song this is and which one likes",
        "cooking": "recipes and how to cook",
    },
}
"""Definitions of labels; written without a look at any answer."""


def build(name: str, out: Path, most: int | None = None) -> Path:
    """Writes manifests, task.yaml and recordings (mono 16 kHz FLAC) into `out/NAME`, if they are not there; at most
    `most` rows of each split."""
    folder, language = out / name, name.split("_")[0]
    splits = {key: split._replace(rows=split.rows[:most]) for key, split in SETS[name]().items()}
    if (folder / "task.yaml").is_file():
        return folder
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    for key, split in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _spoken(espeak, language, key, split, folder))
        (folder / f"{key}.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = [row for split in splits.values() for row in split.rows]
    task = rows[0].task
    labels = sorted({row.label for row in rows if row.task == task and row.label})
    said = {"name": task, "instruction": {"en": ASKED[task]}, "answer": "label", "labels": labels}
    if task in ("scenario", "accent", *MEANT):
        said["metrics"] = ["macro_f1", "accuracy"]
    if task in MEANT:
        order = {"menu": True, "prompt_order": "instruction_first"}
        said = {**said, "labels": [*MEANT[task]], "definitions": MEANT[task], **order}
    (folder / "task.yaml").write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    return folder


def _spoken(espeak: Espeak, language: str, name: str, split: Split, folder: Path) -> Iterator[dict]:
    for n, (sentence, task, label, accent) in enumerate(split.rows):
        rng = np.random.default_rng([SEED, *name.encode(), int(sentence.key)])
        voice, drawn = split.voices[n % len(split.voices)], rng.choice(ACCENTS[language])
        pace, pitch, pitch_range = (int(rng.uniform(*span)) for span in ((125, 205), (15, 85), (20, 80)))
        spoken = espeak.say(sentence.text, f"{accent or drawn}+{voice}", pace, pitch, pitch_range)
        wave = resample(spoken.wave, spoken.rate)
        before, after = (rng.integers(RATE // 20, RATE // 4, 2)).tolist()
        wave = np.pad(wave / np.abs(wave).max() * rng.uniform(0.3, 0.9), (before, after)).astype(np.float32)
        audio = f"audio/{name}-{sentence.key}.flac"
        soundfile.write(folder / audio, wave, RATE)
        yield {
            "id": f"{language}-{name}-{sentence.key}", "task": task, "language": language,
            "split": name, "text": sentence.text, "label": label, "audio": audio,
            "duration_s": round(len(wave) / RATE, 3), "speaker": f"espeak-{voice}",
        }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help=", ".join(SETS))
    parser.add_argument("--out", type=Path, default=BUILD)
    options = parser.parse_args()
    for wanted in options.sets or SETS:
        print(build(wanted, options.out))
