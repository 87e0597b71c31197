"""Misalignment and forgetting of a tuned model (arXiv 2510.13632, section 2), as means per predicted token."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from trainer.objectives.cross_entropy import in_pieces
from trainer.objectives.distillation import kl, teacher_states, twin_states
from trainer.views import Example


@torch.no_grad()
def divergences(model, examples: Sequence[Example], budget: int) -> tuple[np.ndarray, np.ndarray]:
    """KL(base on the transcript ‖ tuned on the recording) of each example with a twin, in nats, summed over its
    predicted tokens, and their number: two arrays (examples,). Dropout is off meanwhile."""
    training = model.module.training
    model.train(False)
    sums, count = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    for indices in model.micro_batches(examples, budget)[0]:
        batch = model.collate([examples[i] for i in indices])
        heard, taught = model.supervised_states(batch), teacher_states(model, batch)
        found = in_pieces(lambda p, q: kl(model.logits(p), model.logits(q)), model, taught, heard)
        own = np.array(indices)[batch.rows.cpu().numpy()]
        np.add.at(sums, own, found.double().cpu().numpy())
        np.add.at(count, own, 1)
    model.train(training)
    return sums, count


class Measured(NamedTuple):
    """Divergences in nats per predicted token, and how many tokens they are the means of."""

    misalignment: float
    """M: KL(tuned on the transcript ‖ tuned on the recording)."""
    forgetting: float
    """F: KL(base on the transcript ‖ tuned on the transcript). The base is the teacher: adapters off."""
    predictions: int


@torch.no_grad()
def measure(model, examples: Sequence[Example], budget: int) -> Measured:
    """M and F over examples with twins, in micro-batches of up to `budget` tokens. Dropout is off meanwhile."""
    training = model.module.training
    model.train(False)
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    for indices in model.micro_batches(examples, budget)[0]:
        batch = model.collate([examples[i] for i in indices])
        heard, read, base = model.supervised_states(batch), twin_states(model, batch), teacher_states(model, batch)
        for n, (p, q) in enumerate(((read, heard), (base, read))):
            found = in_pieces(lambda p, q: kl(model.logits(p), model.logits(q)), model, p, q)
            sums[n] += found.double().sum().cpu()
        count += len(batch.targets)
    model.train(training)
    misalignment, forgetting = (sums / count).tolist()
    return Measured(misalignment, forgetting, count)
