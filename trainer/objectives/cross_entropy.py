"""Token cross-entropy in fp32, in pieces: the logits of all supervised tokens never exist at once."""

from collections.abc import Callable

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

    return in_pieces(piece, model.supervised_states(batch), batch.targets)


def in_pieces(piece: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """`piece` of tensors that are cut alike along their first axis, its values (tokens,) end to end."""
    if len(tensors[0]) <= CHUNK:
        return piece(*tensors)
    cut = zip(*(t.split(CHUNK) for t in tensors), strict=True)
    return torch.cat([checkpoint(piece, *parts, use_reentrant=False) for parts in cut])  # type: ignore[arg-type]
