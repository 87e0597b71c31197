"""What a family fixes before any weights are loaded, one light file per family: prompt pieces, targets, audio shape.

A family's module has `prompt(folder)`, `shape(folder)`, `text_config(config)`, `TARGETS` (linear layers of a block of
its language model: what may get adapters) and `STOPS` (tokens that end generation besides the prompt's own end). The
class that loads and runs it stands in `trainer/families/` under the same name.
"""

from trainer.formats import (
    audioflamingo3,
    composed,
    granite_speech,
    phi4_multimodal,
    qwen2_5_omni,
    qwen2_audio,
    qwen3_omni_moe,
    voxtral,
)

FORMATS = {
    "qwen2_audio": qwen2_audio,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni_moe": qwen3_omni_moe,
    "voxtral": voxtral,
    "audioflamingo3": audioflamingo3,
    "granite_speech": granite_speech,
    "phi4_multimodal": phi4_multimodal,
    "attune_composed": composed,
}
"""Light modules by `model_type` of the base's config.json: the list of supported families."""
PART_OF = {"qwen2_5_omni_thinker": "qwen2_5_omni", "qwen3_omni_moe_thinker": "qwen3_omni_moe"}
"""Families whose hearing part may be a folder of its own, by that part's `model_type`."""
