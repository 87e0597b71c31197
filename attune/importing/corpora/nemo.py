"""NeMo manifests: JSON lines with audio_filepath, duration, offset, text; `label` or `command` where they classify.

Layout (docs.nvidia.com, NeMo, "ASR datasets"; DALI's `readers.nemo_asr` on offset): paths are absolute or relative to
the manifest. The split is what the file's name says (`train_manifest.json`), the language `lang` or `source_lang`.
What `attune export nemo` adds for the way back stands under `attune`.
"""

from attune.importing.corpus import Corpus, known, need, split_in
from attune.importing.options import ImportOptions
from attune.importing.ours import OURS, restored
from attune.importing.source import is_language


def read(corpus: Corpus, options: ImportOptions) -> None:
    """One row per line; a segment of a longer recording stays one by offset and duration."""
    found = corpus.with_keys(corpus.files("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz"), "audio_filepath")
    need(found, corpus.root, "nemo", 'train_manifest.json with a line such as {"audio_filepath": …, "duration": …}')
    for path in found:
        split = split_in(path.name.split(".json")[0])
        for line, row in corpus.json_lines(path):
            with corpus.row(path, line):
                ours = row.get(OURS) or {}
                language = known(row.get("lang") or row.get("source_lang") or row.get("language"))
                if language and not is_language(language):
                    raise ValueError(f"lang {language!r}: must be a BCP-47 tag; correct it")
                label = row.get("label", row.get("command"))
                speaker = row.get("speaker", row.get("speaker_id"))
                said = {
                    "text": row.get("text") or None, "language": language, "split": split,
                    "label": None if label is None else str(label),
                    "speaker": None if speaker is None else str(speaker),
                    "offset_s": float(row.get("offset") or 0.0), "duration_s": float(row["duration"]),
                }  # fmt: skip
                place = path.parent / row["audio_filepath"]
                corpus.add(path, line, audio=place if place.is_file() else str(row["audio_filepath"]),
                           **(said | restored(ours)))  # fmt: skip
