"""Which utterance next."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.fields import Share, Spec

UNIT = 1 << 30
"""Shares of tasks are whole numbers of this size, so that they are the same on every machine."""


class Mixture(Spec):
    """Sampler: sources interleaved to their shares; each source in a fresh seeded order every epoch."""

    kind: Literal["mixture"] = "mixture"
    """Which sampler."""


class Balanced(Spec):
    """Sampler: each example's task is drawn, in shares that do not follow the rows; the rows of a task, of whichever
    source, in a fresh seeded order every epoch, which runs on through the stages (arXiv 2601.12494, uniform mixing)."""

    kind: Literal["balanced"] = "balanced"
    """Which sampler."""
    tau: Share = 0.0
    """Temperature: shares in proportion to rows^tau; 0: all tasks alike, 1: by their rows (inferred)."""
    weights: dict[str, float] | None = None
    """Weight of each task of the stage, instead of by tau."""

    @field_validator("weights")
    @classmethod
    def _positive(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        if weights is not None and not (weights and all(w > 0 for w in weights.values())):
            raise ValueError("give every task of the stage a weight above 0; for none leave it out of `tasks`")
        return weights


class Diverse(Spec):
    """Sampler: aligner-based diverse sampling (arXiv 2601.12494). A step's places go to tasks by quota, those of a task
    to its labels in turn (or to clusters where its answer is open), and each place to the row that is farthest from
    what the step has already. No row comes again before all of its label or cluster have been shown."""

    kind: Literal["diverse"] = "diverse"
    """Which sampler."""
    tau: Share = 0.0
    """Temperature of the shares of tasks, as of `balanced`."""
    task_quota: bool = True
    """Every step has its share of each task, rounded down or up; off: each example's task is drawn."""
    label_quota: bool = True
    """Inside a task its labels take turns (answer label; of json the intents, where they are closed), else its
    clusters."""
    diversity: Literal["kcenter", "none"] = "kcenter"
    """`kcenter`: of some candidates the one whose nearest in the step is farthest by cosine (inferred: greedy
    k-centre). `none`: the next in a seeded order."""
    embeddings: Literal["aligner", "random"] = "aligner"
    """Of a recording the mean of the base's projector over time, of a sentence the mean of its input embeddings
    (inferred), of length 1. `random`: the control that knows nothing."""
    candidates: int = Field(default=32, gt=0)
    """Rows drawn for each place, of those of its label or cluster that the epoch has not shown (inferred: 32)."""
    clusters: int = Field(default=8, gt=0)
    """Clusters of a task whose answer is open (k-means on the embeddings; inferred: 8)."""


Sampler = Annotated[Mixture | Balanced | Diverse, Field(discriminator="kind")]


def task_weights(sampler: Balanced | Diverse, rows: Mapping[str, int]) -> list[int]:
    """Weight of each task of `rows` (rows of every task of a stage), as whole numbers."""
    given = sampler.weights if isinstance(sampler, Balanced) else None
    wanted = [given[task] for task in rows] if given else [n**sampler.tau for n in rows.values()]
    return [max(1, round(UNIT * (w / sum(wanted)))) for w in wanted]


def source_shares(
    sampler: Balanced | Diverse, rows: Mapping[str, Mapping[str, int]], sources: Sequence[str]
) -> list[float]:
    """The share of each of `sources` that follows from the shares of tasks, each task showing its rows alike; `rows`:
    by task and source."""
    totals = {task: sum(own.values()) for task, own in rows.items()}
    weights = task_weights(sampler, totals)
    parts = [
        sum(w * rows[task].get(source, 0) / totals[task] for w, task in zip(weights, rows, strict=True))
        for source in sources
    ]
    return [part / sum(weights) for part in parts]
