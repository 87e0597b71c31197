"""Sentences -> synthetic speech features with word and phone times, one memory-mapped file per split."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.recipe.augment import record
from models.recipe.speech import ACCENTS, HOP, RATE, UNSEEN, VARIANTS, WINDOW_FRAMES, Espeak, log_mel, resample
from models.recipe.text import DIGITS, LANGUAGES, read

SEED, CHUNK = 0, 250
# How many utterances of each kind; Arabic has few sentences, so each is spoken more often.
COPIES = {"en": 1, "fr": 1, "de": 1, "ar": 3}
PHRASES = {"en": 7000, "fr": 3000, "de": 3000, "ar": 3500}  # 1 to 3 words cut from a sentence, half of them 1
SPLICES = {"en": 2000, "fr": 1000, "de": 1000, "ar": 1500}  # head of one sentence, tail of another
LONG = {"en": 700, "fr": 250, "de": 250, "ar": 250}  # two sentences in one breath
NUMBERS = {"en": 2000, "fr": 600, "de": 600, "ar": 500}  # 1 to 5 digit words
ORDERS = 4  # copies of the English coffee sentences


class Job(NamedTuple):
    split: str
    index: int  # of the first row: seeds every row's generator
    rows: list[tuple[str, str]]  # language, text
    voices: list[str]
    augment: bool


class Row(NamedTuple):
    language: str
    text: str
    mel: np.ndarray  # (frames, 80) float16
    word_ms: list[float]
    phones: list[str]  # one per 25 Hz encoder position


def texts_of(language: str, rng: np.random.Generator) -> list[str]:
    """Everything the training voices say in one language."""
    sentences = [s for _, s in read(f"{language}.train")]
    orders = [s for _, s in read("orders.train")] if language == "en" else []
    out = sentences * COPIES[language] + orders * ORDERS
    pick = lambda items: items[rng.integers(len(items))]  # noqa: E731
    for _ in range(PHRASES[language]):
        words = pick(orders if orders and rng.random() < 0.12 else sentences).split()
        size = min(len(words), int(rng.choice([1, 2, 3], p=[0.5, 0.25, 0.25])))
        start = rng.integers(len(words) - size + 1)
        out.append(" ".join(words[start : start + size]))
    for _ in range(SPLICES[language]):
        head, tail = pick(sentences).split(), pick(sentences).split()
        joined = head[: rng.integers(1, len(head) + 1)] + tail[rng.integers(len(tail)) :]
        out.append(" ".join(joined[:12]))
    out += [f"{pick(sentences)} {pick(sentences)}" for _ in range(LONG[language])]
    digits = DIGITS[language].split()
    out += [" ".join(rng.choice(digits, rng.integers(1, 6))) for _ in range(NUMBERS[language])]
    return out


def synthesise(job: Job) -> list[Row]:
    """The job's rows, made in a child process: a few pairs of voice and word crash espeak-ng (`rob` with an Arabic
    word divides by zero). A crashed job is halved until the row that caused it is alone, and left out."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: send.send(_speak(job)))
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        if len(job.rows) == 1:
            print(f"left out, espeak-ng crashed: {job.split} row {job.index} {job.rows[0]}", flush=True)
            return []
        half = len(job.rows) // 2
        first, second = job._replace(rows=job.rows[:half]), job._replace(index=job.index + half, rows=job.rows[half:])
        return synthesise(first) + synthesise(second)
    finally:
        child.join()


def _speak(job: Job) -> list[Row]:
    espeak, out, babble = Espeak(), [], None
    for offset, (language, text) in enumerate(job.rows):
        rng = np.random.default_rng([SEED, *job.split.encode(), job.index + offset])
        voice = f"{rng.choice(ACCENTS[language])}+{rng.choice(job.voices)}"
        pitch, pitch_range = (int(v) for v in rng.uniform(10, 90, 2))
        spoken = espeak.say(text, voice, int(rng.uniform(125, 225)), pitch, pitch_range)
        # read at another rate than it was made: pitch, formants and speed move together, as vocal-tract length does
        stretch = np.exp(rng.uniform(-0.15, 0.15)) if job.augment else 1.0
        wave = resample(spoken.wave, spoken.rate * stretch)
        before = 0.0
        if job.augment:
            babble, (wave, before) = wave, record(wave, rng, babble)
        if not RATE // 10 < len(wave) <= WINDOW_FRAMES * HOP:
            continue
        moved = lambda ms, s=stretch, b=before: b * 1000 + ms / s  # noqa: E731
        mel = log_mel(wave)
        positions = (len(mel) + 1) // 2
        phones = ["_"] * positions
        end_ms = len(spoken.wave) / spoken.rate * 1000
        starts = [int(moved(ms) / 40) for ms in [*(ms for ms, _ in spoken.phones), end_ms]]
        for i, (_, name) in enumerate(spoken.phones):
            for k in range(starts[i], min(max(starts[i + 1], starts[i] + 1), positions)):
                phones[k] = name.strip("',%=|") or "_"
        out.append(Row(language, text, mel.astype(np.float16), [moved(ms) for ms in spoken.word_ms], phones))
    return out


def jobs(scale: float = 1.0) -> list[Job]:
    """`scale` < 1 makes a small corpus of the same kinds, for trying the recipe out."""
    rng = np.random.default_rng(SEED)
    train = [(language, text) for language in LANGUAGES for text in texts_of(language, rng)]
    train = [train[i] for i in rng.permutation(len(train))[: int(len(train) * scale)]]
    unseen = [(language, text) for language in LANGUAGES for _, text in read(f"{language}.val")]
    splits = [("train", train, VARIANTS, True), ("clean", unseen, UNSEEN, False), ("recorded", unseen, UNSEEN, True)]
    return [
        Job(split, i, rows[i : i + CHUNK], voices, augment)
        for split, rows, voices, augment in splits
        for i in range(0, len(rows), CHUNK)
    ]


def prepare(work: Path, scale: float = 1.0) -> None:
    """Writes SPLIT.mel (float16 frames x 80), SPLIT.npz (texts, frames, times, phones) and phones.json."""
    work.mkdir(parents=True, exist_ok=True)
    meta: dict[str, list] = {"train": [], "clean": [], "recorded": []}
    files = {split: open(work / f"{split}.mel", "wb") for split in meta}  # noqa: SIM115
    todo = jobs(scale)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for job, rows in zip(todo, pool.map(synthesise, todo), strict=True):  # in order, whoever finishes first
            for row in rows:
                row.mel.tofile(files[job.split])
                meta[job.split].append((row.language, row.text, len(row.mel), row.word_ms, row.phones))
    for file in files.values():
        file.close()
    names = sorted({p for rows in meta.values() for row in rows for p in row[4]})
    ids = {name: i for i, name in enumerate(names)}
    for split, rows in meta.items():
        language, text, frames, word_ms, phones = zip(*rows, strict=True)
        np.savez(
            work / f"{split}.npz", language=np.array(language), text=np.array(text), frames=np.array(frames),
            word_ms=np.concatenate([np.float32(w) for w in word_ms]),
            phone=np.array([ids[p] for row in phones for p in row], np.int16),
        )  # fmt: skip
        print(f"{split}: {len(rows)} utterances, {sum(frames) / 180000:.1f} h", flush=True)
    (work / "phones.json").write_text(json.dumps(names))
