"""Telling a lack of memory from any other error."""

import torch

WORDS = (
    "not enough memory",
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""How a lack of memory is said where torch has no class for it: on a CPU, by the driver, by cuBLAS and cuDNN."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch.OutOfMemoryError from torch's own allocator, words elsewhere."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(words in said for words in WORDS)
