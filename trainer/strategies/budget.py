"""What a strategy is given besides its own knobs: how many rows there are and how long it may train."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainer.fields import problem
from trainer.stage import Optimizer, Plain, Source, Stage, Trainable, View, field_of, hears

SOURCES: tuple[Source, ...] = ("text", "synthetic", "speech", "extra_text", "source_text", "source_speech")


class TaskRows(NamedTuple):
    """What there is of a task."""

    rows: Mapping[str, int]
    """Usable rows by source."""
    closed: bool
    """Whether its rows are told apart by label; else its answer is open."""


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
    tasks: Mapping[str, TaskRows] = {}
    """By name, in the job's order."""

    def steps_for(self, examples: float) -> int:
        """The job's steps: as given, else as many as show `examples` examples."""
        return self.steps or max(1, math.ceil(examples / self.global_batch - 1e-9))

    def trainable(self, *, hears: bool) -> Trainable:
        """All that learns in a stage; the audio side only where there is audio to learn from."""
        return Trainable(projector=self.projector and hears, encoder=self.encoder and hears)


def need(rows: Mapping[str, int], source: str, why: str) -> int:
    """Rows of a source, or a SpecError that says which field would give it."""
    if not rows.get(source):
        field = "data.speech or data.corpus" if source == "speech" else field_of(source)
        raise problem("recipe", f"{why} needs the source '{source}'; give {field}")
    return rows[source]


def in_proportion(
    name: str, sources: Sequence[Source] | None, rows: Mapping[str, int], budget: Budget, view: View | None = None
) -> Stage:
    """One stage over the sources (None: all there are), each in proportion to its rows; `view`: other than plain."""
    chosen = sources or [s for s in SOURCES if rows.get(s)]
    missing = [s for s in chosen if not rows.get(s)]
    if len(set(chosen)) < len(chosen):
        raise problem("recipe.sources", "names a source twice; each is mixed in by its rows", ", ".join(chosen))
    if missing or not chosen:
        raise problem("recipe.sources", f"no rows in {', '.join(missing) or 'any source'}; give them in data")
    total = sum(rows[s] for s in chosen)
    return Stage(
        name=name,
        steps=budget.steps_for(budget.epochs * total),
        mix={s: rows[s] / total for s in chosen},
        trainable=budget.trainable(hears=hears(chosen)),
        optimizer=budget.optimizer,
        view=view or Plain(),
    )
