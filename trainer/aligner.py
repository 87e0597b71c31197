"""Utterances as vectors of a base's aligner (its projector): what diverse sampling goes by (arXiv 2601.12494).

A recording: the projector's output, mean over time. A sentence has none, so it is the mean of its input embeddings, in
the space that the projector maps to (inferred). Always one utterance at a time and the base alone, so that a vector
does not depend on the others; encoder states come from the cache and go into it.
"""

from collections.abc import Sequence

import numpy as np
import torch

from trainer.tokens import transcript
from trainer.utterance import Utterance
from trainer.views import SPEECH, Recordings


@torch.no_grad()
def aligned(model, recordings: Recordings, utterances: Sequence[Utterance], modality: str) -> np.ndarray:
    """Vectors of utterances, as `speech` or `text`, (utterances, width) float32. DataError for one that cannot be shown
    so; LengthError for a recording longer than the base hears."""
    if not utterances:
        return np.empty((0, 0), np.float32)
    one = _heard if modality == SPEECH else _read
    with model.base_only():
        return np.stack([one(model, recordings, u).float().mean(0).cpu().numpy() for u in utterances])


def _heard(model, recordings: Recordings, utterance: Utterance) -> torch.Tensor:
    wave = recordings.wave(utterance)
    model.tokens.audio_tokens(len(wave), name=utterance.id)  # only to refuse what would be cut
    with model.autocast():
        return model.project(model.audio_states([wave]))


def _read(model, recordings: Recordings, utterance: Utterance) -> torch.Tensor:
    ids = torch.tensor(model.tokens.text_ids(transcript(utterance), name=utterance.id), device=model.device)
    return model.stock.get_input_embeddings()(ids)
