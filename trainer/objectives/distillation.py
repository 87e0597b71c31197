"""Cross-modal distillation (arXiv 2510.13632, section 3): the base on the text teaches the tuned model on the speech.

The teacher is the same base with its adapters off, so no second copy is in memory. What is predicted, and from what, is
the view's to say: the answer behind one recording, or, as in the paper, the read words of text that is partly heard.
"""

import torch
import torch.nn.functional as F

from trainer.batch import Batch
from trainer.objectives.cross_entropy import cross_entropy, in_pieces, token_losses
from trainer.stage import Distillation


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of next-token distributions in nats: logits (tokens, vocabulary) of any float type → (tokens,) fp32,
    or fp64 from fp64."""
    p, q = (F.log_softmax(x if x.dtype == torch.float64 else x.float(), -1) for x in (p, q))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def distilled_losses(kind: Distillation, model, batch: Batch) -> torch.Tensor:
    """alpha * KL(teacher ‖ student) + (1 - alpha) * cross-entropy per supervised token of a pack (supervised,)."""
    if kind.alpha == 0:
        return token_losses(model, batch)

    def piece(states, taught, targets):
        said = model.logits(states)
        student, teacher = said / kind.temperature, model.logits(taught) / kind.temperature
        pair = (teacher, student) if kind.direction == "forward" else (student, teacher)
        loss = kind.alpha * kind.temperature**2 * kl(*pair)
        return loss if kind.alpha == 1 else loss + (1 - kind.alpha) * cross_entropy(said, targets)

    states = model.supervised_states(batch)
    return in_pieces(piece, model, states, teacher_states(model, batch), batch.targets)


@torch.no_grad()
def teacher_states(model, batch: Batch) -> torch.Tensor:
    """The base's final states over the twins of a pack's examples, at its supervised tokens: (supervised, width)."""
    with model.base_only():
        return twin_states(model, batch)


def twin_states(model, batch: Batch) -> torch.Tensor:
    """The model's final states over the twins of a pack's examples, in the order of the pack's supervised tokens."""
    twins = model.collate([e.twin or e for e in batch.examples])
    places = torch.empty_like(batch.rows)
    places[batch.rows.argsort(stable=True)] = twins.rows.argsort(stable=True)
    assert torch.equal(twins.targets[places], batch.targets), "twins answer differently"
    return model.supervised_states(twins)[places]
