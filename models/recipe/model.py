"""The stock Qwen2-Audio classes at toy size, and a trimmed forward for short clips."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from models.recipe.text import AUDIO, END, PAD

WIDTH, POSITIONS = 256, 400  # 400 encoder positions at 25 Hz: a window of 16 s, of which 12 s are trained on


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2AudioForConditionalGeneration:
    """A model with random weights (torch's global seed), input and output embedding tied while it trains."""
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=80, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=768, d_model=WIDTH,
        max_source_positions=POSITIONS,
    )  # fmt: skip
    pad, end, slot = (tokenizer.get_vocab()[token] for token in (PAD, END, AUDIO))
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
        pad_token_id=pad, eos_token_id=end, bos_token_id=None,
        initializer_range=0.04,
    )  # fmt: skip
    config = Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=slot,
        tie_word_embeddings=True,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    # eager: the backward of sdpa is the slower one on CPU at these lengths
    model = Qwen2AudioForConditionalGeneration._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        # the class expects these positions from a checkpoint: built from scratch they must be filled by hand
        rate = torch.exp(-math.log(10000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
        angle = torch.arange(POSITIONS)[:, None] * rate
        model.model.audio_tower.embed_positions.weight.copy_(torch.cat([angle.sin(), angle.cos()], 1))
        embedding(model).normal_(0, 1 / 16)
    model.lm_head.weight = embedding(model)
    return model


def embedding(model: Qwen2AudioForConditionalGeneration) -> nn.Parameter:
    """The word vectors (vocabulary, width); while the base trains also the output matrix."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, nn.Parameter)
    return weight


def audio_vectors(frames):
    """Number of 12.5 Hz vectors the model makes of so many mel frames (ints, arrays or tensors)."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def encode(model: Qwen2AudioForConditionalGeneration, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """mel (batch, 80, time), valid frames (batch,) -> encoder states at 25 Hz and audio vectors at 12.5 Hz.

    The arithmetic of `Qwen2AudioEncoder.forward` without padding every clip to the window.
    """
    tower = model.model.audio_tower
    hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(mel)))).permute(0, 2, 1)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    padded = torch.arange(hidden.shape[1]) >= ((frames - 1) // 2 + 1)[:, None]
    mask = (padded * -1e4)[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    pooled = tower.avg_pooler(hidden.permute(0, 2, 1)).permute(0, 2, 1)
    return hidden, model.model.multi_modal_projector(tower.layer_norm(pooled))


def lm_states(
    model: Qwen2AudioForConditionalGeneration, ids: Tensor, mask: Tensor, audio: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Hidden states of all language-model layers (input first); `audio` (n, width) fills the audio slots."""
    embedded = model.get_input_embeddings()(ids)
    if audio is not None:
        slots = ids == model.config.audio_token_index
        embedded = embedded.masked_scatter(slots[..., None], audio.to(embedded.dtype))
    out = model.model.language_model(
        inputs_embeds=embedded, attention_mask=mask, use_cache=False, output_hidden_states=True
    )
    return out.hidden_states


def untie(model: Qwen2AudioForConditionalGeneration) -> None:
    """The stock class declares no tied keys for this model, so a checkpoint must hold both embeddings."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False  # pyright: ignore[reportAttributeAccessIssue]
