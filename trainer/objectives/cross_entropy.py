"""Token cross-entropy in fp32."""

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (tokens, vocabulary) of any float type, targets (tokens,) → loss per token (tokens,) fp32."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
