"""Contrastive alignment of recordings and transcripts (arXiv 2412.15712, section 3), per layer of the language model.

Neither side has a prompt. Departure, named: two recordings of the same words are no counter-examples of each other,
for corpora of commands and requests repeat their sentences. More counter-examples come from larger groups, not from
other ranks; a group lies on one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from trainer.batch import Batch
from trainer.example import Example
from trainer.objectives.sinkhorn import divergences
from trainer.stage import Contrastive


def pair_losses(kind: Contrastive, model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each example's pair (batch,), summed over layers; and `kind.figures`, each summed over examples.

    The examples of a micro-batch are whole groups in their order."""
    assert len(batch) % kind.group_size == 0, "a group was cut"
    audio = model.tokens.audio_id
    texts = [e.twin for e in batch.examples if e.twin is not None]
    heard = [_heard(e, audio) for e in batch.examples]
    depths = kind.depths(len(model.language_model.layers))
    states = model.layer_states([*texts, *heard], depths)
    losses, figures = [], torch.zeros(len(kind.figures), device=batch.ids.device)
    for start in range(0, len(batch), kind.group_size):
        members = range(start, start + kind.group_size)
        repeated = _repeated([texts[i].prompt for i in members], batch.ids.device)
        sides = [states[i] for i in members], [states[len(batch) + i] for i in members]
        total = torch.zeros((), device=batch.ids.device)
        for n in range(len(depths)):
            text, speech = ([_wide(piece[n]) for piece in side] for side in sides)
            scores = (likeness(kind, text, speech) / kind.temperature).masked_fill(repeated, -torch.inf)
            total = total + _picked(scores, symmetric=kind.symmetric)
        losses.append(total)
        right = scores.argmax(1) == torch.arange(len(members), device=scores.device)
        alike = F.cosine_similarity(_means(text), _means(speech))
        figures += torch.stack([x.detach().sum().float() for x in (total, right, alike)])
    return torch.cat(losses), figures


def _heard(example: Example, audio: int) -> Example:
    """The recording alone, without its prompt; running text with all that is heard and read."""
    if example.cuts or audio not in example.prompt:
        return replace(example, prompt=example.prompt + example.answer, answer=(), twin=None, context=())
    return Example(example.name, (audio,) * example.prompt.count(audio), (), example.wave, heard=example.heard)


def likeness(kind: Contrastive, text: Sequence[torch.Tensor], speech: Sequence[torch.Tensor]) -> torch.Tensor:
    """States (tokens, width) of each transcript and each recording → (transcripts, recordings)."""
    if kind.similarity == "cosine":
        return F.normalize(_means(text), dim=-1) @ F.normalize(_means(speech), dim=-1).T
    text, speech = ([F.normalize(states, dim=-1) for states in side] for side in (text, speech))
    return -divergences(text, speech, kind.blur)


def _means(states: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([s.mean(0) for s in states])


def _wide(states: torch.Tensor) -> torch.Tensor:
    return states if states.dtype == torch.float64 else states.float()


def _repeated(words: Sequence[tuple[int, ...]], device) -> torch.Tensor:
    """True at [i, j] where j is another recording of the words of i."""
    same = torch.tensor([[a == b for b in words] for a in words], device=device)
    return same & ~torch.eye(len(words), dtype=torch.bool, device=device)


def _picked(scores: torch.Tensor, *, symmetric: bool) -> torch.Tensor:
    """Cross-entropy of each pair's own among the others: (pairs, pairs) → (pairs,)."""
    own = torch.arange(len(scores), device=scores.device)
    loss = F.cross_entropy(scores, own, reduction="none")
    return (loss + F.cross_entropy(scores.T, own, reduction="none")) / 2 if symmetric else loss
