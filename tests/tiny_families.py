"""A tiny random base of every family, built from its real config class, offline; and the stock way to ask it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tiny_composed
import torch
import toy
import transformers
from transformers import AutoProcessor, AutoTokenizer, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.models.granite_speech import feature_extraction_granite_speech as granite

from trainer.formats.prompt import feature_extractor


def with_processor(processor, prompt: str, wave):
    """The common call of a processor with text and audio."""
    return processor(text=[prompt], audio=[wave], sampling_rate=16000, return_tensors="pt", padding=True)


def with_template(processor, messages) -> str:
    """The common call of a processor's chat template."""
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@dataclass(frozen=True)
class Tiny:
    """One family in small."""

    build: Callable[[Path], Path]
    """Writes the base's folder, weights of every matrix drawn wide enough that all parts matter."""
    window_s: float
    """Longest recording that the suite tries, in seconds: the family's longest, or some windows."""
    orders: tuple[str, ...] = ("audio_first", "instruction_first")
    """Orders of recording and instruction that the family's own template can write."""
    processor: Callable = AutoProcessor.from_pretrained
    """Folder → the stock processor."""
    ask: Callable = with_processor
    """(processor, prompt text with one audio token, wave) → inputs of the stock model's forward."""
    template: Callable = with_template
    """(processor, chat messages) → the prompt as text, as the processor's chat template writes it."""


def tokenizer(folder: Path, template: str, special: dict[str, str], end: str = "<|im_end|>", **options):
    """The tiny base's tokenizer with a family's own special tokens, by the names that its processor calls them by;
    written into `folder`."""
    made = AutoTokenizer.from_pretrained(toy.TINY, extra_special_tokens=special, eos_token=end, **options)
    made.chat_template = template
    made.save_pretrained(folder)
    return made


def mel(**changes) -> WhisperFeatureExtractor:
    """A small front end: 50 frames a second, windows of 8 s."""
    small = {"feature_size": 16, "hop_length": 320, "chunk_length": 8, "n_fft": 400, "return_attention_mask": True}
    return WhisperFeatureExtractor(**{**small, **changes})


def written(model, folder: Path, seed: int = 0) -> Path:
    """The model with matrices drawn anew, saved."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


LANGUAGE_MODEL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
"""Of a text config, whatever the class."""

OMNI_SPECIAL = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
OMNI_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the published template says of text and audio."""


def omni_config(tokens) -> dict:
    """A thinker's config with one chunk of 1 s in the encoder, and hardly any sight."""
    return {
        "audio_config": {
            "num_mel_bins": 16, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24, "n_window": 25, "output_dim": 32, "max_source_positions": 200,
        },
        "vision_config": {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        "text_config": {
            **LANGUAGE_MODEL, "vocab_size": len(tokens),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        "audio_token_index": tokens.audio_token_id, "image_token_index": tokens.image_token_id,
        "video_token_index": tokens.video_token_id, "audio_start_token_id": tokens.audio_bos_token_id,
        "audio_end_token_id": tokens.audio_eos_token_id, "vision_start_token_id": tokens.vision_bos_token_id,
    }  # fmt: skip


OMNI3_SPECIAL = {
    "image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
}  # fmt: skip
OMNI3_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the published template says of text and audio."""


def omni3_config(tokens) -> dict:
    """A thinker's config with attention windows of 2 s and four experts, and hardly any sight."""
    return {
        "audio_config": {
            "num_mel_bins": 16, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24, "n_window": 50, "n_window_infer": 100, "output_dim": 32,
            "max_source_positions": 200, "downsample_hidden_size": 4,
        },
        "vision_config": {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        "text_config": {
            **LANGUAGE_MODEL, "vocab_size": len(tokens), "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "mlp_only_layers": [],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        "audio_token_id": tokens.audio_token_id, "image_token_id": tokens.image_token_id,
        "video_token_id": tokens.video_token_id, "audio_start_token_id": tokens.audio_bos_token_id,
        "vision_start_token_id": tokens.vision_bos_token_id,
    }  # fmt: skip


def omni(name: str, special: dict[str, str], template: str, parts: Callable[..., dict], folder: Path) -> Path:
    """A model by the name of its stock classes: a thinker alone, or the whole, which also speaks."""
    tokens = tokenizer(folder, template, special)
    mel().save_pretrained(folder)
    thinker = parts(tokens)
    settings = thinker if name.endswith("Thinker") else {"thinker_config": thinker, "enable_audio_output": False}
    torch.save({}, folder / "spk_dict.pt")  # the stock class of 2.5 asks for its voices
    config = getattr(transformers, f"{name}Config")(**settings)
    return written(getattr(transformers, f"{name}ForConditionalGeneration")(config), folder)


qwen2_5_omni = partial(omni, "Qwen2_5Omni", OMNI_SPECIAL, OMNI_TEMPLATE, omni_config)
qwen2_5_omni_thinker = partial(omni, "Qwen2_5OmniThinker", OMNI_SPECIAL, OMNI_TEMPLATE, omni_config)
qwen3_omni_moe = partial(omni, "Qwen3OmniMoe", OMNI3_SPECIAL, OMNI3_TEMPLATE, omni3_config)
qwen3_omni_moe_thinker = partial(omni, "Qwen3OmniMoeThinker", OMNI3_SPECIAL, OMNI3_TEMPLATE, omni3_config)


class Blind:
    """A processor without its image and video parts, which nothing here calls (they need torchvision)."""

    def check_argument_for_proper_class(self, name, argument):
        return None if argument is None else super().check_argument_for_proper_class(name, argument)


def omni_processor(name: str) -> Callable:
    def made(folder: Path):
        cls = type(name, (Blind, getattr(transformers, name)), {})
        tokens = AutoTokenizer.from_pretrained(folder)
        heard = WhisperFeatureExtractor.from_pretrained(folder)
        processor = cls(feature_extractor=heard, tokenizer=tokens, chat_template=tokens.chat_template)
        processor.image_processor = processor.video_processor = SimpleNamespace(merge_size=2)  # 5.17 reads it always
        return processor

    return made


VOXTRAL_SPECIAL = {
    "bos": "<s>", "eos": "</s>", "inst": "[INST]", "end_inst": "[/INST]", "audio_token": "[AUDIO]",
    "begin_audio": "[BEGIN_AUDIO]",
}  # fmt: skip
VOXTRAL_TEMPLATE = (
    "<s>{% for message in messages %}[INST]{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}[BEGIN_AUDIO][AUDIO]{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}[/INST]{% endfor %}"
)
"""The text of mistral-common's user turn, which is written in Python and needs a package that is not here."""


def voxtral(folder: Path) -> Path:
    tokens = tokenizer(folder, VOXTRAL_TEMPLATE, VOXTRAL_SPECIAL, end="</s>")
    mel(chunk_length=2, hop_length=250).save_pretrained(folder)
    config = transformers.VoxtralConfig(
        audio_config={
            "num_mel_bins": 16, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_source_positions": 64,
        },
        text_config={**LANGUAGE_MODEL, "model_type": "llama", "head_dim": 8, "vocab_size": len(tokens),
                     "eos_token_id": tokens.eos_token_id},
        audio_token_id=tokens.audio_token_id,
    )  # fmt: skip
    return written(transformers.VoxtralForConditionalGeneration(config), folder)


def voxtral_processor(folder: Path):
    tokens = AutoTokenizer.from_pretrained(folder)
    return transformers.VoxtralProcessor(WhisperFeatureExtractor.from_pretrained(folder), tokens)


def ask_voxtral(processor, prompt: str, wave):
    """What `VoxtralProcessor.apply_chat_template` does after mistral-common: its own way of cutting audio."""
    settings = {
        "sampling_rate": 16000, "padding": True, "truncation": False, "return_tensors": "pt",
        "pad_to_multiple_of": 32000, "max_source_positions": 128,
    }  # fmt: skip
    features = processor._retrieve_input_features([wave], **settings)
    text = prompt.replace("[AUDIO]", "[AUDIO]" * (16 * len(features)))
    inputs = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    return {**inputs, "input_features": features}


def template_of_tokenizer(processor, messages) -> str:
    return processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def ask_unpadded(processor, prompt: str, wave):
    """Where `padding` would also reach the audio, whose own default is the family's window."""
    return processor(text=[prompt], audio=[wave], sampling_rate=16000, return_tensors="pt")


FLAMINGO_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set heard = namespace(found=False, text='') %}"
    "{% for c in m['content'] %}{% if c['type'] == 'audio' %}{% set heard.found = True %}"
    "{% else %}{% set heard.text = heard.text + c['text'] %}{% endif %}{% endfor %}"
    "{% if heard.found %}<sound>{% endif %}{{ heard.text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the published template says of text and audio."""


def audioflamingo3(folder: Path) -> Path:
    tokens = tokenizer(folder, FLAMINGO_TEMPLATE, {"audio_token": "<sound>"})
    heard = mel(chunk_length=2)
    transformers.AudioFlamingo3Processor(heard, tokens, FLAMINGO_TEMPLATE).save_pretrained(folder)
    config = transformers.AudioFlamingo3Config(
        audio_config={
            "num_mel_bins": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_source_positions": 50,
        },
        text_config={**LANGUAGE_MODEL, "model_type": "qwen2", "vocab_size": len(tokens)},
        audio_token_id=tokens.audio_token_id,
    )  # fmt: skip
    return written(transformers.AudioFlamingo3ForConditionalGeneration(config), folder)


GRANITE_TEMPLATE = (
    "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
"""What the published template says where the chat begins with a system turn, as the model card's does."""
GRANITE_SYSTEM = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
GRANITE_SPECIAL = {
    "audio_token": "<|audio|>", "start": "<|start_of_role|>", "stop": "<|end_of_role|>", "eos": "<|end_of_text|>",
}  # fmt: skip


def granite_template(processor, messages) -> str:
    """Contents of this family are text with the placeholder in it."""
    said = "".join("<|audio|>" if c["type"] == "audio" else c["text"] for c in messages[0]["content"])
    turns = [{"role": "system", "content": GRANITE_SYSTEM}, {"role": "user", "content": said}]
    return processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


class MelSpectrogram:
    """Stands in for torchaudio's, which the stock extractor wants: numpy's transform and transformers' filters."""

    def __init__(self, sample_rate, n_fft, win_length, hop_length, n_mels):
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sample_rate / 2, sample_rate, mel_scale="htk")
        self.options = {
            "window": window_function(win_length, "hann"), "frame_length": win_length, "hop_length": hop_length,
            "fft_length": n_fft, "power": 2.0, "mel_filters": filters, "mel_floor": 0.0,
        }  # fmt: skip
        self.n_fft, self.win = n_fft, win_length

    def to(self, device):
        return self

    def __call__(self, audio):
        # torch centres the window in the transform, numpy's helper puts it first: shift by half the difference.
        margin = (self.n_fft - self.win) // 2
        padded = np.pad(audio.numpy(), ((0, 0), (self.n_fft // 2, self.n_fft // 2)), mode="reflect")[:, margin:]
        frames = 1 + audio.shape[1] // self.options["hop_length"]
        made = [spectrogram(row, center=False, **self.options)[:, :frames] for row in padded]
        return torch.from_numpy(np.stack(made)).float()


def granite_extractor(**settings):
    granite.torchaudio = SimpleNamespace(transforms=SimpleNamespace(MelSpectrogram=MelSpectrogram))
    granite.requires_backends = lambda *_: None
    return granite.GraniteSpeechFeatureExtractor(**settings)


def granite_speech(folder: Path) -> Path:
    tokens = tokenizer(folder, GRANITE_TEMPLATE, GRANITE_SPECIAL, end="<|end_of_text|>")
    granite_extractor(n_mels=16, hop_length=320).save_pretrained(folder)
    config = transformers.GraniteSpeechConfig(
        encoder_config={
            "input_dim": 32, "num_layers": 2, "hidden_dim": 16, "num_heads": 2, "context_size": 20, "max_pos_emb": 32,
            "output_dim": 6, "conv_kernel_size": 5,
        },
        projector_config={
            "model_type": "blip_2_qformer", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "encoder_hidden_size": 16, "cross_attention_frequency": 1,
        },
        text_config={
            **LANGUAGE_MODEL, "model_type": "granite", "vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id,
            "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.3, "logits_scaling": 1.0,
        },
        audio_token_index=tokens.audio_token_id, has_lora_adapter=False,
    )  # fmt: skip
    return written(transformers.GraniteSpeechForConditionalGeneration(config), folder)


def granite_processor(folder: Path):
    settings = feature_extractor(folder)
    kept = ("n_mels", "hop_length", "n_fft", "win_length", "projector_window_size", "projector_downsample_rate")
    heard = granite_extractor(**{k: settings[k] for k in kept})
    tokens = AutoTokenizer.from_pretrained(folder)
    return transformers.GraniteSpeechProcessor(heard, tokens, chat_template=tokens.chat_template)


def ask_granite(processor, prompt: str, wave):
    return processor(text=[prompt], audio=[wave], return_tensors="pt")


PHI_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}<|endoftext11|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""What the published template says of text and audio."""
PHI_SPECIAL = {
    "image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>", "user": "<|user|>",
    "assistant": "<|assistant|>", "eos": "<|end|>",
}  # fmt: skip


def phi4_multimodal(folder: Path) -> Path:
    tokens = tokenizer(folder, PHI_TEMPLATE, PHI_SPECIAL, end="<|end|>")
    transformers.Phi4MultimodalFeatureExtractor(feature_size=16, hop_length=320).save_pretrained(folder)
    config = transformers.Phi4MultimodalConfig(
        **{**LANGUAGE_MODEL, "eos_token_id": tokens.eos_token_id},
        vocab_size=len(tokens),
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "crop_size": 28, "image_token_id": tokens.image_token_id,
        },
        audio_config={
            "hidden_size": 16, "intermediate_size": 24, "num_blocks": 2, "num_attention_heads": 2, "input_size": 16,
            "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 8,
            "bias_max_distance": 50, "audio_token_id": tokens.audio_token_id,
        },
    )  # fmt: skip
    return written(transformers.Phi4MultimodalForCausalLM(config), folder)


def phi_processor(folder: Path):
    cls = type("Phi4MultimodalProcessor", (Blind, transformers.Phi4MultimodalProcessor), {})
    tokens = AutoTokenizer.from_pretrained(folder)
    heard = transformers.Phi4MultimodalFeatureExtractor.from_pretrained(folder)
    return cls(None, heard, tokens, chat_template=tokens.chat_template)


TINY = {
    "qwen2_audio": Tiny(toy.base, 16.0),
    "qwen2_5_omni": Tiny(qwen2_5_omni, 8.0, processor=omni_processor("Qwen2_5OmniProcessor")),
    "qwen3_omni_moe": Tiny(qwen3_omni_moe, 5.5, processor=omni_processor("Qwen3OmniMoeProcessor")),
    "voxtral": Tiny(voxtral, 5.5, processor=voxtral_processor, ask=ask_voxtral, template=template_of_tokenizer),
    "audioflamingo3": Tiny(audioflamingo3, 5.5, orders=("audio_first",), ask=ask_unpadded),
    "phi4_multimodal": Tiny(phi4_multimodal, 5.5, processor=phi_processor, ask=ask_unpadded),
    "granite_speech": Tiny(
        granite_speech, 5.5, processor=granite_processor, ask=ask_granite, template=granite_template
    ),
}
"""By family; the conformance suite runs over all of them."""
TINY |= {
    name: Tiny(
        build, tiny_composed.WINDOW_S, processor=tiny_composed.Plain, ask=tiny_composed.Plain.ask,
        template=tiny_composed.Plain.template,
    )
    for name, build in tiny_composed.BUILD.items()
}  # fmt: skip
