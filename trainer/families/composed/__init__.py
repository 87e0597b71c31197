"""Speech language models put together from parts: encoder(s) + projector + causal language model."""

from trainer.families.composed.family import Composed

__all__ = ["Composed"]
