"""Lhotse cuts: `cuts_<split>.jsonl`, one MonoCut a line with its recording (fields: `importing/corpora/lhotse.py`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attune.exporting.recordings import Recordings
from attune.importing.ours import OURS, extra
from trainer.manifest import Utterance


def write(rows: Sequence[Utterance], split: str, folder: Path, recordings: Recordings) -> list[tuple[Utterance, str]]:
    """Rows with a recording of one channel: a MonoCut takes one, we average all."""
    left = []
    with open(folder / f"cuts_{split}.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            if row.audio is None:
                left.append((row, "a Lhotse cut has no place for a text without recording"))
            elif (channels := recordings.info(row).channels) > 1:
                left.append((row, f"a MonoCut takes one channel, and the recording has {channels}; mix it down first"))
            else:
                file.write(json.dumps(_cut(row, recordings), ensure_ascii=False) + "\n")
    return left


def _cut(row: Utterance, recordings: Recordings) -> dict[str, Any]:
    info, path = recordings.info(row), recordings.path(row)
    seconds, name = recordings.seconds(row), Path(path).stem
    supervision = {
        "id": row.id, "recording_id": name, "start": 0.0, "duration": seconds, "channel": 0, "text": row.text,
        "language": row.language, "speaker": row.speaker, "custom": {OURS: extra(row)},
    }  # fmt: skip
    return {
        "id": row.id, "start": row.offset_s, "duration": seconds, "channel": 0,
        "supervisions": [{key: value for key, value in supervision.items() if value is not None}],
        "recording": {
            "id": name, "sources": [{"type": "file", "channels": [0], "source": path}], "sampling_rate": info.rate,
            "num_samples": round(info.duration_s * info.rate), "duration": info.duration_s, "channel_ids": [0],
        },
        "type": "MonoCut",
    }  # fmt: skip
