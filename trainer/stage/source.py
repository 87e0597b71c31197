"""Where a stage's utterances come from, and how they are shown."""

import math
from collections.abc import Iterable
from typing import Literal

Source = Literal["text", "speech", "synthetic", "extra_text", "source_text", "source_speech"]
"""`text`: labelled sentences; `speech`: labelled recordings; `synthetic`: labelled synthetic clips; `extra_text`:
further sentences of the target language; `source_text`, `source_speech`: those of the languages that lend theirs."""

Modality = Literal["text", "speech"]
MODALITY: dict[str, Modality] = {
    "text": "text",
    "speech": "speech",
    "synthetic": "speech",
    "extra_text": "text",
    "source_text": "text",
    "source_speech": "speech",
}
TEXTS: tuple[Source, ...] = ("text", "extra_text", "source_text")
"""Sentences that are read."""
RECORDINGS: tuple[Source, ...] = ("speech", "source_speech")
"""Recordings of people."""


def part(rows: int, fraction: float) -> int:
    """How many of a source's rows a fraction of them is: rounded up, and one at least where there are any."""
    return min(rows, max(1, math.ceil(fraction * rows - 1e-9)))


def hears(sources: Iterable[str]) -> bool:
    """Whether any of the sources is listened to."""
    return any(MODALITY[source] == "speech" for source in sources)


def field_of(source: str) -> str:
    """The field of a spec that gives a source."""
    return "source.data" if source.startswith("source_") else f"data.{source}"
