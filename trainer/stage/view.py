"""Seen how: what of an utterance the model is shown and asked."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from trainer.fields import Spec


class Plain(Spec):
    """View: the utterance as it is, as text or as speech according to its source."""

    kind: Literal["plain"] = "plain"
    """Which view."""


class Transcribe(Spec):
    """View: whatever its task, the utterance is to be transcribed."""

    kind: Literal["transcribe"] = "transcribe"
    """Which view."""


class Lookup(Spec):
    """Which labelled sentences of the query's task and language stand before it (arXiv 2505.07731, section 3)."""

    retriever: str = "tfidf"
    """Which: `random`, or the nearest to the query's transcript: by `tfidf` (cosine over words and character trigrams;
    needs no model), or by a sentence encoder, as in the paper: its hub id (owner/name) or folder."""
    pooling: Literal["cls", "mean"] = "cls"
    """Of a sentence encoder: the first token's state (the paper) or the mean over tokens."""
    revision: str | None = None
    """Revision of a sentence encoder, pinned when the job is resolved."""

    @property
    def encoder(self) -> bool:
        """Whether a sentence encoder looks them up."""
        return self.retriever not in ("random", "tfidf")

    @field_validator("retriever")
    @classmethod
    def _known(cls, retriever: str) -> str:
        if retriever not in ("random", "tfidf") and "/" not in retriever:
            raise ValueError("use random, tfidf, or a sentence encoder by hub id (owner/name) or folder (./name)")
        return retriever


class Demonstrations(Lookup):
    """Labelled training sentences of the same task and language before the query, as text (arXiv 2505.07731,
    section 3): never the query's own sentence, and no sentence twice."""

    least: int = Field(default=0, ge=0)
    """Fewest; how many there are is drawn evenly from `least` to `most` for every presentation."""
    most: int = Field(default=0, ge=0, le=64)
    """Most; 0: none. Fewer where the task has fewer other sentences."""
    nearest: int | None = Field(default=None, gt=0)
    """Draw them from this many nearest, anew for every presentation (an older version of the authors' code: 20);
    default: the nearest themselves."""

    @model_validator(mode="after")
    def _fits(self) -> "Demonstrations":
        if self.least > self.most:
            raise ValueError(f"least is {self.least} and most is {self.most}; raise most")
        if self.nearest is not None and self.retriever == "random":
            raise ValueError("retriever random knows no nearest; leave nearest out, or use tfidf")
        if self.nearest is not None and self.nearest < self.most:
            raise ValueError(f"nearest is {self.nearest} and most is {self.most}; raise nearest")
        return self


class Naming(Spec):
    """Which names labels go by in prompt and answer. Answers `label`, `label_set` and `json` (its intents)."""

    labels: Literal["regular", "symbol", "random"] = "regular"
    """`regular`: their own. `symbol`: each label its own symbol, the same for the whole run. `random`: names permuted
    among the labels, while each definition stays with its meaning; one permutation serves the menu, the demonstrations
    and the query of an example (arXiv 2505.07731, section 3)."""
    names: Literal["real", "symbols"] = "real"
    """What `random` permutes: the labels' own names (the paper's text; inferred where its code differs between data
    sets) or symbols."""
    symbols: list[str] | None = Field(default=None, min_length=1)
    """Names that mean nothing, at least as many as there are labels; default: the Greek letters from alpha on, numbered
    beyond omega (the authors' code for dialogue acts)."""
    scope: Literal["example", "batch", "epoch", "run"] = "example"
    """How long one permutation of `random` holds: an example, a step's examples (`batch`), a pass over the rows of a
    source (`epoch`) or the whole `run`. The paper draws for every mini-batch, which in its code is one example."""
    pool_size: int | Literal["auto", "fresh"] = "auto"
    """Permutations that `random` draws from: `auto` is all of up to four labels, else 10 (the paper: 6 for three
    labels, 10 for eighteen); a number, as far as there are so many; `fresh`: any, at every draw."""
    identity: bool = True
    """Whether the permutation that changes nothing may be drawn (the paper: all 6 of three labels). Pools smaller than
    all there are prefer permutations that leave no label its name (inferred)."""
    pool_seed: int = 0
    """Seed of the pool, apart from the training seed, which draws from it (the authors wrote their pool by hand)."""
    demonstrations: Demonstrations = Demonstrations()
    """Labelled sentences before the query."""

    @field_validator("pool_size")
    @classmethod
    def _of_some_size(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 1000:
            raise ValueError("pool_size lies between 1 and 1000; for any permutation at every draw say fresh")
        return value


class Labels(Naming):
    """View: the utterance after demonstrations, its labels under other names."""

    kind: Literal["labels"] = "labels"
    """Which view."""


def _rising(span: tuple[int, int]) -> tuple[int, int]:
    if span[0] > span[1]:
        raise ValueError(f"is {list(span)}; the fewest come first")
    return span


Span = Annotated[tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]], AfterValidator(_rising)]
"""Fewest and most."""


class Interleaved(Spec):
    """View: running text without any question, of which segments are heard and segments read in turns; the read words
    are predicted (arXiv 2510.13632, section 3: 10–30 and 5–15 words; arXiv 2412.15712: 4–10 and 2–5). Recordings need
    the times of words; a sentence without recording is read throughout. How an utterance begins, and what becomes of
    one too short for both, is inferred: `trainer/interleaved.py`."""

    kind: Literal["interleaved"] = "interleaved"
    """Which view."""
    text_words: Span = (10, 30)
    """Fewest and most words of a segment that is read."""
    speech_words: Span = (5, 15)
    """Fewest and most words of a segment that is heard."""


View = Annotated[Plain | Transcribe | Labels | Interleaved, Field(discriminator="kind")]
