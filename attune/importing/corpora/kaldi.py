"""Kaldi data folders: wav.scp, text, and where they are there segments, utt2spk, utt2lang.

Layout (kaldi-asr.org/doc/data_prep.html): every line is a key and a value; `segments` has utterance, recording, start
and end in seconds (-1: to the end), without it an utterance is a recording. A `wav.scp` may name a command that ends in
`|`: nothing is run here, such recordings are left out. Folders named train, dev, test below the given one are splits.
"""

from pathlib import Path

from attune.importing.corpus import Corpus, need
from attune.importing.options import ImportOptions
from attune.importing.source import is_language
from attune.importing.split import split_name


def read(corpus: Corpus, _options: ImportOptions) -> None:
    """One row per utterance; segments of a recording stay segments."""
    for scp in need(corpus.files("wav.scp"), corpus.root, "kaldi", "wav.scp and text, e.g. data/train/wav.scp"):
        _folder(corpus, scp)


def _folder(corpus: Corpus, scp: Path) -> None:
    folder = scp.parent
    recordings = _table(corpus, scp)
    texts = _table(corpus, folder / "text")
    speakers, languages = _table(corpus, folder / "utt2spk"), _table(corpus, folder / "utt2lang")
    segments = folder / "segments"
    path = segments if segments.is_file() else scp
    rows = _table(corpus, segments) if path == segments else {key: (n, key) for key, (n, _) in recordings.items()}
    split = split_name(folder.name) if folder != corpus.root else None
    if folder != corpus.root and split is None:
        corpus.notes.append(f"{corpus.name(folder)}: no name of a split, so its rows are split here")
    for utterance, (line, value) in rows.items():
        with corpus.row(path, line):
            recording, *times = value.split()
            if path == segments and len(times) < 2:
                raise ValueError(f"segment {value!r}: expected a recording, its start and its end in seconds")
            start, end = (float(times[0]), float(times[1])) if times else (0.0, -1.0)
            if end != -1 and end <= start:
                raise ValueError(f"segment {value!r}: the end must come after the start")
            if recording not in recordings:
                raise ValueError(f"recording {recording!r} is not in wav.scp")
            language = languages.get(utterance, (0, None))[1]
            if language and not is_language(language):
                raise ValueError(f"utt2lang {language!r}: must be a BCP-47 tag; correct it")
            corpus.add(
                path, line, audio=_audio(recordings[recording][1], folder), id=utterance, split=split,
                text=texts.get(utterance, (0, None))[1], speaker=speakers.get(utterance, (0, None))[1],
                language=language, offset_s=start, duration_s=None if end == -1 else round(end - start, 6),
            )  # fmt: skip
    for utterance, (line, _) in texts.items():
        if utterance not in rows:
            corpus.skip(folder / "text", line, f"utterance {utterance!r} has no recording")


def _audio(value: str, folder: Path) -> Path | str:
    """The file that an entry of wav.scp names."""
    if value.endswith("|"):
        raise ValueError(f"wav.scp names the command {value!r}: nothing is run; write its output to a file first")
    if value.rpartition(":")[2].isdigit() and ":" in value:
        raise ValueError(f"wav.scp names a place in an archive, {value!r}; copy it to a file first (wav-copy)")
    return place if (place := folder / value).is_file() else value


def _table(corpus: Corpus, path: Path) -> dict[str, tuple[int, str]]:
    """(line, value) by key; empty where there is no such file. A second line with the same key is left out."""
    found: dict[str, tuple[int, str]] = {}
    for line, text in enumerate(corpus.lines(path) if path.is_file() else (), 1):
        key, _, value = text.strip().replace("\t", " ").partition(" ")
        if not key:
            continue
        if key in found:
            corpus.skip(path, line, f"key {key!r} appears twice")
        else:
            found[key] = (line, value.strip())
    return found
