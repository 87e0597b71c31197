"""A stage is data: how long, from which sources, seen how, minimising what, with which parts and optimiser.

Strategies return lists of these; the loop executes them and knows no paper (design, section 4).
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from trainer.fields import Share, Spec

Source = Literal["text", "speech", "synthetic"]
"""`text`: labelled sentences; `speech`: labelled recordings; `synthetic`: labelled synthetic clips."""


class Curve(Spec):
    """A share that changes over a stage: straight lines between points."""

    points: list[tuple[Share, Share]]
    """(progress through the stage, share) pairs, progress rising from 0 to 1; two pairs at one progress
    make a step."""

    @field_validator("points")
    @classmethod
    def _rising(cls, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        progress = [x for x, _ in points]
        if len(points) < 2 or progress != sorted(progress) or progress[0] != 0 or progress[-1] != 1:
            raise ValueError("give at least two points with progress rising from 0 to 1")
        return points

    def cumulative(self, count: int) -> np.ndarray:
        """The curve integrated up to each of `count` equal slots of the stage, in slots; shape (count,)."""
        x, y = (np.array(v, dtype=np.float64) for v in zip(*self.points, strict=True))
        area = np.concatenate([[0.0], np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)])
        at = np.arange(1, count + 1) / count
        k = np.clip(np.searchsorted(x, at, side="left"), 1, len(x) - 1)
        width = np.where(x[k] > x[k - 1], x[k] - x[k - 1], 1.0)
        rise, run = y[k] - y[k - 1], at - x[k - 1]
        return count * (area[k - 1] + run * y[k - 1] + rise * run * run / (2 * width))


class Optimizer(Spec):
    """AdamW and the shape of its learning rate over one stage."""

    peak_lr: float = Field(default=1e-4, gt=0)
    """Highest learning rate of the language model's adapters. Default 1e-4 for LoRA, 20 times the rate that
    full fine-tuning uses in arXiv 2509.15389 (5e-6)."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after the warm-up; `wsd` holds the peak and decays over the last `decay_ratio` of the stage."""
    warmup_ratio: Share = 0.04
    """Share of the stage's steps with linear warm-up (arXiv 2509.15389, section 3: 0.04)."""
    decay_ratio: Share = 0.2
    """Share of the stage's steps that `wsd` decays over."""
    final_lr_ratio: Share = 0.0
    """Learning rate that the schedule ends at, reached one step after the last, as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW); LoRA is commonly trained without."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's denominator floor."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients of a step are scaled down to this global L2 norm."""


class Trainable(Spec):
    """Which parts learn in this stage; how each learns is the job's `tuning`."""

    lm: bool = True
    """The language model (its adapters under LoRA)."""
    projector: bool = False
    """The projector from encoder states to the language model's inputs."""
    encoder: bool = False
    """The audio encoder (its adapters under `encoder: lora`)."""


class Mixture(Spec):
    """Sampler: sources interleaved to their shares; each source in a fresh seeded order every epoch."""

    kind: Literal["mixture"] = "mixture"
    """Which sampler."""


class Plain(Spec):
    """View: the utterance as it is, as text or as speech according to its source."""

    kind: Literal["plain"] = "plain"
    """Which view."""


class Demonstrations(Spec):
    """Labelled training sentences of the same task and language before the query, as text (arXiv 2505.07731,
    section 3): never the query's own sentence, and no sentence twice."""

    least: int = Field(default=0, ge=0)
    """Fewest; how many there are is drawn evenly from `least` to `most` for every presentation."""
    most: int = Field(default=0, ge=0, le=64)
    """Most; 0: none. Fewer where the task has fewer other sentences."""
    retriever: str = "tfidf"
    """Which: `random`, or the nearest to the query's transcript: by `tfidf` (cosine over words and character trigrams;
    needs no model), or by a sentence encoder, as in the paper: its hub id (owner/name) or folder."""
    pooling: Literal["cls", "mean"] = "cls"
    """Of a sentence encoder: the first token's state (the paper) or the mean over tokens."""
    revision: str | None = None
    """Revision of a sentence encoder, pinned when the job is resolved."""
    nearest: int | None = Field(default=None, gt=0)
    """Draw them from this many nearest, anew for every presentation (an older version of the authors' code: 20);
    default: the nearest themselves."""

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


View = Annotated[Plain | Labels, Field(discriminator="kind")]


class CrossEntropy(Spec):
    """Objective: token cross-entropy on the answer."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    """Which objective."""


class Stage(Spec):
    """One part of a plan."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the stage, used in file names: lower case, digits, '-', '_'."""
    steps: int = Field(gt=0)
    """Optimiser steps; a step is `global_batch` examples."""
    mix: dict[Source, Share | Curve]
    """Share of a step's examples per source: a constant or a curve over the stage. Shares add up to 1."""
    trainable: Trainable = Trainable()
    """Parts that learn."""
    optimizer: Optimizer = Optimizer()
    """Optimiser and learning-rate shape of this stage."""
    reset_optimizer: bool = False
    """Start the stage with fresh AdamW moments."""
    sampler: Mixture = Mixture()
    """Which utterance next."""
    view: View = Plain()
    """Seen how."""
    objective: CrossEntropy = CrossEntropy()
    """Minimising what."""

    @property
    def sources(self) -> list[str]:
        """Names of the sources in the order that the plan numbers them."""
        return list(self.mix)

    @model_validator(mode="after")
    def _shares_add_up(self) -> "Stage":
        if not self.mix:
            raise ValueError("mix names no source")
        probe = np.sum([shares(c, 1000) for c in self.mix.values()], axis=0)
        worst = int(np.argmax(np.abs(probe - 1)))
        if abs(probe[worst] - 1) > 1e-6:
            raise ValueError(
                f"the shares of mix add up to {probe[worst]:.4g} at {worst / 10:.0f} % of the stage, not to 1"
            )
        return self


def cumulative(curve: float | Curve, count: int) -> np.ndarray:
    """Examples due up to and including each of `count` presentations, shape (count,) float64."""
    if isinstance(curve, Curve):
        return curve.cumulative(count)
    return curve * np.arange(1, count + 1, dtype=np.float64)


def shares(curve: float | Curve, count: int) -> np.ndarray:
    """The share in each of `count` equal slots of the stage, shape (count,)."""
    return np.diff(cumulative(curve, count), prepend=0.0)
