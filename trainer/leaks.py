"""What splits share (light): the same recording, text or speaker on both sides of a test, and copies within one side.

These are for people to judge: that an utterance itself is not trained on and tested, `trainer.corpus` refuses.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from trainer.manifest import Utterance, shared_speakers
from trainer.recordings import Recording, examine

Leak = tuple[int | None, Utterance | None, str, str, str, object, str]
"""(line, row, severity, code, field, value, remedy); no row: the data set as a whole."""


def leaks(
    rows: Sequence[Utterance],
    lines: Sequence[int],
    heard: Sequence[Recording | None],
    others: Mapping[str, Sequence[Utterance]],
) -> Iterator[Leak]:
    """All of it. `others`: rows by the name of their part which these rows must not share anything with, whatever split
    either calls itself; without them, rows of split `train` are one side and each other split is the other."""
    yield from _same_recording(rows, lines, heard, others)
    yield from _same_text(rows, lines, others)
    yield from _copies_of_text(rows, lines)
    yield from _speakers(rows, others)
    yield from _labels(rows, others)


def _same_recording(
    rows: Sequence[Utterance],
    lines: Sequence[int],
    heard: Sequence[Recording | None],
    others: Mapping[str, Sequence[Utterance]],
) -> Iterator[Leak]:
    first_with: dict[str, tuple[str, Utterance]] = {}
    if any(heard):
        for name, row in ((name, row) for name, part in others.items() for row in part):
            if isinstance(recording := examine(row), Recording):
                first_with.setdefault(recording.sha256, (name, row))
    for line, row, recording in zip(lines, rows, heard, strict=True):
        if recording is None:
            continue
        where, first = first_with.setdefault(recording.sha256, (row.split, row))
        if first is row:
            continue
        if where != row.split:
            remedy = f"the same recording is {first.id!r} in {where}; keep one of them"
            yield line, row, "error", "same_audio_in_splits", "audio", row.audio, remedy
        elif (first.question, first.choices) == (row.question, row.choices):  # several about one passage are meant
            remedy = f"the same recording as {first.id!r}; keep one unless it is meant to count twice"
            yield line, row, "warning", "same_audio_twice", "audio", row.audio, remedy


def _same_text(
    rows: Sequence[Utterance], lines: Sequence[int], others: Mapping[str, Sequence[Utterance]]
) -> Iterator[Leak]:
    """Held-out rows whose text is in train (and train rows whose text other splits hold out), to the letter or but for
    case, punctuation and form of characters: each by line, or one note where it is most of them.

    Commands, digits and acted sentences say the same words in every split by design; a warning per row would bury
    everything else.
    """
    elsewhere = _first_with(row for part in others.values() for row in part)
    in_train = _first_with(row for row in rows if row.split == "train")
    asked, same = 0, []
    for line, row in zip(lines, rows, strict=True):
        held_out = in_train if row.split != "train" else {}
        if not row.text or not (elsewhere or held_out):
            continue
        asked += 1
        key = plain(row)
        if (first := elsewhere.get(key) or held_out.get(key)) is not None:
            same.append((line, row, first))
    if len(same) * 2 > asked:
        remedy = f"of {asked} texts are in train and held out: right for a closed set of sentences only"
        yield None, None, "note", "closed_texts", "text", len(same), remedy
        return
    for line, row, first in same:
        if said(row) == said(first):
            remedy = f"both in train and held out ({row.split} here), so results flatter; move one of them"
            yield line, row, "warning", "same_text_in_splits", "text", row.text, remedy
        else:
            remedy = f"is {first.text!r} ({first.id} in {first.split}) but for case, punctuation or form of characters"
            yield line, row, "warning", "near_text_in_splits", "text", row.text, f"{remedy}; move one of them"


def _first_with(rows: Iterable[Utterance]) -> dict[tuple[str, str], Utterance]:
    found: dict[tuple[str, str], Utterance] = {}
    for row in rows:
        if row.text and (key := plain(row))[1]:
            found.setdefault(key, row)
    return found


def said(row: Utterance) -> tuple[str, str]:
    """What counts as the same text: language and words, whatever case and blanks."""
    return row.language, " ".join((row.text or "").casefold().split())


def plain(row: Utterance) -> tuple[str, str]:
    """What counts as nearly the same text: language and words, whatever case, punctuation, symbols and form of
    characters (NFKC). A text of nothing else keeps its own."""
    text = unicodedata.normalize("NFKC", row.text or "").casefold()
    if not text.isalnum():
        text = "".join(map(_kept, text))
    words = " ".join(text.split())
    return (row.language, words) if words else said(row)


@cache
def _kept(c: str) -> str:
    """A character as it counts: a dash is a blank; other punctuation, symbols and format characters are nothing."""
    kind = unicodedata.category(c)
    return " " if kind == "Pd" else "" if kind[0] in "PS" or kind == "Cf" else c


def _copies_of_text(rows: Sequence[Utterance], lines: Sequence[int]) -> Iterator[Leak]:
    """Sentences without a recording that stand twice in one split: each by line, or one note where it is most of them;
    always by line where their labels disagree."""
    first_with: dict[tuple, tuple[int, Utterance]] = {}
    copies, texts = [], 0
    for line, row in zip(lines, rows, strict=True):
        if not row.text or row.audio:
            continue
        texts += 1
        first_line, first = first_with.setdefault((row.task, row.split, row.choices, *said(row)), (line, row))
        if first is row:
            continue
        if row.label != first.label:
            remedy = f"is labelled {first.label!r} on line {first_line}; correct one of them"
            yield line, row, "warning", "labels_disagree", "label", row.label, remedy
        else:
            copies.append((line, row, first_line))
    if len(copies) * 2 > texts:
        remedy = f"of {texts} sentences repeat another one: right only if they are meant to count so often"
        yield None, None, "note", "repeated_texts", "text", len(copies), remedy
        return
    for line, row, first_line in copies:
        remedy = f"the same sentence as on line {first_line}; keep one unless it is meant to count twice"
        yield line, row, "warning", "same_text_twice", "text", row.text, remedy


def _sides(
    rows: Sequence[Utterance], others: Mapping[str, Sequence[Utterance]]
) -> tuple[list[Utterance], dict[str, list[Utterance]]]:
    """(what is trained on, what is held out by name)."""
    if others:
        return list(rows), {name: list(part) for name, part in others.items()}
    held_out: dict[str, list[Utterance]] = {}
    for row in rows:
        if row.split != "train":
            held_out.setdefault(row.split, []).append(row)
    return [row for row in rows if row.split == "train"], dict(sorted(held_out.items()))


def _speakers(rows: Sequence[Utterance], others: Mapping[str, Sequence[Utterance]]) -> Iterator[Leak]:
    trained, held_out = _sides(rows, others)
    for name, part in held_out.items():
        for speaker in shared_speakers(trained, part):
            remedy = f"is in train and {name}: the result says nothing about new speakers; split by speaker"
            yield None, None, "warning", "speaker_in_splits", "speaker", speaker, remedy
    if not others and (both := shared_speakers(held_out.get("dev", ()), held_out.get("test", ()))):
        remedy = "speakers are in dev and test: what is chosen on dev is chosen for them; split by speaker"
        yield None, None, "note", "speaker_in_dev_and_test", "speaker", len(both), remedy
    every = [*rows, *(row for part in others.values() for row in part)]
    if unknown := sum(row.audio is not None and row.speaker is None for row in every):
        remedy = "recordings have no speaker: intervals use utterances as blocks and may be too narrow"
        yield None, None, "note", "no_speaker", "speaker", unknown, remedy


def _labels(rows: Sequence[Utterance], others: Mapping[str, Sequence[Utterance]]) -> Iterator[Leak]:
    """Labels that are asked for and never shown: the other way round of a leak."""
    trained, held_out = _sides(rows, others)
    shown = {row.label for row in trained if isinstance(row.label, str)}
    for name, part in held_out.items() if shown else ():
        unseen = sorted({row.label for row in part if isinstance(row.label, str)} - shown)
        if unseen and len(shown) * 2 <= len(trained):  # else every row has a label of its own: answers, not classes
            remedy = f"labels of {name} are never trained on; move some of their rows to train"
            yield None, None, "note", "label_untrained", "label", ", ".join(unseen[:20]), f"{len(unseen)} {remedy}"
