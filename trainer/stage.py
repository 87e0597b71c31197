"""A stage is data: how long, from which sources, seen how, minimising what, with which parts and optimiser.

Strategies return lists of these; the loop executes them and knows no paper (design, section 4).
"""

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from trainer.fields import Share, Spec

Source = Literal["text", "speech", "synthetic"]
"""`text`: labelled sentences; `speech`: labelled recordings; `synthetic`: labelled synthetic clips."""


Twin = Literal["asked", "transcript"]
"""What an objective holds an example against: the same question about the transcript, or the transcript alone."""
DEPTHS = (0, 5 / 32, 10 / 32, 15 / 32, 20 / 32, 25 / 32, 1)
"""Layers {0, 5, 10, 15, 20, 25, last} of 32 as shares of a language model's depth."""


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


class Transcribe(Spec):
    """View: whatever its task, the utterance is to be transcribed."""

    kind: Literal["transcribe"] = "transcribe"
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


View = Annotated[Plain | Transcribe | Labels, Field(discriminator="kind")]


class _Objective(Spec):
    """What all objectives say of themselves."""

    @property
    def twin(self) -> Twin | None:
        """What each example is held against: nothing."""
        return None

    @property
    def unit(self) -> int:
        """Examples in a row that must be computed together."""
        return 1

    @property
    def figures(self) -> tuple[str, ...]:
        """What is told of every step besides the loss, as means over its examples."""
        return ()


class CrossEntropy(_Objective):
    """Objective: token cross-entropy on the answer."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    """Which objective."""


class Distillation(_Objective):
    """Objective: the base reads the transcript and teaches the tuned model that hears the recording: at every token of
    the answer, alpha times the divergence of their next-token distributions plus 1 - alpha times cross-entropy
    (arXiv 2510.13632, section 3). A text example is its own transcript, which keeps the tuned model near the base."""

    kind: Literal["distillation"] = "distillation"
    """Which objective."""
    alpha: Share = 1.0
    """Weight of the divergence (the paper's method: 1); 0 is cross-entropy, bit for bit."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward`: KL(base ‖ tuned), inferred (the paper does not say); `reverse`: KL(tuned ‖ base)."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are softened by it and the divergence multiplied by its square (inferred: 1)."""

    @property
    def twin(self) -> Twin | None:
        """The same question about the transcript, where there is a teacher."""
        return "asked" if self.alpha else None


class Contrastive(_Objective):
    """Objective: a recording and its transcript, each alone through the language model, are more alike than the
    transcript and the other recordings of its group (arXiv 2412.15712, section 3): for each pair the cross-entropy of
    picking its recording, by likeness / temperature, summed over layers.

    The value is `weight` times the mean over the step's pairs plus `answer_weight` times the usual mean over the step's
    answer tokens. Departure: recordings of the same words in a group are left out instead of counted as others."""

    kind: Literal["contrastive"] = "contrastive"
    """Which objective."""
    similarity: Literal["cosine", "wasserstein"] = "cosine"
    """Likeness: cosine of the mean states, or minus the Sinkhorn divergence of all states, scaled to length 1."""
    layers: Literal["embedding", "all"] | list[Share] = "all"
    """Where states are compared: at the language model's inputs; at layers 0, 5, 10, 15, 20, 25 and the last of 32, as
    shares of the depth; or at the shares given. The last is taken after the final norm."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides likeness (the paper's code: .1)."""
    blur: float = Field(default=0.05, gt=0)
    """Sinkhorn divergence: square root of its regularisation (the paper's code: .05, with squared distances)."""
    symmetric: bool = False
    """Also pick the transcript of each recording, half and half (the paper's code: only the recording)."""
    group_size: int = Field(default=8, ge=2)
    """Presentations in a row that are each other's counter-examples; a divisor of `global_batch` (the paper: 10)."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the comparison; 0 leaves cross-entropy, bit for bit."""
    answer_weight: float = Field(default=0.0, ge=0)
    """Weight of cross-entropy on the answer (contrastive + ASR: 1, with the view `transcribe`)."""

    @model_validator(mode="after")
    def _something(self) -> "Contrastive":
        if not (self.weight or self.answer_weight):
            raise ValueError("weight and answer_weight are both 0, so nothing would be learnt; raise one")
        if self.layers == []:
            raise ValueError("layers names none; give shares of the depth, 'embedding' or 'all'")
        return self

    @property
    def twin(self) -> Twin | None:
        """The transcript alone, where it is compared."""
        return "transcript" if self.weight else None

    @property
    def unit(self) -> int:
        """The group."""
        return self.group_size if self.weight else 1

    @property
    def figures(self) -> tuple[str, ...]:
        """Loss of the pairs; how often the right recording is the most alike (retrieval@1); cosine of the pairs' mean
        states. The last two at the deepest of the layers."""
        return ("contrastive", "retrieval", "alignment") if self.weight else ()

    def depths(self, count: int) -> list[int]:
        """The layers that are compared, of a language model of `count`; 0: its inputs."""
        said = {"embedding": [0.0], "all": DEPTHS}
        return sorted({round(s * count) for s in (said[self.layers] if isinstance(self.layers, str) else self.layers)})


Objective = Annotated[CrossEntropy | Distillation | Contrastive, Field(discriminator="kind")]


class Divergences(Spec):
    """Misalignment and forgetting (arXiv 2510.13632), measured while training on the first `utterances` of a seeded
    order of the test set, labels under their own names; nothing is decided by them.

    Both are means per token of the answers: M of KL(tuned on the transcript ‖ tuned on the recording), F of
    KL(base on the transcript ‖ tuned on the transcript)."""

    every: int = Field(gt=0)
    """Steps between two measurements; the last step of the stage always has one."""
    utterances: int = Field(default=64, gt=0)
    """Utterances with recording and transcript (inferred: twice the 32 that the project asks of a cluster)."""


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

    def kept(self, rows: int) -> int:
        """How many of a source's rows the stage shows."""
        return math.ceil(self.fraction * rows - 1e-9)

    @model_validator(mode="after")
    def _shares_add_up(self) -> "Stage":
        if not self.mix:
            raise ValueError("mix names no source")
        if self.objective.twin == "transcript" and "text" in self.mix:
            raise ValueError("a contrastive objective compares recordings with transcripts; leave text out of mix")
        if self.fraction < 1 and isinstance(self.view, Labels) and self.view.demonstrations.most:
            raise ValueError("demonstrations come from all rows, so a stage that has them shows all; use fraction: 1")
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
