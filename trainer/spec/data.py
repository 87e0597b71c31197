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
    speech_rows: int | None = Field(default=None, ge=0)
    """Number of recordings instead of a fraction; nested too. 0: none."""
    text_rows: int | None = Field(default=None, ge=0)
    """Number of sentences that may be used of `text` (or `corpus`, whose recordings are then those of these sentences);
    nested, by the same order as the recordings. 0: none, and of a corpus any recordings. Default: all."""
    extra_text: str | None = None
    """Further labelled sentences of the target language (the `extra_text` source; arXiv 2509.15389: "+M"). Those that
    the test says are left out, and those that `text` has."""
    pairing: Literal["add", "replace"] = "add"
    """Whether a recording that may be used stands beside its sentence (`add`) or in its place (`replace`): of a corpus
    the same row; where text and speech are two data sets, the same words."""
    subset_seed: int = 0
    """Which rows: seed of the nested subsets, apart from the training seed."""
    trim_silence: Literal["report", "on"] = "report"
    """Silence at the ends of recordings: only reported, or cut in training and evaluation alike."""

    @model_validator(mode="after")
    def _one_place(self) -> "Data":
        if self.corpus and (self.text or self.speech):
            raise ValueError("corpus gives text and speech; leave out text and speech, or leave out corpus")
        if not (self.corpus or self.text or self.speech or self.synthetic):
            raise ValueError("give corpus, or text and/or speech and/or synthetic")
        chosen = {"speech_fraction": self.speech_fraction != 1.0, "speech_per_label": self.speech_per_label is not None,
                  "speech_rows": self.speech_rows is not None}  # fmt: skip
        if len(said := [name for name, given in chosen.items() if given]) > 1:
            raise ValueError(f"{' and '.join(said)} both choose the recordings; keep one")
        if self.text_rows is not None and not (self.corpus or self.text):
            raise ValueError("text_rows counts sentences; give corpus or text, or leave it out")
        if self.speech_rows is not None and not (self.corpus or self.speech):
            raise ValueError("speech_rows counts recordings; give corpus or speech, or leave it out")
        return self


class SourceLanguage(Spec):
    """Languages that lend their data to the target language (arXiv 2509.15389, cross-lingual): all their sentences (the
    `source_text` source) and a share of their recordings (`source_speech`)."""

    language: Language | list[Language]
    """Language of the data, or several; rows in others are refused."""
    data: str | list[str]
    """Data set whose rows have transcripts and recordings, or several."""
    speech_fraction: Share = 1.0
    """Share of the recordings of each data set that may be used; subsets are nested by `data.subset_seed`. 0: text
    alone. `data.pairing` holds here too."""

    @property
    def languages(self) -> list[str]:
        """The languages as a list."""
        return [self.language] if isinstance(self.language, str) else self.language

    @property
    def references(self) -> list[str]:
        """The data sets as a list."""
        return [self.data] if isinstance(self.data, str) else self.data

    @model_validator(mode="after")
    def _something(self) -> "SourceLanguage":
        if not self.languages or not self.references:
            raise ValueError("name at least one language and one data set, or leave source out")
        return self
