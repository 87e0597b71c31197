"""Minimising what, and what is measured beside it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.fields import Share, Spec

Twin = Literal["asked", "transcript"]
"""What an objective holds an example against: the same question about the transcript, or the transcript alone."""
DEPTHS = (0, 5 / 32, 10 / 32, 15 / 32, 20 / 32, 25 / 32, 1)
"""Layers {0, 5, 10, 15, 20, 25, last} of 32 as shares of a language model's depth."""


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
    blur: float = Field(default=0.05, gt=0, le=2)
    """Sinkhorn divergence: square root of its regularisation (the paper's code: .05, with squared distances), at most
    the diameter of the sphere that states lie on."""
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
