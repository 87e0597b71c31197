"""Token cross-entropy in fp32, in pieces: the logits of all supervised tokens never exist at once."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainer.batch import Batch

CHUNK = 1024
"""Supervised tokens of one piece; its logits are made again in the backward pass where there is more than one."""


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (tokens, vocabulary) of any float type, targets (tokens,) → loss per token (tokens,) fp32 or fp64."""
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="none")


def token_losses(model, batch: Batch) -> torch.Tensor:
    """Loss per supervised token of a pack (supervised,)."""

    def piece(states, targets):
        return cross_entropy(model.logits(states), targets)

    states = model.supervised_states(batch)
    if len(states) <= CHUNK:
        return piece(states, batch.targets)
    cut = zip(states.split(CHUNK), batch.targets.split(CHUNK), strict=True)
    return torch.cat([checkpoint(piece, *pair, use_reentrant=False) for pair in cut])  # type: ignore[arg-type]
