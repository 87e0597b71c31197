"""How a stage learns: AdamW, its learning rate, and the parts that are trained."""

from pydantic import Field, model_validator

from trainer.fields import Share, Spec
from trainer.stage.curve import Shape, mean


class Optimizer(Spec):
    """AdamW and the shape of its learning rate over one stage."""

    peak_lr: float = Field(default=1e-4, gt=0)
    """Highest learning rate of the language model's adapters. Default 1e-4 for LoRA, 20 times the rate that
    full fine-tuning uses in arXiv 2509.15389 (5e-6)."""
    schedule: Shape = "cosine"
    """Shape after the warm-up; `wsd` holds the peak and decays over the last `decay_ratio` of the stage. Or a curve of
    shares of the peak: the rate of a step is the curve's mean over it."""
    warmup_ratio: Share = 0.04
    """Share of the stage's steps with linear warm-up (arXiv 2509.15389, section 3: 0.04)."""
    decay_ratio: Share = 0.2
    """Share of the stage's steps that `wsd` decays over."""
    final_lr_ratio: Share = 0.0
    """Learning rate that the schedule ends at, reached one step after the last, as a share of the peak."""
    schedule_part: tuple[int, int] | None = None
    """(first, steps): this stage is a part of a longer schedule of `steps` steps, beginning at step `first` from 0;
    default: a schedule of its own."""
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

    @model_validator(mode="after")
    def _fits(self) -> "Optimizer":
        if not isinstance(self.schedule, str):
            if self.final_lr_ratio:
                raise ValueError("a curve says itself where the rate ends; leave final_lr_ratio out")
            if mean(self.schedule) <= 0:
                raise ValueError("schedule is 0 everywhere, so nothing would be learnt; raise it")
        if self.schedule_part and not 0 <= self.schedule_part[0] < self.schedule_part[1]:
            raise ValueError("schedule_part is (first, steps), first from 0 to steps - 1")
        return self


class Trainable(Spec):
    """Which parts learn in this stage; how each learns is the job's `tuning`."""

    lm: bool = True
    """The language model (its adapters under LoRA)."""
    projector: bool = False
    """The projector from encoder states to the language model's inputs."""
    encoder: bool = False
    """The audio encoder (its adapters under `encoder: lora`)."""
