"""The composed model as transformers knows models: saved by save_pretrained, read by from_pretrained, generating.

Its forward is the plain one (padded batch, all logits); training goes through `trainer.families.composed.family`,
which is tested against it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel

from trainer.families.composed.encoders import AudioTower
from trainer.families.composed.projectors import projector


class ComposedConfig(PreTrainedConfig):
    """What a composed base is made of; all of it stands in its config.json."""

    model_type = "attune_composed"
    sub_configs = dict.fromkeys(("text_config", "audio_config", "second_audio_config"), AutoConfig)  # type: ignore

    text_config: dict | PreTrainedConfig | None = None
    """Of the language model."""
    audio_config: dict | PreTrainedConfig | None = None
    """Of the audio encoder."""
    second_audio_config: dict | PreTrainedConfig | None = None
    """Of a second one, whose states stand beside the first's."""
    extractors: list[dict] | None = None
    """Settings of the encoders' feature extractors, in the same order."""
    projector: dict | None = None
    """`kind`, `stride` (frames), `queries` (vectors per stride), and what the class of its kind asks for."""
    prompt: dict | None = None
    """As `trainer.formats.prompt.Prompt`."""
    audio_token_id: int | None = None
    """The placeholder, repeated once per vector; the language model may have no embedding for it."""
    window_s: float = 30.0
    """Longest recording in seconds."""

    def __post_init__(self, **kwargs):
        for key in self.sub_configs:
            value = getattr(self, key)
            if isinstance(value, dict):
                setattr(self, key, AutoConfig.for_model(**value))
        super().__post_init__(**kwargs)


class ComposedForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Audio encoder(s), projector, causal language model."""

    config_class = ComposedConfig
    input_modalities = ["audio", "text"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.audio_tower = AudioTower(config)
        self.multi_modal_projector = projector(config.projector, self.audio_tower.width, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()

    def embed(
        self,
        input_ids: torch.Tensor,
        features: Sequence[torch.Tensor] | None = None,
        samples: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """input_ids (batch, time); features: padded, one per encoder (recordings, …); samples: of each recording, in
        the order of their placeholders → (batch, time, width)."""
        places = input_ids == self.config.audio_token_id
        inputs = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if features is None or samples is None:
            return inputs
        states = self.audio_tower(features, samples)
        vectors = self.multi_modal_projector([s.to(self.dtype) for s in states])
        return inputs.masked_scatter(places[..., None], vectors.to(inputs.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        features: Sequence[torch.Tensor] | None = None,
        samples: Sequence[int] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **options,
    ) -> Any:
        """Logits (batch, time, vocabulary) and whatever else the language model answers; as `embed`, or the
        embeddings themselves."""
        if inputs_embeds is None:
            assert input_ids is not None, "neither input_ids nor inputs_embeds"
            inputs_embeds = self.embed(input_ids, features, samples)
        return self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **options)

    def generate(self, input_ids: torch.Tensor, features=None, samples=None, **options) -> Any:  # type: ignore[override]
        """Prompts and what the language model goes on with; options as of its own `generate`."""
        inputs = self.embed(input_ids, features, samples)
        return self.language_model.generate(input_ids=input_ids, inputs_embeds=inputs, **options)


AutoConfig.register("attune_composed", ComposedConfig)
