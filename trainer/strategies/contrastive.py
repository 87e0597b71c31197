"""Contrastive pre-training without a task, then tuning (Züfle and Niehues, arXiv 2412.15712).

Section 3 of the paper and its code: first only the projector learns, so that a recording and its transcript, each
without a prompt, give like states in the language model (temperature .1, the transcript picks its recording, layers 0,
5, …, 25 and the last of 32, their losses summed; `+asr`: plus cross-entropy of the transcript, unweighted). Then the
tasks are tuned, on all of their examples or on 10 %. Both parts: 1e-4, cosine, warm-up .03, 5 and 2 epochs.

Departures, each a field or named here:
- The pairs are the job's own recordings; the paper trains on 400 hours and more of others, by a new projector between
  HuBERT and Llama. Here the base's own projector learns on.
- The second part trains all that `tuning` opens (`tune: projector` for the paper's).
- Recordings of the same words are no counter-examples of each other.
- Counter-examples from other ranks: none, as in the paper's code; larger groups give more.
- A common shift of all positions is not offered: the supported decoders have rotary positions, where it has no effect.
- `mixed` (text in which some words are heard; its other words are predicted) needs the times of words. With
  `contrastive+mixed` the whole mixed sequence is brought together with the transcript, both by likeness as above; the
  paper's likeness by words is not offered.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trainer.fields import Share, Spec, default, problem
from trainer.stage import Contrastive as Comparison
from trainer.stage import CrossEntropy, Interleaved, Objective, Span, Stage, Trainable, Transcribe, View, part
from trainer.strategies.budget import Budget, need

COMPARING = ("similarity", "layers", "temperature", "symmetric", "group_size")
"""Fields that mean something where pairs are compared."""
MOST = 10
"""Largest group that is made where none is said: the paper's batch of a device."""


class Contrastive(Spec):
    """Recordings and transcripts are brought together first, then the tasks are learnt."""

    paper: ClassVar[str] = "Contrastive Learning for Task-Independent SpeechLLM-Pretraining (arXiv 2412.15712)"
    name: Literal["contrastive"] = "contrastive"
    """The recipe's name."""
    pretrain: Literal["none", "asr", "contrastive", "contrastive+asr", "mixed", "contrastive+mixed"] = "contrastive"
    """Objective of the first part; `none` leaves it out. `mixed`: next words of text of which some are heard."""
    similarity: Literal["cosine", "wasserstein"] = "cosine"
    """Cosine of mean states, or minus the Sinkhorn divergence of all states."""
    layers: Literal["embedding", "all"] | list[Share] = "all"
    """Layers that are compared: the inputs, the paper's seven, or shares of the depth."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides likeness (the paper: .1)."""
    symmetric: bool = False
    """Also pick the transcript of each recording (the paper: no)."""
    group_size: int | None = Field(default=None, ge=2)
    """Pairs that are each other's counter-examples. Default: the largest divisor of `global_batch` up to the paper's
    10."""
    text_words: Span = (4, 10)
    """`mixed`: fewest and most words of a segment that is read (the paper: 4 to 10)."""
    speech_words: Span = (2, 5)
    """`mixed`: fewest and most words of a segment that is heard (the paper: 2 to 5)."""
    pretrain_epochs: float = Field(default=5.0, gt=0)
    """Passes over the recordings in the first part (the paper: 5)."""
    data_fraction: Share = Field(default=1.0, gt=0)
    """Share of the rows of every source in the second part (the paper: 1 and .1), by `data.subset_seed`."""
    tune: Literal["all", "projector"] = "all"
    """What the second part trains: all that `tuning` opens, or the projector alone (the paper) on recordings alone."""
    init_from: str | None = None
    """Said beside the recipe, for every recipe: `init_from` of the job."""

    @field_validator("init_from")
    @classmethod
    def _elsewhere(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("every recipe can start from an earlier job: say init_from beside recipe, not in it")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Contrastive":
        unused = [] if "contrastive" in self.pretrain else self._said(*COMPARING)
        if unused:
            raise ValueError(f"pretrain {self.pretrain} compares nothing; leave {', '.join(unused)} out")
        spans = [] if "mixed" in self.pretrain else self._said("text_words", "speech_words")
        if spans:
            raise ValueError(f"pretrain {self.pretrain} has no segments; leave {', '.join(spans)} out")
        return self

    def _said(self, *names: str) -> list[str]:
        """Fields that are not as they are where nothing is said: a stored spec says all of them."""
        return [name for name in names if getattr(self, name) != default(self, name)]

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """Pre-training on the recordings, then all sources in proportion. `rows`: usable rows per source."""
        spoken = "speech" if rows.get("speech") or not rows.get("synthetic") else "synthetic"
        if self.tune == "projector":
            need(rows, spoken, "tune: projector")
        many = need(rows, spoken, f"pretrain {self.pretrain}") if self.pretrain != "none" else 0
        before = math.ceil(self.pretrain_epochs * many / budget.global_batch - 1e-9)
        sources = [s for s in ("text", "synthetic", "speech") if rows.get(s) and (s != "text" or self.tune == "all")]
        used = {s: part(rows[s], self.data_fraction) for s in sources}
        total = sum(used.values())
        after = (budget.steps - before) if budget.steps else budget.steps_for(budget.epochs * total)
        if after < 1:
            message = f"pre-training takes {before} steps of {budget.steps}; lower pretrain_epochs or raise steps"
            raise problem("recipe.pretrain_epochs", message, self.pretrain_epochs)
        hears = sources != ["text"]
        tuned = Stage(
            name="tuning",
            steps=after,
            mix={s: n / total for s, n in used.items()},  # type: ignore[misc]
            trainable=budget.trainable(hears=hears) if self.tune == "all" else Trainable(lm=False, projector=True),
            optimizer=budget.optimizer,
            reset_optimizer=before > 0,
            fraction=self.data_fraction,
        )
        if not before:
            return [tuned]
        pairs = Stage(
            name="pretraining",
            steps=before,
            mix={spoken: 1.0},
            trainable=Trainable(lm=False, projector=True),
            optimizer=budget.optimizer,
            view=self._view(),
            objective=self._objective(budget.global_batch),
        )
        return [pairs, tuned]

    def _objective(self, global_batch: int) -> Objective:
        if self.pretrain in ("asr", "mixed"):
            return CrossEntropy()
        group = self.group_size or max((n for n in range(2, MOST + 1) if global_batch % n == 0), default=None)
        if group is None:
            message = f"has no divisor from 2 to {MOST} to make groups of; change it, or say recipe.group_size"
            raise problem("global_batch", message, global_batch)
        said = {k: getattr(self, k) for k in ("similarity", "layers", "temperature", "symmetric")}
        return Comparison(**said, group_size=group, answer_weight=float("+" in self.pretrain))

    def _view(self) -> View:
        if "mixed" in self.pretrain:
            return Interleaved(text_words=self.text_words, speech_words=self.speech_words)
        return Transcribe()
