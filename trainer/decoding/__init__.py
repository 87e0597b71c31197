"""Answers of a model to a batch of prompts, with the family's own embeddings: greedy or beam search, free or limited
to the answers that a task allows."""

from collections.abc import Sequence

import torch

from trainer.decoding.beam import beam
from trainer.decoding.constrain import Constraint, constraint_of
from trainer.decoding.greedy import greedy
from trainer.decoding.prompts import Prompts
from trainer.views import Example

__all__ = ["Constraint", "constraint_of", "generate"]


@torch.inference_mode()
def generate(
    model,
    examples: Sequence[Example],
    *,
    beams: int = 1,
    max_new_tokens: int = 64,
    constraint: Constraint | None = None,
) -> list[list[int]]:
    """Answer ids per example, without the end token. Left padding and positions that count real tokens only:
    an example answers alike whoever else is in the batch (to rounding of the logits)."""
    model.train(False)
    prompts = Prompts(model, examples)
    if beams == 1:
        return greedy(prompts, max_new_tokens, constraint)
    return beam(prompts, beams, max_new_tokens, constraint)
