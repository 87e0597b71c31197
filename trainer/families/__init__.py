"""One file per model family. Everything the loop and the evaluation ask of a model is on these classes."""

from pathlib import Path

from trainer.families.qwen2_audio import Qwen2Audio
from trainer.tokens import family_of

FAMILIES = {"qwen2_audio": Qwen2Audio}
"""Family classes by `model_type`; the same names as `trainer.tokens.PROMPTS`."""


def load(folder: str | Path, **options) -> Qwen2Audio:
    """The base in `folder`, loaded by the class of its family (options as of `Qwen2Audio.load`)."""
    return FAMILIES[family_of(folder)].load(folder, **options)
