"""A stage is data: how long, from which sources, seen how, minimising what, with which parts and optimiser.

Strategies return lists of these; the loop executes them and knows no paper (design, section 4).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from trainer.fields import Share, Spec
from trainer.stage.curve import AnyCurve, AnyShare, Curve, Ramp, Rest, Steps, area, cumulative, mean, shares
from trainer.stage.objective import (
    DEPTHS,
    Contrastive,
    CrossEntropy,
    Distillation,
    Divergences,
    Objective,
    Twin,
)  # fmt: skip
from trainer.stage.optimizer import Optimizer, Trainable
from trainer.stage.sampler import Balanced, Diverse, Mixture, Sampler, source_shares, task_weights
from trainer.stage.source import MODALITY, RECORDINGS, TEXTS, Modality, Source, field_of, hears, part
from trainer.stage.view import Demonstrations, Interleaved, Labels, Lookup, Naming, Plain, Span, Transcribe, View


class Stage(Spec):
    """One part of a plan."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the stage, used in file names: lower case, digits, '-', '_'."""
    steps: int = Field(gt=0)
    """Optimiser steps; a step is `global_batch` examples."""
    mix: dict[Source, AnyShare]
    """Share of a step's examples per source: a constant or a curve over the stage. Shares add up to 1; `rest`, once, is
    what the others leave."""
    trainable: Trainable = Trainable()
    """Parts that learn."""
    optimizer: Optimizer = Optimizer()
    """Optimiser and learning-rate shape of this stage."""
    reset_optimizer: bool = False
    """Start the stage with fresh AdamW moments."""
    sampler: Sampler = Mixture()
    """Which utterance next."""
    tasks: list[str] | None = Field(default=None, min_length=1)
    """Tasks whose rows the stage shows; default: all."""
    view: View = Plain()
    """Seen how."""
    objective: Objective = CrossEntropy()
    """Minimising what."""
    measure: Divergences | None = None
    """Misalignment and forgetting, where they are to be measured."""
    fraction: Share = Field(default=1.0, gt=0)
    """Share of every source's rows that the stage shows: nested subsets by `data.subset_seed`."""

    @property
    def sources(self) -> list[str]:
        """Names of the sources in the order that the plan numbers them."""
        return list(self.mix)

    @property
    def picks(self) -> bool:
        """Whether it picks among tasks; else its sources' rows come as they are."""
        return self.tasks is not None or not isinstance(self.sampler, Mixture)

    @property
    def runs_on(self) -> bool:
        """Whether the epochs of its sources run on from stage to stage; else it has epochs of its own."""
        return self.fraction == 1 and not self.picks

    def shows(self, task: str) -> bool:
        """Whether rows of a task are shown."""
        return self.tasks is None or task in self.tasks

    def kept(self, rows: int) -> int:
        """How many of a source's rows the stage shows."""
        return part(rows, self.fraction)

    @field_validator("mix", mode="before")
    @classmethod
    def _rest(cls, mix: Any) -> Any:
        if not isinstance(mix, Mapping):
            return mix
        others = [share for share in mix.values() if share != "rest"]
        if len(others) < len(mix) - 1:
            raise ValueError("rest can stand once; say the other shares")
        whole = {"kind": "rest", "of": others} if others else 1.0
        return {source: whole if share == "rest" else share for source, share in mix.items()}

    @model_validator(mode="after")
    def _shares_add_up(self) -> "Stage":
        if not self.mix:
            raise ValueError("mix names no source")
        if self.objective.twin == "transcript" and any(source in TEXTS for source in self.mix):
            raise ValueError("a contrastive objective compares recordings with transcripts; leave text out of mix")
        if self.fraction < 1 and isinstance(self.view, Labels) and self.view.demonstrations.most:
            raise ValueError("demonstrations come from all rows, so a stage that has them shows all; use fraction: 1")
        if self.picks and isinstance(self.view, Labels) and (self.view.labels, self.view.scope) == ("random", "epoch"):
            raise ValueError("scope epoch counts passes over whole sources, and this stage picks among tasks; use run")
        probe = np.sum([shares(c, 1000) for c in self.mix.values()], axis=0)
        worst = int(np.argmax(np.abs(probe - 1)))
        if abs(probe[worst] - 1) > 1e-6:
            raise ValueError(
                f"the shares of mix add up to {probe[worst]:.4g} at {worst / 10:.0f} % of the stage, not to 1"
            )
        return self


__all__ = [
    "DEPTHS", "MODALITY", "RECORDINGS", "TEXTS", "AnyCurve", "AnyShare", "Balanced", "Contrastive", "CrossEntropy",
    "Curve", "Demonstrations", "Distillation", "Divergences", "Diverse", "Interleaved", "Labels", "Lookup", "Mixture",
    "Modality", "Naming", "Objective", "Optimizer", "Plain", "Ramp", "Rest", "Sampler", "Source", "Span", "Stage",
    "Steps", "Trainable", "Transcribe", "Twin", "View", "area", "cumulative", "field_of", "hears", "mean", "part",
    "shares", "source_shares", "task_weights",
]  # fmt: skip
