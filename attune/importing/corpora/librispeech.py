"""LibriSpeech: read books. English.

Layout (openslr.org/12, README.TXT of the corpus): `LibriSpeech/<subset>/<reader>/<chapter>/`, in it
`<reader>-<chapter>.trans.txt` with `<utterance> TEXT` lines and `<utterance>.flac`; `SPEAKERS.TXT` with lines
`ID | SEX | SUBSET | MINUTES | NAME`. All train-* subsets are the train split, dev and test subsets keep their names.
"""

from attune.importing.corpus import TRANSCRIBE, Corpus, files, need
from attune.importing.options import ImportOptions


def read(corpus: Corpus, _options: ImportOptions) -> None:
    """One row per utterance; the speaker is the reader."""
    corpus.task = TRANSCRIBE
    found = need(
        corpus.files("*.trans.txt"), corpus.root, "librispeech",
        "<subset>/<reader>/<chapter>/<reader>-<chapter>.trans.txt, e.g. dev-clean/84/121123/84-121123.trans.txt",
    )  # fmt: skip
    sex = _sex(corpus)
    for path in found:
        subset = path.parent.parent.parent.name
        reader = path.name.split("-")[0]
        for line, text in enumerate(corpus.lines(path), 1):
            with corpus.row(path, line):
                id, _, words = text.partition(" ")
                if not words.strip():
                    raise ValueError(f"line {text!r}: expected an utterance and its words")
                place = path.parent / f"{id}.flac"
                corpus.add(
                    path, line, audio=place if place.is_file() else place.name, text=words.strip(), id=id,
                    language="en", split="train" if subset.startswith("train") else subset, speaker=reader,
                    meta={"subset": subset, "sex": sex.get(reader)},
                )  # fmt: skip


def _sex(corpus: Corpus) -> dict[str, str]:
    """Sex of a reader by number, from SPEAKERS.TXT where it is there."""
    path = next(iter(files(corpus.root, "SPEAKERS.TXT")), None)
    rows = [line.split("|") for line in corpus.lines(path) if not line.startswith(";")] if path else []
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
