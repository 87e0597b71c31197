"""Minimising what: one file per loss. An objective returns the SUM over supervised tokens; the loop
divides."""

from typing import NamedTuple

import torch

from trainer.batch import Batch
from trainer.objectives.cross_entropy import token_losses
from trainer.stage import CrossEntropy


class Loss(NamedTuple):
    """What one micro-batch costs."""

    total: torch.Tensor
    """Scalar fp32, summed over supervised tokens: what is differentiated."""
    rows: torch.Tensor
    """(batch,) fp32, detached: mean loss per supervised token of each example, to find suspicious labels."""


def objective_loss(kind: CrossEntropy, model, batch: Batch) -> Loss:
    """The loss of a micro-batch under a stage's objective."""
    match kind:
        case CrossEntropy():
            tokens = token_losses(model, batch)
    sums = tokens.new_zeros(len(batch)).index_add_(0, batch.rows, tokens.detach())
    return Loss(tokens.sum(), sums / torch.bincount(batch.rows, minlength=len(batch)))
