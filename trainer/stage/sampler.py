"""Which utterance next."""

from typing import Literal

from trainer.fields import Spec


class Mixture(Spec):
    """Sampler: sources interleaved to their shares; each source in a fresh seeded order every epoch."""

    kind: Literal["mixture"] = "mixture"
    """Which sampler."""
