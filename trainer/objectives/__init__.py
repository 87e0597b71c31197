"""Minimising what: one file per loss. An objective returns the SUM over supervised tokens; the loop
divides."""

from typing import NamedTuple

import torch

from trainer.batch import Batch
from trainer.objectives.contrastive import pair_losses
from trainer.objectives.cross_entropy import token_losses
from trainer.objectives.distillation import distilled_losses
from trainer.stage import Contrastive, CrossEntropy, Distillation, Objective


class Size(NamedTuple):
    """A whole step, over all its micro-batches and ranks: what means are taken over."""

    examples: int
    tokens: int
    """Supervised ones."""


class Loss(NamedTuple):
    """What one micro-batch costs."""

    total: torch.Tensor
    """Scalar fp32, summed over supervised tokens: what is differentiated."""
    rows: torch.Tensor
    """(batch,) fp32, detached: mean loss per supervised token of each example, to find suspicious labels."""
    figures: torch.Tensor | None = None
    """The objective's `figures`, each summed over the examples; None: it has none."""


def objective_loss(kind: Objective, model, batch: Batch, step: Size | None = None) -> Loss:
    """The loss of a micro-batch of a step (default: it is the whole step) under a stage's objective."""
    match kind:
        case CrossEntropy():
            return _summed(token_losses(model, batch), batch)
        case Distillation():
            return _summed(distilled_losses(kind, model, batch), batch)
        case Contrastive():
            return _with_pairs(kind, model, batch, step or Size(len(batch), len(batch.targets)))


def _summed(tokens: torch.Tensor, batch: Batch) -> Loss:
    sums = tokens.new_zeros(len(batch)).index_add_(0, batch.rows, tokens.detach())
    return Loss(tokens.sum(), sums / torch.bincount(batch.rows, minlength=len(batch)))


def _with_pairs(kind: Contrastive, model, batch: Batch, step: Size) -> Loss:
    """The loop divides by the step's tokens, so a mean over the step's pairs is multiplied by them."""
    loss = None
    if kind.answer_weight:
        loss = _summed(token_losses(model, batch) * kind.answer_weight, batch)
        if not kind.weight:
            return loss
    pairs, figures = pair_losses(kind, model, batch)
    pairs = kind.weight * pairs
    total = pairs.sum() * (step.tokens / step.examples)
    if loss is None:
        return Loss(total, pairs.detach(), figures)
    return Loss(loss.total + total, loss.rows + pairs.detach(), figures)
