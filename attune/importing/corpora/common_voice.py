"""Mozilla Common Voice: sentences read by volunteers, in many languages.

Layout (github.com/common-voice/cv-dataset, README, "Fields"): `<locale>/train.tsv`, `dev.tsv`, `test.tsv`,
`validated.tsv` (and others that nobody approved), with client_id, path, sentence, up_votes, down_votes, age, gender,
accents, locale, …; recordings in `<locale>/clips/*.mp3`. A volunteer (`client_id`) is in one of train, dev, test only.
"""

from pathlib import Path

from attune.importing.corpus import TRANSCRIBE, Corpus, known, need
from attune.importing.options import ImportOptions
from attune.importing.source import SourceError, is_language


def read(corpus: Corpus, options: ImportOptions) -> None:
    """Rows of train, dev and test; with `options.config` 'validated' also what else was validated, as train.

    Where a language has only validated.tsv, that is read, and split by volunteer.
    """
    corpus.task = TRANSCRIBE
    if options.config not in (None, "validated"):
        raise SourceError(f"--config {options.config!r}: must be validated, or left out")
    names = ("train.tsv", "dev.tsv", "test.tsv", "validated.tsv")
    found = need(corpus.files(*names), corpus.root, "common-voice", "<locale>/train.tsv and <locale>/clips/*.mp3")
    for folder in sorted({path.parent for path in found}):
        _locale(corpus, folder, {path.stem: path for path in found if path.parent == folder}, options)


def _locale(corpus: Corpus, folder: Path, tables: dict[str, Path], options: ImportOptions) -> None:
    validated = tables.pop("validated", None)
    held_out, seen = set(), set()
    for split in ("train", "dev", "test"):
        for line, row in corpus.tsv(tables[split]) if split in tables else ():
            seen.add(row["path"])
            if split != "train":
                held_out.add(row["client_id"])
            _add(corpus, tables[split], line, row, folder, split, options)
    if validated is None:
        return
    if tables and options.config is None:
        corpus.notes.append(f"{corpus.name(validated)} is not read beyond its splits; --config validated takes it in")
        return
    for line, row in corpus.tsv(validated):
        if row["path"] in seen:
            continue
        if row["client_id"] in held_out:
            corpus.skip(validated, line, "its volunteer is in dev or test")
        else:
            _add(corpus, validated, line, row, folder, "train" if tables else None, options)


def _add(
    corpus: Corpus, path: Path, line: int, row: dict[str, str], folder: Path, split: str | None, options: ImportOptions
) -> None:
    with corpus.row(path, line):
        locale = known(row.get("locale")) or options.language or folder.name
        if not is_language(locale):
            raise ValueError(f"locale {locale!r}: must be a BCP-47 tag; say --language")
        place = folder / "clips" / row["path"]
        names = ("age", "gender", "accents", "variant", "up_votes", "down_votes")
        corpus.add(
            path, line, audio=place if place.is_file() else row["path"], text=row["sentence"], id=place.stem,
            language=locale, split=split, speaker=row["client_id"], meta={name: known(row.get(name)) for name in names},
        )  # fmt: skip
