"""Where a job's labelled utterances are."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.fields import Share, Spec

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]
"""BCP-47 tag: 'it', 'fr-FR'."""


class Data(Spec):
    """Where the labelled utterances are. A reference is `folder`, `folder:split` or a manifest file; the folder
    may be `s3://bucket/prefix`, whose recordings are fetched as they are needed."""

    corpus: str | None = None
    """Data set whose rows have recordings and transcripts: its text and its speech are both used."""
    text: str | None = None
    """Data set of labelled sentences (the `text` source)."""
    speech: str | None = None
    """Data set of labelled recordings (the `speech` source)."""
    synthetic: str | None = None
    """Data set of labelled synthetic clips (the `synthetic` source)."""
    speech_fraction: Share = 1.0
    """Share of the recordings in `speech` (or of `corpus`) that may be used; subsets are nested: 2 % is part of
    5 %."""
    speech_per_label: int | None = Field(default=None, gt=0)
    """Recordings per label instead of a fraction (k per class); nested too."""
    subset_seed: int = 0
    """Which recordings: seed of the nested subsets, apart from the training seed."""
    trim_silence: Literal["report", "on"] = "report"
    """Silence at the ends of recordings: only reported, or cut in training and evaluation alike."""

    @model_validator(mode="after")
    def _one_place(self) -> "Data":
        if self.corpus and (self.text or self.speech):
            raise ValueError("corpus gives text and speech; leave out text and speech, or leave out corpus")
        if not (self.corpus or self.text or self.speech or self.synthetic):
            raise ValueError("give corpus, or text and/or speech and/or synthetic")
        if self.speech_per_label is not None and self.speech_fraction != 1.0:
            raise ValueError("speech_fraction and speech_per_label both choose the recordings; keep one")
        return self


class SourceLanguage(Spec):
    """Cross-lingual transfer: the language that has speech. Not built yet: refused by name."""

    language: Language
    """Language of the source data."""
    data: str
    """Data set of the source language."""
