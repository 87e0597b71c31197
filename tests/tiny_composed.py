"""Tiny random parts (encoders and language models of the real classes), bases composed of them, and a plain way to ask
such a base: features padded to the window, all of the prompt at once."""

import functools
from pathlib import Path

import torch
import toy
from transformers import (
    AutoTokenizer,
    EncodecFeatureExtractor,
    HubertConfig,
    HubertForCTC,
    LlamaConfig,
    LlamaForCausalLM,
    MimiConfig,
    MimiModel,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)  # fmt: skip

from trainer.families.composed.compose import compose
from trainer.families.composed.model import ComposedForConditionalGeneration

WINDOW_S = 8.0
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPEECH = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 2560, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
ENCODERS = {
    "whisper": (
        WhisperForConditionalGeneration,
        WhisperConfig(
            d_model=24, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=8, vocab_size=8, num_mel_bins=20, max_source_positions=400,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.1,
        ),
        WhisperFeatureExtractor(feature_size=20, chunk_length=8),
    ),
    "hubert": (HubertForCTC, HubertConfig(**SPEECH), Wav2Vec2FeatureExtractor()),
    "wav2vec2": (
        Wav2Vec2Model,
        Wav2Vec2Config(**SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
        Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "wavlm": (WavLMModel, WavLMConfig(**SPEECH, num_buckets=16, max_bucket_distance=40), Wav2Vec2FeatureExtractor()),
    "mimi": (
        MimiModel,
        MimiConfig(
            hidden_size=24, num_filters=4, num_hidden_layers=2, intermediate_size=32, num_attention_heads=2,
            num_key_value_heads=2, codebook_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8,
            num_quantizers=2, upsample_groups=24, layer_scale_initial_scale=1.0,
        ),
        EncodecFeatureExtractor(feature_size=1, sampling_rate=24000),
    ),
}  # fmt: skip
"""Class, config and feature extractor by name."""
MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**TEXT, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**TEXT, head_dim=16)),
    "llama": (LlamaForCausalLM, LlamaConfig(**TEXT)),
    "mistral": (MistralForCausalLM, MistralConfig(**TEXT, sliding_window=512)),
    "phi3": (Phi3ForCausalLM, Phi3Config(**TEXT)),
}


def saved(cls, config, folder: Path) -> Path:
    """A model with every matrix drawn wide enough that all parts matter."""
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_positions" not in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def encoder(name: str, folder: Path) -> Path:
    cls, config, extractor = ENCODERS[name]
    extractor.save_pretrained(folder)
    return saved(cls, config, folder)


def llm(name: str, folder: Path, template: str | None = TEMPLATE) -> Path:
    """With the tiny base's tokenizer and a chat template for text."""
    saved(*MODELS[name], folder)
    tokenizer = AutoTokenizer.from_pretrained(toy.TINY)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def base(folder: Path, *, encoders: tuple[str, ...], model: str, kind: str, **settings) -> Path:
    """A composed base; its projector, too, is drawn wide."""
    parts = [encoder(name, folder / name) for name in encoders]
    compose(
        [str(part) for part in parts], str(llm(model, folder / model)), folder / "base", kind=kind, settings=settings,
        window_s=WINDOW_S,
    )  # fmt: skip
    return folder / "base"


class Plain:
    """What a processor is to other families: prompts and recordings to the inputs of the stock forward."""

    def __init__(self, folder: Path):
        self.model = ComposedForConditionalGeneration.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        classes = {c.__name__: c for c in (EncodecFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor)}
        self.extractors = [classes[e["feature_extractor_type"]].from_dict(e) for e in self.model.config.extractors]

    def ask(self, prompt: str, wave) -> dict:
        """One placeholder in the prompt becomes as many as there are vectors; features are padded far beyond the
        recording."""
        features = []
        for extractor in self.extractors:
            if isinstance(extractor, WhisperFeatureExtractor):
                made = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
            else:
                made = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]
                made = torch.nn.functional.pad(made.reshape(1, -1), (0, 5000))
            features.append(made)
        with torch.no_grad():
            vectors = self.model.multi_modal_projector(self.model.audio_tower(features, [len(wave)]))
        text = prompt.replace("<|audio|>", "<|audio|>" * len(vectors))
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "features": features, "samples": [len(wave)]}

    def template(self, messages) -> str:
        """The language model's template, the recording's place in the text."""
        said = ["<|audio|>\n" if piece["type"] == "audio" else piece["text"] for piece in messages[0]["content"]]
        turns = [{"role": "user", "content": "".join(said)}]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


SMALL = {"transformer": {"width": 16, "layers": 2, "heads": 4, "key_heads": 2, "mlp": 24}}
QFORMER = {"width": 16, "heads": 2, "mlp": 24}
COMPOSED = {
    "whisper linear": {"encoders": ("whisper",), "model": "qwen2", "kind": "linear", "width": 16},
    "hubert conv": {"encoders": ("hubert",), "model": "llama", "kind": "conv", "width": 16},
    "wav2vec2 qformer": dict(encoders=("wav2vec2",), model="qwen3", kind="qformer", **QFORMER),
    "wav2vec2 qformer of 4": dict(
        encoders=("wav2vec2",), model="mistral", kind="qformer", queries=4, layers=4, cross_every=1, **QFORMER
    ),
    "wavlm transformer": dict(encoders=("wavlm",), model="phi3", kind="transformer", **SMALL["transformer"]),
    "mimi linear": {"encoders": ("mimi",), "model": "llama", "kind": "linear", "width": 16},
    "whisper and hubert linear": {"encoders": ("whisper", "hubert"), "model": "qwen2", "kind": "linear", "width": 16},
}  # fmt: skip
BUILD = {f"attune_composed: {name}": functools.partial(base, **made) for name, made in COMPOSED.items()}
"""Builders by name; what stands before the colon is the `model_type`."""
