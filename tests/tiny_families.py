"""A tiny random base of every family, built from its real config class, offline; and the stock way to ask it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import toy
from transformers import AutoProcessor


@dataclass(frozen=True)
class Tiny:
    """One family in small."""

    build: Callable[[Path], Path]
    """Writes the base's folder, weights of every matrix drawn wide enough that all parts matter."""
    ask: Callable
    """(processor, prompt text with one audio token, wave) → inputs of the stock model's forward."""
    template: Callable
    """(processor, chat messages) → the prompt as text, as the processor's chat template writes it."""
    window_s: float
    """Longest recording that the tiny base takes, in seconds."""


def with_processor(processor, prompt: str, wave):
    """The common call of a processor with text and audio."""
    return processor(text=[prompt], audio=[wave], sampling_rate=16000, return_tensors="pt", padding=True)


def with_template(processor, messages) -> str:
    """The common call of a processor's chat template."""
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


TINY = {"qwen2_audio": Tiny(toy.base, with_processor, with_template, 16.0)}
"""By `model_type`; the conformance suite runs over all of them."""


def processor_of(folder: Path):
    return AutoProcessor.from_pretrained(folder)
