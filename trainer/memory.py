"""Telling a lack of memory from any other error."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError on a GPU; on a CPU torch says it in words."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error)
    return "not enough memory" in words or "can't allocate memory" in words
