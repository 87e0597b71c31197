"""MuST-C: talks with sentence times, transcripts and translations; nothing is cut.

Layout (Di Gangi et al. 2019; github.com/facebookresearch/fairseq, `examples/speech_to_text/prep_mustc_data.py`):
`en-<xx>/data/<split>/txt/<split>.yaml`, one `{duration, offset, speaker_id, wav, …}` a line, `<split>.en` and
`<split>.<xx>` line by line beside it, `<split>/wav/*.wav`; splits train, dev, tst-COMMON, tst-HE.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from attune.importing.corpus import TRANSCRIBE, Corpus, need
from attune.importing.options import ImportOptions
from attune.importing.source import SourceError, read_text
from trainer.spec import Task

SPLITS = {"train": "train", "dev": "dev", "tst-COMMON": "test"}
"""tst-HE keeps its name."""
LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fa": "Persian", "fr": "French",
    "it": "Italian", "ja": "Japanese", "nl": "Dutch", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "tr": "Turkish", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
BLEU = {"zh": "bleu_zh", "ja": "bleu_character"}
"""Languages that write no blanks between words."""


def read(corpus: Corpus, options: ImportOptions) -> None:
    """Segments with their English transcript; with `options.target` their translation is the answer."""
    found = [path for path in corpus.files("*.yaml") if path.parent.name == "txt"]
    need(found, corpus.root, "must-c", "en-de/data/train/txt/train.yaml with train.en and train.de, and …/wav/*.wav")
    targets = {path: _targets(path) for path in found}
    target = options.target
    there = sorted({language for path in found for language in targets[path]})
    if target is not None and target not in there:
        raise SourceError(f"must-c: no translations into --target {target}; there are: {', '.join(there) or 'none'}")
    if target is None and len(there) > 1:
        raise SourceError(f"must-c: pairs with {', '.join(there)}, whose talks are the same; say one with --target")
    if target is None:
        corpus.notes.append(f"transcripts alone; say --target {there[0] if there else 'de'} to learn to translate")
    corpus.task = task(target)
    for path in found:
        if target is None or target in targets[path]:
            _segments(corpus, path, target)


def _segments(corpus: Corpus, path: Path, target: str | None) -> None:
    segments = _yaml(path)
    texts = {}
    for language in ["en", *([target] if target else [])]:
        beside = path.with_suffix(f".{language}")
        if not beside.is_file():
            raise SourceError(f"{beside}: missing; it holds a line for each of the {len(segments)} segments")
        texts[language] = list(corpus.lines(beside))
        if len(texts[language]) != len(segments):
            raise SourceError(
                f"{beside}: {len(texts[language])} lines for {len(segments)} segments of {path.name}; copy both again"
            )
    seen: Counter[str] = Counter()
    for n, segment in enumerate(segments):
        with corpus.row(path, n + 1):
            wav = segment["wav"]
            number, seen[wav] = seen[wav], seen[wav] + 1
            said = {language: texts[language][n].strip() for language in texts}
            if missing := [language for language, text in said.items() if not text]:
                raise ValueError(f"no text in {' and '.join(missing)}")
            place = path.parent.parent / "wav" / wav
            corpus.add(
                path, n + 1, audio=place if place.is_file() else wav, text=said["en"], language="en",
                label=said[target] if target else None, id=f"{Path(wav).stem}_{number}",
                split=SPLITS.get(path.stem, path.stem), speaker=str(segment["speaker_id"]),
                offset_s=float(segment["offset"]), duration_s=float(segment["duration"]),
            )  # fmt: skip


def _yaml(path: Path) -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a quarter of a million segments: seconds, not minutes
    try:
        segments = yaml.load(read_text(path), loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        raise SourceError(f"{path}{at}: not YAML ({getattr(error, 'problem', error)}); copy the file again") from None
    if not isinstance(segments, list):
        raise SourceError(f"{path}: expected a list of segments {{duration, offset, speaker_id, wav}}")
    return segments


def _targets(path: Path) -> list[str]:
    return [p.suffix[1:] for p in path.parent.glob(f"{path.stem}.*") if p.suffix not in (".yaml", ".en")]


def task(target: str | None) -> Task:
    """To transcribe, or to translate into `target`."""
    if target is None:
        return TRANSCRIBE
    words = f"Translate the speech into {LANGUAGES.get(target, target)}."
    return Task(
        name=f"translate-{target}", answer="text", instruction={"en": words}, metrics=[BLEU.get(target, "bleu"), "chrf"]
    )
