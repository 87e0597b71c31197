"""What may be said about a source instead of inferred."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attune.importing.split import SHARES


@dataclass(frozen=True)
class ImportOptions:
    """What may be said instead of inferred."""

    language: str | None = None
    """BCP-47 tag of every row; needed unless a column gives it."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Role → column (audio, text, label, choices, intent, slots, speaker, split, language, id, offset_s, duration_s);
    None: there is none. `slots` may name several columns, separated by commas: one slot type each."""
    answer: str | None = None
    """json | label | label_set | choice | text."""
    task: str | None = None
    """Name of the task; default by its answer form."""
    instruction: str | None = None
    """What the model is asked, in English."""
    audio_root: str | Path | None = None
    """Folder of the recordings; default: where the source lies."""
    speaker_pattern: str | None = None
    """Regular expression for the file name (without folder) whose first group is the speaker."""
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    """Shares of train, dev and test where the source has no split."""
    seed: int = 0
    """Seed of the split."""
    link: bool = False
    """Refer to the recordings where they are (absolute paths) instead of copying them."""
    encoding: str | None = None
    """Encoding of a text source; default UTF-8 or what its byte order mark says."""
    sheet: str | None = None
    """Sheet of a workbook; default the first."""
    target: str | None = None
    """Language to translate into (MuST-C)."""
    config: str | None = None
    """Which of a corpus's published configurations (ITALIC, Common Voice)."""
