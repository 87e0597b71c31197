"""Token cross-entropy in fp32, in pieces: the logits of all supervised tokens never exist at once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from trainer.batch import Batch

IGNORED = -100
"""Target of a token that nothing is asked of."""


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (tokens, vocabulary) of any float type, targets (tokens,) → loss per token (tokens,) fp32 or fp64; 0 where
    the target is `IGNORED`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="none")


def token_losses(model, batch: Batch) -> torch.Tensor:
    """Loss per supervised token of a pack (supervised,)."""

    def piece(states, targets):
        return cross_entropy(model.logits(states), targets)

    if model.execution.supervised_only:
        return in_pieces(piece, model, model.supervised_states(batch), batch.targets)
    everywhere = torch.full_like(batch.ids, IGNORED).index_copy(0, batch.at, batch.targets)
    return in_pieces(piece, model, model.final_states(batch), everywhere)[batch.at]


def in_pieces(piece: Callable[..., torch.Tensor], model, *tensors: torch.Tensor) -> torch.Tensor:
    """`piece` of tensors that are cut alike along their first axis as the model's execution says, its values (tokens,)
    end to end."""
    chunk = model.execution.chunk
    if len(tensors[0]) <= (chunk or len(tensors[0])):
        return piece(*tensors)
    cut = zip(*(t.split(chunk) for t in tensors), strict=True)
    return torch.cat([checkpoint(piece, *parts, use_reentrant=False) for parts in cut])  # type: ignore[arg-type]
