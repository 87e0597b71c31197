"""Random-weight bases at public shapes, or smaller in proportion, and random examples for them.

Speed and FLOPs do not depend on the values of weights. Inputs are random and never zeros, which GPUs multiply faster.
The tokenizer is the tiny base's; of it only the special tokens matter here.
"""

import copy
import math
import shutil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Qwen2AudioConfig, WhisperFeatureExtractor

from benchmarks.measure import ROOT
from trainer.families import FAMILIES
from trainer.tokens import Tokens, family_of
from trainer.views import Example

TINY = ROOT / "models" / "tiny"
BLOCK = 8
"""Every block of examples holds the same lengths, in another order: whatever is cut into blocks costs the same."""
MEAN_S, SPREAD_S = 2.9, 1.3
"""Recordings as in SLURP: seconds, log-normal; the middles of its eighths."""
ANSWER = (15, 25)
"""Tokens of an answer with its end: fewest and most."""


def qwen2_audio(*, divide: int = 1, layers: int = 32) -> Qwen2AudioConfig:
    """Qwen2-Audio-7B's config with all widths divided by `divide` and `layers` of 32; the vocabulary shrinks with both.

    So encoder, language model and head keep their proportions of FLOPs. Attention alone weighs `divide` times too much:
    it grows with the width, everything else with its square.
    """
    vocab = max(156_032 * layers // (32 * divide), 2560)  # that of the tiny base's tokenizer at least
    text = {
        "hidden_size": 4096 // divide, "intermediate_size": 11008 // divide, "num_hidden_layers": layers,
        "num_attention_heads": 32 // divide, "num_key_value_heads": 32 // divide, "vocab_size": vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    audio = {
        "d_model": 1280 // divide, "encoder_layers": layers, "encoder_attention_heads": max(20 // divide, 1),
        "encoder_ffn_dim": 5120 // divide, "num_mel_bins": 128 // divide,
    }  # fmt: skip
    return Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_index=Tokens(TINY).audio_id)


def qwen2_5_omni(*, divide: int = 1, layers: int = 28) -> Any:
    """The config of Qwen2.5-Omni-7B's thinker, divided likewise; its picture encoder, which nothing uses, is small."""
    width, heads, tiny = 3584 // divide, max(28 // divide, 1), Tokens(TINY)
    turned = width // heads // 16  # rotary pairs of time, height and width stand as 2 : 3 : 3
    text = {
        "hidden_size": width, "intermediate_size": 18944 // divide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": max(4 // divide, 1), "max_position_embeddings": 32768,
        "vocab_size": max(152_064 * layers // (28 * divide), 2560),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [2 * turned, 3 * turned, 3 * turned],
        },
    }  # fmt: skip
    audio = {
        "d_model": 1280 // divide, "encoder_layers": max(32 * layers // 28, 1), "encoder_ffn_dim": 5120 // divide,
        "encoder_attention_heads": max(20 // divide, 1), "num_mel_bins": 128 // divide, "output_dim": width,
    }  # fmt: skip
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    config = transformers.Qwen2_5OmniThinkerConfig(
        text_config=text, audio_config=audio, vision_config=sight, audio_token_index=tiny.audio_id,
        audio_start_token_id=tiny.tokenizer.id("<|audio_bos|>"), audio_end_token_id=tiny.tokenizer.id("<|audio_eos|>"),
        image_token_index=2557, video_token_index=2556,
    )  # fmt: skip
    config.vision_start_token_id = 2555  # type: ignore[attr-defined]  # no field of the class, but its model reads it
    return config


BASES = {
    name: config
    for name, config in {"qwen2_audio": qwen2_audio, "qwen2_5_omni": qwen2_5_omni}.items()
    if name in FAMILIES
}
"""Configs by family."""
CLASSES = {
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
}
"""Stock classes by `model_type`."""


def write_folder(config: Any, folder: Path) -> Path:
    """A base's folder without weights: config, feature extractor, the tiny base's tokenizer."""
    config.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins).save_pretrained(folder)
    shutil.copy(TINY / "tokenizer.json", folder)
    return folder


def random_stock(config: Any, attention: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """The stock model with random weights, drawn on the device (seed 0)."""
    torch.manual_seed(0)
    stock = getattr(transformers, CLASSES[config.model_type])
    with torch.device(device):
        return stock._from_config(copy.deepcopy(config), attn_implementation=attention, dtype=dtype)


def family(stock: Any, folder: Path) -> Any:
    """Attune's model around a stock one."""
    return FAMILIES[family_of(folder)](stock, folder, folder.name)


def examples(tokens: Tokens, count: int, prompt: int, *, seed: int = 0, order: str = "instruction_first") -> list:
    """Random speech examples of one task: `prompt` text tokens around the recording, the same in all, of which the
    family's template has its share; `order` says whether they stand before the recording or after it."""
    draw = np.random.default_rng(seed)
    menu = tuple(int(i) for i in np.random.default_rng(1).integers(16, 2000, prompt))
    head = len(tokens.tokenizer.ids(tokens.prompt.before))
    sigma = math.sqrt(math.log(1 + (SPREAD_S / MEAN_S) ** 2))
    middles = [NormalDist(math.log(MEAN_S) - sigma**2 / 2, sigma).inv_cdf((k + 0.5) / BLOCK) for k in range(BLOCK)]
    answers = np.linspace(*ANSWER, BLOCK).round().astype(int)
    out = []
    for n in range(count):
        if n % BLOCK == 0:
            lengths = draw.permutation(np.exp(middles)), draw.permutation(answers) - 1
        seconds, words = (x[n % BLOCK] for x in lengths)
        samples = round(float(seconds) * tokens.shape.sampling_rate)
        wave = draw.standard_normal(samples, dtype=np.float32) * np.float32(0.1)
        heard = tokens.audio_tokens(len(wave))
        bare = tokens.prompt_ids("", heard, order)
        fill = menu[: prompt - (len(bare) - heard)]
        at = head if order == "instruction_first" else len(bare) - bare[::-1].index(tokens.audio_id) + 1
        answer = (*(int(i) for i in draw.integers(16, 2000, words)), tokens.end)
        out.append(Example(str(n), bare[:at] + fill + bare[at:], answer, wave, "task"))
    return out
