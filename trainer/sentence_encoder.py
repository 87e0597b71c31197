"""Sentences as vectors by any encoder that transformers loads, for looking demonstrations up (arXiv 2505.07731)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from trainer.bases import BaseError, locate_base, pin_base
from trainer.stage import Lookup
from trainer.tokens import DataError

BATCH = 64
"""Sentences encoded at once, of alike length."""


def sentence_encoder(ask: Lookup) -> Callable[[Sequence[str]], np.ndarray]:
    """Encodes texts as (texts, hidden) float32 unit vectors: the first token's last state (`cls`, the paper) or the
    mean over tokens. On the CPU in fp32. DataError where the encoder cannot be had, or is not the one pinned."""
    if (ask.revision or "").startswith("files:") and pin_base(ask.retriever, None) != ask.revision:
        message = f"{ask.retriever} has changed since the job was resolved; submit it again"
        raise DataError(f"demonstrations.retriever: {message}")
    try:
        folder = locate_base(ask.retriever, ask.revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    except (BaseError, OSError, ValueError) as error:
        raise DataError(f"demonstrations.retriever: {ask.retriever} is no sentence encoder: {error}") from error
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        out = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            given = tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            states = model(**given).last_hidden_state
            if ask.pooling == "cls":
                pooled = states[:, 0]
            else:
                real = given["attention_mask"].unsqueeze(-1).to(states.dtype)
                pooled = (states * real).sum(1) / real.sum(1)
            out[chosen] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return out

    return encode
