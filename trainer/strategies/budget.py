"""What a strategy is given besides its own knobs: how many rows there are and how long it may train."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from trainer.fields import problem
from trainer.stage import Optimizer, Trainable


class Budget(NamedTuple):
    """Length and defaults of a job, the same for every strategy."""

    global_batch: int
    """Examples per optimiser step."""
    steps: int | None
    """Optimiser steps of the whole job; None: from `epochs`."""
    epochs: float
    """Passes over the abundant source, where `steps` is not given."""
    optimizer: Optimizer
    """Optimiser of every stage, before a strategy changes its own."""
    projector: bool
    """Whether the projector learns in stages that hear speech."""
    encoder: bool
    """Whether the encoder learns in stages that hear speech."""

    def steps_for(self, examples: float) -> int:
        """The job's steps: as given, else as many as show `examples` examples."""
        return self.steps or max(1, math.ceil(examples / self.global_batch - 1e-9))

    def trainable(self, *, hears: bool) -> Trainable:
        """All that learns in a stage; the audio side only where there is audio to learn from."""
        return Trainable(projector=self.projector and hears, encoder=self.encoder and hears)


def need(rows: Mapping[str, int], source: str, why: str) -> int:
    """Rows of a source, or a SpecError that says which field would give it."""
    if not rows.get(source):
        field = "data.speech or data.corpus" if source == "speech" else f"data.{source}"
        raise problem("recipe", f"{why} needs the source '{source}'; give {field}")
    return rows[source]
