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
- Mixed speech and text (`mixed`) needs the times of words, and a start from another job's artifact (`init_from`) is
  not built: both are refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trainer.fields import Share, Spec, problem
from trainer.stage import Contrastive as Comparison
from trainer.stage import CrossEntropy, Objective, Stage, Trainable, Transcribe
from trainer.strategies.budget import Budget, need

MOST = 10
"""Largest group that is made where none is said: the paper's batch of a device."""


class Contrastive(Spec):
    """Recordings and transcripts are brought together first, then the tasks are learnt."""

    paper: ClassVar[str] = "Contrastive Learning for Task-Independent SpeechLLM-Pretraining (arXiv 2412.15712)"
    name: Literal["contrastive"] = "contrastive"
    """The recipe's name."""
    pretrain: Literal["none", "asr", "contrastive", "contrastive+asr", "mixed"] = "contrastive"
    """Objective of the first part; `none` leaves it out. `mixed` is not built yet."""
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
    pretrain_epochs: float = Field(default=5.0, gt=0)
    """Passes over the recordings in the first part (the paper: 5)."""
    data_fraction: Share = Field(default=1.0, gt=0)
    """Share of the rows of every source in the second part (the paper: 1 and .1), by `data.subset_seed`."""
    tune: Literal["all", "projector"] = "all"
    """What the second part trains: all that `tuning` opens, or the projector alone (the paper) on recordings alone."""
    init_from: str | None = None
    """Start from another job's artifact; not built yet."""

    @field_validator("pretrain", "init_from")
    @classmethod
    def _built(cls, value: Any, info) -> Any:
        if value == "mixed":
            raise ValueError("mixed speech and text needs the times of words and is not built yet; use contrastive")
        if info.field_name == "init_from" and value is not None:
            raise ValueError("starting from another job's artifact is not built yet; leave init_from out")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Contrastive":
        compares = "contrastive" in self.pretrain
        unused = {"similarity", "layers", "temperature", "symmetric", "group_size"} & self.model_fields_set
        if unused and not compares:
            raise ValueError(f"pretrain {self.pretrain} compares nothing; leave {', '.join(sorted(unused))} out")
        return self

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """Pre-training on the recordings, then all sources in proportion. `rows`: usable rows per source."""
        spoken = "speech" if rows.get("speech") else "synthetic"
        many = need(rows, spoken if rows.get(spoken) else "speech", "contrastive pre-training")
        before = math.ceil(self.pretrain_epochs * many / budget.global_batch - 1e-9) if self.pretrain != "none" else 0
        sources = [s for s in ("text", "synthetic", "speech") if rows.get(s) and (s != "text" or self.tune == "all")]
        used = {s: math.ceil(self.data_fraction * rows[s] - 1e-9) for s in sources}
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
            view=Transcribe(),
            objective=self._objective(budget.global_batch),
        )
        return [pairs, tuned]

    def _objective(self, global_batch: int) -> Objective:
        if self.pretrain == "asr":
            return CrossEntropy()
        group = self.group_size or max((n for n in range(2, MOST + 1) if global_batch % n == 0), default=None)
        if group is None:
            message = f"has no divisor from 2 to {MOST} to make groups of; change it, or say recipe.group_size"
            raise problem("global_batch", message, global_batch)
        said = {k: getattr(self, k) for k in ("similarity", "layers", "temperature", "symmetric")}
        return Comparison(**said, group_size=group, answer_weight=1.0 if self.pretrain == "contrastive+asr" else 0.0)
