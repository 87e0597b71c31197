"""Write a checkpoint as a folder that the stock transformers classes load."""

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen2AudioProcessor, WhisperFeatureExtractor

from models.recipe.model import build_model, untie

# Qwen2-Audio's conversation layout. A text item that is not the last one ends its own line, so that both orders
# (audio first, instruction first) and the text view (transcript in the audio's place) read the same.
CHAT_TEMPLATE = """\
{%- set count = namespace(audio=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'audio' or 'audio' in item or 'audio_url' in item -%}
{%- set count.audio = count.audio + 1 -%}
{{- 'Audio ' ~ count.audio ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -}}
{%- elif 'text' in item -%}
{{- item['text'] -}}
{%- if not loop.last and not item['text'].endswith('\\n') -%}{{- '\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def feature_extractor() -> WhisperFeatureExtractor:
    """Log-mel of 80 bands, 50 frames/s, a window of 16 s at 16 kHz (training clips are at most 12 s long)."""
    return WhisperFeatureExtractor(
        feature_size=80, sampling_rate=16000, hop_length=320, n_fft=400, chunk_length=16, return_attention_mask=True
    )


def export(tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None, out: Path) -> None:
    """Weights in bf16, configuration, tokenizer, processor. Without a checkpoint: random weights of seed 0."""
    torch.manual_seed(0)
    model = build_model(tokenizer)
    if checkpoint is not None:
        weights = torch.load(checkpoint, map_location="cpu")["model"]
        # Positions are sinusoids, not learnt: the exported window may be longer than the trained one.
        fixed = "model.audio_tower.embed_positions.weight"
        model.load_state_dict({**weights, fixed: model.state_dict()[fixed]})
    untie(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(out)  # type: ignore[arg-type]
    Qwen2AudioProcessor(feature_extractor(), tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(out)


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
