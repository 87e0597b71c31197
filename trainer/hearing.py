"""The hearing check: does the base hear these recordings, and what follows for tuning?

Text-only tuning teaches the language model what to answer; it cannot teach the encoder to hear. So before any
training, the base transcribes a sample of recordings that have transcripts. Where there are none, a linear probe
says whether the frozen encoder at least tells the answers apart. Give training or development recordings, never
the test set: what is decided here shapes the training.

`python -m trainer.hearing DATA --base B` is `attune check`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from trainer.baselines import Features, classify, pooled_features
from trainer.compare import interval
from trainer.evaluate import TRANSCRIBE, Between, transcribe
from trainer.families import load as load_base
from trainer.majority import parts_of
from trainer.manifest import Utterance, load, locate
from trainer.metrics import score
from trainer.predictions import limited, prediction
from trainer.rng import permutation
from trainer.spec import Task, builtin_tasks, read_task
from trainer.tokens import DataError, LengthError, locate_base
from trainer.views import SPEECH, Recordings

HEARS = 0.25
"""WER up to which the encoder stays frozen (the project's first trial: above it, frozen cost 7 to 9 points)."""
HALF_HEARS = 0.6
"""WER up to which text-only tuning is expected to give something on speech. A rule of thumb."""
HALF_WAY = 0.5
"""A probe that covers this share of the way from majority to 1 leaves the encoder frozen. A rule of thumb: a
probe measures what a linear reader finds, which is less than a tuned language model can."""
FOLDS = 5
FEWEST = 20
"""Recordings below which a probe says nothing."""
PROBE_LIMIT = 1000
"""Most recordings that a probe looks at."""


@dataclass(frozen=True)
class Hearing:
    """What the check found; all rates are fractions."""

    wer: float | None
    """WER of the base's own transcription; None without transcripts."""
    wer_ci: tuple[float, float] | None
    """Its 95 % interval; None with a single utterance."""
    probe_accuracy: float | None
    """Cross-validated accuracy of a linear probe, mean over the parts of the answer; None with transcripts."""
    majority_accuracy: float | None
    """The same of always giving the most frequent answer."""
    n: int
    """Recordings looked at."""
    normaliser: str | None
    """Text normaliser of the WER."""
    encoder: Literal["frozen", "lora"]
    """What `tuning.encoder: auto` becomes."""
    verdict: str
    """What was found and what to expect, in sentences."""


def check(
    model,
    utterances: Sequence[Utterance],
    task: Task,
    *,
    limit: int = 100,
    seed: int = 0,
    recordings: Recordings | None = None,
    between: Between = lambda done: None,
) -> Hearing:
    """Runs the check on `utterances` (those with a recording and of this task).

    model: a loaded base (adapters are off meanwhile). limit: recordings to transcribe, a seeded sample of those
    with a transcript; a probe takes up to PROBE_LIMIT. between: called after every batch of transcripts. ValueError
    when nothing has a recording, or none that the base hears whole.
    """
    spoken = [u for u in utterances if u.audio and u.task == task.name]
    if not spoken:
        raise DataError(f"task '{task.name}': no recordings, so there is nothing to hear; a text needs no check")
    recordings = recordings or Recordings(model.tokens.shape.sampling_rate)
    written = [u for u in spoken if u.text and u.text.strip()]
    sample = limited(written, limit, seed) if written else limited(spoken, PROBE_LIMIT, seed)
    short = [u for u in sample if _fits(model, recordings, u)]
    if not short:
        raise DataError(f"all {len(sample)} recordings are longer than the base hears; cut them (offset_s)")
    if written:
        found = _transcribed(model, short, recordings, between)
    else:
        found = _probed(pooled_features(model, recordings), short, task, seed)
    if dropped := len(sample) - len(short):
        note = f" {dropped} of {len(sample)} recordings are longer than the base hears and were left out."
        return replace(found, verdict=found.verdict + note)
    return found


def _fits(model, recordings: Recordings, utterance: Utterance) -> bool:
    try:
        model.tokens.audio_tokens(len(recordings.wave(utterance)), name=utterance.id)
    except LengthError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ transcripts


def _transcribed(model, sample: Sequence[Utterance], recordings: Recordings, between: Between) -> Hearing:
    heard = transcribe(model, sample, recordings, between=between)
    bare = [_as_transcript(u) for u in sample]
    rows = [prediction(u, TRANSCRIBE, SPEECH, text) for u, text in zip(bare, heard, strict=True)]
    wer = score(rows)["wer"]
    at = interval([rows], "wer") if len(rows) > 1 else None
    span = (at.ci_low, at.ci_high) if at else None
    encoder: Literal["frozen", "lora"] = "frozen" if wer <= HEARS else "lora"
    languages = "/".join(sorted({u.language for u in sample}))
    return Hearing(
        wer, span, None, None, len(rows), TRANSCRIBE.normaliser, encoder, _wer_words(wer, span, languages, len(rows))
    )


def _as_transcript(u: Utterance) -> Utterance:
    return Utterance(
        u.id, TRANSCRIBE.name, u.language, u.split, text=u.text, audio=u.audio, offset_s=u.offset_s,
        duration_s=u.duration_s, speaker=u.speaker,
    )  # fmt: skip


def _wer_words(wer: float, span: tuple[float, float] | None, languages: str, n: int) -> str:
    within = f", 95 % interval {100 * span[0]:.0f}–{100 * span[1]:.0f} %" if span else ""
    found = f"base WER {100 * wer:.0f} % on {languages} ({n} recordings{within}, {TRANSCRIBE.normaliser} normaliser): "
    if wer <= HEARS:
        say = (
            "the base hears this speech. Expect text-only tuning to come near its own result on text; "
            "the encoder stays frozen."
        )
    elif wer <= HALF_HEARS:
        say = (
            "the base hears part of it. Expect text-only tuning to stay clearly behind its own result on text; "
            "mix in recordings and train the encoder (encoder: lora)."
        )
    else:
        say = (
            "text-only cannot work here; record or synthesise speech and train the encoder (encoder: lora)."
        )
    if span and span[0] <= HEARS < span[1]:
        say += f" The interval holds the {100 * HEARS:.0f} % rule: check more recordings, or try both."
    return found + say


# ------------------------------------------------------------------------------------------------------- probe


def _probed(features: Features, sample: Sequence[Utterance], task: Task, seed: int) -> Hearing:
    n = len(sample)
    if (free := task.answer in ("text", "choice")) or n < FEWEST:
        why = f"an answer of the form {task.answer} cannot be probed" if free else f"{n} are too few for a probe"
        return Hearing(
            None, None, None, None, n, None, "frozen",
            f"no transcripts, and {why}: nothing is known about what the base hears. Transcribe some recordings "
            "and check again; until then the encoder stays frozen.",
        )  # fmt: skip
    folds, by = fold_of(sample, seed)
    x, parts = features(sample), parts_of(sample, task)
    right, usual = [], []
    for values in parts.values():
        right.append(_cross_validated(x, values, folds))
        # In the whole sample: cross-validated, it would fall below chance where answers are balanced.
        usual.append(max(Counter(values).values()) / n)
    probe, majority = float(np.mean(right)), float(np.mean(usual))
    covered = (probe - majority) / (1 - majority) if majority < 1 else 1.0
    encoder: Literal["frozen", "lora"] = "frozen" if covered >= HALF_WAY else "lora"
    mean = f", mean of {len(parts)} parts of the answer" if len(parts) > 1 else ""
    found = (
        f"no transcripts, so no WER; a linear probe on the frozen encoder reaches {100 * probe:.0f} % accuracy "
        f"where the most frequent answer has {100 * majority:.0f} % ({n} recordings, cross-validated by {by}{mean}): "
    )
    if covered >= HALF_WAY:
        say = (
            "the encoder tells the answers apart and stays frozen. Whether the language model understands it is "
            "not known, so expect little of text-only tuning until some recordings are mixed in."
        )
    else:
        say = "the encoder hardly tells the answers apart. Expect nothing of text-only tuning; train the encoder "
        say += "(encoder: lora), and record more."
    return Hearing(None, None, probe, majority, n, None, encoder, found + say)


def _cross_validated(x: np.ndarray, values: Sequence[Any], folds: np.ndarray) -> float:
    """Share of right answers, each given by what was learnt on the other folds."""
    right = 0
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        said = classify(x[outside], [values[int(i)] for i in outside], x[inside])
        right += sum(a == values[int(i)] for a, i in zip(said, inside, strict=True))
    return right / len(values)


def fold_of(sample: Sequence[Utterance], seed: int) -> tuple[np.ndarray, str]:
    """(fold per utterance, 'speaker' or 'utterance'): whole speakers where at least two are known for all rows,
    so that a probe is not praised for knowing the voice."""
    speakers = sorted({u.speaker for u in sample if u.speaker is not None})
    if len(speakers) > 1 and all(u.speaker is not None for u in sample):
        order = permutation(seed, "hearing.folds", len(speakers))
        fold = {speakers[int(s)]: k % FOLDS for k, s in enumerate(order)}
        return np.array([fold[u.speaker] for u in sample if u.speaker is not None]), "speaker"
    order = permutation(seed, "hearing.folds", len(sample))
    folds = np.empty(len(sample), dtype=int)
    folds[order] = np.arange(len(sample)) % FOLDS
    return folds, "utterance; speakers unknown" if len(speakers) < 2 else "utterance"


# ------------------------------------------------------------------------------------------------ command line


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints what was found and returns the exit code (2: cannot be checked as asked)."""
    parser = argparse.ArgumentParser(prog="attune check", description="Does the base hear these recordings?")
    parser.add_argument("data", help="data set, `folder` (its test rows are left alone) or `folder:split`")
    parser.add_argument("--base", required=True, help="base model: folder, s3:// address or hub id")
    parser.add_argument("--limit", type=int, default=100, help="recordings to transcribe")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--data-root", action="append", default=[], help="folder of data sets (repeatable)")
    parser.add_argument("--json", action="store_true", help="print the finding as JSON")
    options = parser.parse_args(arguments)
    try:
        rows, task = _asked(options.data, [*options.data_root, "."])
        model = load_base(locate_base(options.base), name=options.base)
        found = check(model, rows, task, limit=options.limit, seed=options.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(found), indent=1, ensure_ascii=False))
    else:
        print(f"{found.verdict}\nencoder: {found.encoder}")
    return 0


def _asked(ref: str, roots: Sequence[str]) -> tuple[list[Utterance], Task]:
    """The rows to check and their task: the one that most recordings have."""
    where = locate(ref, roots)
    rows = load(ref, roots)
    rows = [u for u in rows if u.split != "test"] or rows
    names = Counter(u.task for u in rows if u.audio)
    if not names:
        raise ValueError(f"{ref}: no recordings, so there is nothing to hear; a text needs no check")
    name = names.most_common(1)[0][0]
    known = builtin_tasks()
    if (where.folder / "task.yaml").is_file():
        own = read_task(where.folder / "task.yaml")
        known[own.name] = own
    if name in known:
        return rows, known[name]
    # Transcription needs no knowledge of the task; a probe does.
    if any(u.text for u in rows if u.task == name):
        return rows, TRANSCRIBE.model_copy(update={"name": name})
    raise ValueError(f"{ref}: rows name the task '{name}', which is not defined; put a task.yaml beside the manifest")


if __name__ == "__main__":
    sys.exit(main())
