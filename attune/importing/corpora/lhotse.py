"""Lhotse cuts, and Libriheavy, which is published as such.

Layout (lhotse.readthedocs.io, "Cuts"; github.com/k2-fsa/libriheavy, README): JSON lines, plain or gzip, each a MonoCut
with `start` and `duration` in its `recording`, whose `sources` name a file, and `supervisions` with text, language and
speaker. One supervision: the row is the cut. Several: one row each, by its own times. The split is what the file's name
says (`cuts_train.jsonl.gz`). Libriheavy's texts are `custom.texts`: from the book (read here), from a recogniser;
its sets small, medium and large are the train split, the others keep their names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attune.importing.corpus import TRANSCRIBE, Corpus, need, split_in
from attune.importing.options import ImportOptions
from attune.importing.ours import OURS, restored
from attune.importing.source import is_language

TRAIN = ("small", "medium", "large")
NAMES = {
    "english": "en", "german": "de", "french": "fr", "italian": "it", "spanish": "es", "dutch": "nl", "polish": "pl",
    "portuguese": "pt", "russian": "ru", "arabic": "ar", "chinese": "zh", "mandarin": "zh", "japanese": "ja",
    "korean": "ko", "turkish": "tr", "hebrew": "he", "vietnamese": "vi", "hungarian": "hu", "czech": "cs",
}  # fmt: skip
"""Languages by the names that recipes write instead of tags."""
LAYOUT = "cuts_train.jsonl.gz: JSON lines, each a MonoCut with recording and supervisions"


def read(corpus: Corpus, _options: ImportOptions) -> None:
    """Rows of all cuts."""
    found = corpus.with_keys(corpus.files("*.jsonl", "*.jsonl.gz"), "supervisions", "recording")
    for path in need(found, corpus.root, "lhotse", LAYOUT):
        split = split_in(path.name.split(".json")[0])
        for line, cut in corpus.json_lines(path):
            with corpus.row(path, line):
                _cut(corpus, path, line, cut, split)


def read_libriheavy(corpus: Corpus, _options: ImportOptions) -> None:
    """Cuts with the book's text, casing and punctuation; recordings below the folder or --audio-root (Libri-Light)."""
    corpus.task = TRANSCRIBE
    layout = "libriheavy_cuts_<set>.jsonl.gz and the recordings of Libri-Light"
    for path in need(corpus.files("libriheavy_cuts_*.jsonl.gz", "libriheavy_cuts_*.jsonl"), corpus.root,
                     "libriheavy", layout):  # fmt: skip
        name = path.name.split(".json")[0].removeprefix("libriheavy_cuts_")
        for line, cut in corpus.json_lines(path):
            with corpus.row(path, line):
                for supervision in cut["supervisions"]:
                    texts = (supervision.get("custom") or {}).get("texts")
                    supervision["text"] = texts[0] if texts else supervision.get("text")
                    supervision["custom"] = {}  # bytes of the book and its text before: not for a manifest
                _cut(corpus, path, line, cut, "train" if name in TRAIN else name)


def _cut(corpus: Corpus, path: Path, line: int, cut: dict[str, Any], split: str | None) -> None:
    if cut.get("type", "MonoCut") != "MonoCut":
        raise ValueError(f"a {cut['type']}: export it as recordings of its own (move_to_memory or save_audios) first")
    audio = _source(cut)
    for start, duration, supervision in _parts(cut):
        custom = dict(supervision.get("custom") or {})
        ours = custom.pop(OURS, {})
        alone = len(cut["supervisions"]) == 1
        said = {
            "id": cut["id"] if alone else supervision["id"], "text": supervision.get("text") or None,
            "language": _language(supervision.get("language")), "speaker": supervision.get("speaker"),
            "split": split, "offset_s": round(start, 6), "duration_s": round(duration, 6), "meta": custom,
        }  # fmt: skip
        corpus.add(path, line, audio=audio, **(said | restored(ours)))


def _parts(cut: dict[str, Any]) -> Iterator[tuple[float, float, dict[str, Any]]]:
    """(start in the recording, duration, supervision) of every row that a cut makes."""
    start, supervisions = float(cut["start"]), cut["supervisions"]
    if not supervisions:
        raise ValueError("a cut without supervision says nothing")
    if len(supervisions) == 1:
        yield start, float(cut["duration"]), supervisions[0]
        return
    for supervision in supervisions:
        yield start + float(supervision["start"]), float(supervision["duration"]), supervision


def _source(cut: dict[str, Any]) -> str:
    """The recording's file; ValueError where it is no plain, single-channel one."""
    recording = cut["recording"]
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        kinds = ", ".join(source["type"] for source in sources)
        raise ValueError(f"a recording from {kinds}: one file is read, no command is run; save the audio first")
    channels = recording.get("channel_ids") or sources[0]["channels"]
    if len(channels) != 1:
        raise ValueError(f"a recording of {len(channels)} channels, of which the cut takes one; split them first")
    kinds = [t.get("name", "?") if isinstance(t, dict) else "?" for t in recording.get("transforms") or ()]
    if changed := [kind for kind in kinds if kind != "Resample"]:
        raise ValueError(f"a recording changed by {', '.join(changed)}; save the audio first")
    return str(sources[0]["source"])


def _language(name: str | None) -> str | None:
    """A BCP-47 tag; None where it is neither a tag nor a name that is known (then --language says it)."""
    if not name:
        return None
    if name.lower() in NAMES:
        return NAMES[name.lower()]
    return name if is_language(name) and len(name.split("-")[0]) <= 3 else None
