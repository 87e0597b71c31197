"""NeMo manifests: `<split>_manifest.json`, one object a line (fields: see `importing/corpora/nemo.py`)."""

import json
from collections.abc import Sequence
from pathlib import Path

from attune.exporting.recordings import Recordings
from attune.importing.ours import OURS, extra
from trainer.manifest import Utterance


def write(rows: Sequence[Utterance], split: str, folder: Path, recordings: Recordings) -> list[tuple[Utterance, str]]:
    """Rows with a recording; a plain label is also NeMo's `label`."""
    left = []
    with open(folder / f"{split}_manifest.json", "w", encoding="utf-8") as file:
        for row in rows:
            if row.audio is None:
                left.append((row, "a NeMo manifest has no place for a text without recording"))
                continue
            line = {"audio_filepath": recordings.path(row), "duration": recordings.seconds(row), "lang": row.language}
            line |= {"offset": row.offset_s} if row.offset_s else {}
            line |= {"text": row.text} if row.text is not None else {}
            line |= {"speaker": row.speaker} if row.speaker else {}
            line |= {"label": row.label} if isinstance(row.label, str) else {}
            file.write(json.dumps(line | {OURS: extra(row)}, ensure_ascii=False) + "\n")
    return left
