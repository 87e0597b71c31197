"""What is adapted, and how."""

from typing import Literal

from pydantic import Field

from trainer.fields import Share, Spec


class Tuning(Spec):
    """How the parts that a stage trains are trained."""

    method: Literal["lora", "full", "projector"] = "lora"
    """LoRA on the language model, full tuning of it, or the projector alone."""
    rank: int = Field(default=16, gt=0)
    """LoRA rank (arXiv 2509.15389's re-implementation: 16)."""
    alpha: float = Field(default=32.0, gt=0)
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """LoRA dropout. Default 0, so that exact optimisations stay exact."""
    targets: Literal["auto"] | list[str] = "auto"
    """Linear layers of the language model that get adapters; `auto`: all attention and MLP projections. The
    audio tower is never hit by these names."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction of each weight apart (arXiv 2402.09353). Slower: packs share all the same, but
    every layer's norm is computed in every pass."""
    encoder: Literal["frozen", "lora", "full", "auto"] = "auto"
    """Audio encoder. `auto` follows the hearing check: frozen where the base hears (WER at most 25 %), else
    LoRA in the encoder; the value and its reason are printed before training and stored."""
    encoder_lr_scale: float = Field(default=0.2, gt=0)
    """Encoder's learning rate as a multiple of `optimizer.peak_lr` (a first trial: 0.2)."""
    projector: Literal["frozen", "full"] = "full"
    """Projector in the stages that hear speech (arXiv 2509.15389 trains it in mixed stages)."""
