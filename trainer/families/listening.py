"""From recordings to encoder states, the same for all families.

What needs no weights (decoding, resampling, mel frames) is made by `listen`, which threads may do ahead of a step;
states of a frozen encoder come from a cache, and a recording whose states are known is neither decoded nor framed.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers

from trainer.adapter import checksum
from trainer.example import Clip, Example, Heard, wave_key
from trainer.features import FeatureCache, alike
from trainer.spec import Execution

Wave = np.ndarray | Clip | Heard
"""A recording (samples,) at the family's rate, or what was made of it ahead."""


class Listening(ABC):
    """The side of a family that hears. Its attributes are those of `trainer.families.family.Family`."""

    cache: FeatureCache
    execution: Execution
    encoder_is_base: bool
    device: torch.device
    lm_head: Any
    audio_tower: Any

    # ---- what a family says

    @abstractmethod
    def prepare(self) -> None:
        """Makes what `frames` needs (a feature extractor); again where the window changes."""

    @abstractmethod
    def frames(self, wave: np.ndarray) -> list[np.ndarray]:
        """What the encoder gets of a recording (samples,), in as many arrays as the family likes. Threads ask for it:
        nothing in it depends on weights, or on what was asked before."""

    @abstractmethod
    def states_of(self, heard: Sequence[Heard]) -> list[torch.Tensor]:
        """Encoder states of recordings, from their frames → (states, width) per recording. What a recording gives does
        not depend on the others."""

    def recipe(self) -> str:
        """What encoder states depend on besides weights and wave: the feature extractor's settings, the window."""
        return ""

    # ---- up to the encoder

    @property
    def keeps(self) -> bool:
        """Whether encoder states are kept: the encoder is the base's own."""
        return self.encoder_is_base and self.execution.feature_cache

    def listen(self, wave: Wave, *, kept: bool = False) -> Heard:
        """A recording up to the encoder. `kept`: its states are kept, and those that are known stand for it."""
        if isinstance(wave, Heard):
            return wave
        key = wave_key(wave) if kept else None
        if key is not None and (states := self.cache.get(self._kept_as, key)) is not None:
            return Heard(len(wave), key, states=states)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # a CPU may compute in bf16, frames do not
            return Heard(len(wave), key, self.frames(np.asarray(wave)))

    def listened(self, example: Example, *, kept: bool) -> Example:
        """The example with its recording up to the encoder. Segments are cut anew for every presentation, so theirs are
        not kept."""
        kept = kept and not example.cuts
        return replace(example, heard=tuple(self.listen(wave, kept=kept) for wave in example.waves))

    # ---- the encoder

    def encode(self, waves: Sequence[Wave]) -> list[torch.Tensor]:
        """`states_of` of recordings, nothing looked up or kept."""
        return self.states_of([self.listen(wave) for wave in waves])

    def audio_states(self, waves: Sequence[Wave], *, keep: bool = True) -> list[torch.Tensor]:
        """Encoder states per recording, from the cache where they are kept. `keep`: not of what is not heard again;
        where a recording was made ahead, that was said then."""
        how = self.execution.encoder_batches
        heard = [self.listen(wave, kept=keep and self.keeps) for wave in waves]
        known: dict[str, np.ndarray] = {h.key: h.states for h in heard if h.key and h.states is not None}
        missing: dict[str, Heard] = {}
        for h in heard:
            if h.key is None or h.key in known or h.key in missing:
                continue
            # A step before this one may have made them since.
            if (states := self.cache.get(self._kept_as, h.key)) is None:
                missing[h.key] = h
            else:
                known[h.key] = states
        with torch.no_grad():
            together = how == "on" or (how == "auto" and self.device.type == "cuda")
            made = self._in_batches(list(missing.values()), together=together)
        for key, states in zip(missing, made, strict=True):
            wide = states if states.dtype == torch.float64 else states.float()
            known[key] = self.cache.put(self._kept_as, key, wide.cpu().numpy())
        passing = iter(self._in_batches([h for h in heard if h.key is None], together=how != "off"))
        return [next(passing) if h.key is None else torch.from_numpy(known[h.key]).to(self.device) for h in heard]

    def _in_batches(self, heard: Sequence[Heard], *, together: bool) -> list[torch.Tensor]:
        """`states_of` in batches of alike length, or one by one."""
        found: dict[int, torch.Tensor] = {}
        for indices in alike([h.samples for h in heard]) if together else ([i] for i in range(len(heard))):
            found.update(zip(indices, self.states_of([heard[i] for i in indices]), strict=True))
        return [found[i] for i in range(len(heard))]

    # ---- what kept states go by

    @property
    def _kept_as(self) -> str:
        return self._encoder_key if self.execution.trimming else f"{self._encoder_key}-whole"

    def _name_encoder(self) -> None:
        """By what its states depend on: weights, features, arithmetic, kind of device, kernel. Only on a bare base."""
        weight = self.lm_head.weight
        parts = (
            checksum(self.audio_tower),
            self.recipe(),
            str(weight.dtype),
            weight.device.type,
            "sdpa",
            torch.__version__,
            transformers.__version__,
        )
        self._encoder_key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
