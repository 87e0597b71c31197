"""Qwen2-Audio through the stock transformers classes.
 What differs from the stock forward, each equal in value and tested: the encoder sees L + 2 mel frames instead
of 30 s (its stock forward refuses anything else), the decoder computes a shared prefix once, logits are made
only where they are asked for, and the states of a frozen encoder come from a cache.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from torch import nn
from transformers import Qwen2AudioForConditionalGeneration

from trainer.adapter import adapter_files, attach, detach, load_adapter, part_of
from trainer.families import qwen2_decoder
from trainer.features import FeatureCache, Mel, wave_key
from trainer.fields import problem
from trainer.resolve import pin_base
from trainer.tokens import Tokens


class Qwen2Audio:
    """A loaded base, with or without a trained state on it.

    Attributes: `tokens` (prompt, tokenizer, limits), `stock` (the transformers model), `module` (stock or its
    PEFT wrapper), `trained` (parameters by name), `checksum` (of the base at load), `folder` and `pin` (where the
    base lay, and `trainer.resolve.pin_base` of it), `cache` (encoder states).
    """

    def __init__(self, stock: Any, folder: str | Path, name: str, cache: FeatureCache | None = None):
        # Any: torch types every attribute of a Module as `Tensor | Module`.
        self.stock: Any = stock.eval().requires_grad_(False)
        self.module: Any = self.stock
        self.name, self.folder = name, Path(folder)
        self.pin = str(pin_base(str(folder), None))
        self.tokens = Tokens(folder)
        self.mel = Mel(folder, self.tokens.shape)
        self.cache = FeatureCache() if cache is None else cache
        self.trained: dict[str, nn.Parameter] = {}
        self.lr_scales = {"lm": 1.0, "projector": 1.0, "encoder": 1.0}
        self.bf16 = stock.lm_head.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
        self.encoder_is_base = True
        self.dropout = 0.0
        self.reusable = True
        self.checksum = _checksum(self.stock)
        self._encoder_key = self._key_of_encoder()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        tuning=None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        name: str | None = None,
        attention: str = "sdpa",
        cache: FeatureCache | None = None,
    ) -> "Qwen2Audio":
        """The base in a local folder; with `tuning`, its trainable parts attached. `dtype`: of the frozen
        weights (trained ones are fp32). `attention`: `sdpa`, or `eager`. `name`: how the user calls the
        base."""
        transformers.utils.logging.disable_progress_bar()
        stock = Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True
        ).to(device)  # type: ignore[arg-type]
        model = cls(stock, folder, name or Path(folder).name, cache)
        if tuning is not None:
            model.attach(tuning, seed=seed)
        return model

    # ---- trained state

    part_of = staticmethod(part_of)

    def attach(self, tuning, *, seed: int) -> None:
        """Makes the parts of `tuning` trainable, freshly initialised from `seed`."""
        assert not self.trained, "a trained state is attached already; detach it first"
        self.module, self.trained = attach(self.stock, tuning, seed=seed, name=self.name)
        self.encoder_is_base = not any(part_of(k) == "encoder" for k in self.trained)
        self.lr_scales = {**self.lr_scales, "encoder": tuning.encoder_lr_scale}
        self.dropout = tuning.dropout if tuning.method == "lora" else 0.0
        self.reusable = tuning.method == "lora"

    def detach(self) -> None:
        """Back to the bare base; raises where its weights are not those that were loaded (the process must
        then end: everything it would train from here is suspect)."""
        self.stock = self.module = detach(self.module).eval().requires_grad_(False)
        self.trained, self.encoder_is_base = {}, True
        if _checksum(self.stock) != self.checksum:
            raise RuntimeError("the base model's weights changed while an adapter was trained; start a new process")

    def files(self) -> dict[str, bytes]:
        """The trained state as {file name: bytes}, in stock PEFT layout for LoRA."""
        return adapter_files(self.module, self.trained)

    def load_files(self, files: dict[str, bytes]) -> None:
        """Puts a state written by `files` back, bit for bit."""
        load_adapter(self.module, self.trained, files)

    def set_trainable(self, trainable) -> dict[str, list[str]]:
        """Opens the parts that a stage trains (`Stage.trainable`) and closes the others.
        Returns the names of the open parameters by part."""
        groups: dict[str, list[str]] = {"lm": [], "projector": [], "encoder": []}
        for key, parameter in self.trained.items():
            part = part_of(key)
            parameter.requires_grad_(getattr(trainable, part))
            if parameter.requires_grad:
                groups[part].append(key)
        return groups

    def train(self, mode: bool = True) -> None:
        """Dropout on or off; a frozen encoder always runs as in inference."""
        self.module.train(mode)
        if self.encoder_is_base:
            self.stock.model.audio_tower.eval()

    @contextlib.contextmanager
    def base_only(self) -> Iterator[None]:
        """The base as loaded, adapters off (cascade: the base transcribes)."""
        if not isinstance(self.module, PeftModel):
            if self.trained:
                raise problem("evaluate.cascade", "the base itself must be left to transcribe: use method: lora")
            yield
            return
        was, self.encoder_is_base = self.encoder_is_base, True
        try:
            with self.module.disable_adapter():
                yield
        finally:
            self.encoder_is_base = was

    # ---- forward

    @property
    def device(self) -> torch.device:
        return self.stock.lm_head.weight.device

    def autocast(self):
        """bf16 arithmetic on a GPU whose base is bf16; nothing on a CPU."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def encode(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Encoder states of recordings (samples,) at the family's rate → (vectors, width) per recording.

        Keys behind the last frame of a recording are masked; a recording alone needs no mask.
        """
        tower = self.stock.model.audio_tower
        mels = [self.mel(w) for w in waves]
        padded = np.zeros((len(mels), mels[0].shape[0], max(m.shape[1] for m in mels)), np.float32)
        for row, frames in zip(padded, mels, strict=True):
            row[:, : frames.shape[1]] = frames
        x = torch.from_numpy(padded).to(self.device, tower.conv1.weight.dtype)
        signal = [self.tokens.shape.mel_frames(len(w)) for w in waves]
        steps = torch.tensor([(n - 1) // 2 + 1 for n in signal], device=self.device)
        with self.autocast():
            h = F.gelu(tower.conv2(F.gelu(tower.conv1(x)))).permute(0, 2, 1)[:, : int(steps.max())]
            h = h + tower.embed_positions.weight[: h.shape[1]].to(h.dtype)
            mask = self._key_mask(steps, h) if len(mels) > 1 else None
            for layer in tower.layers:
                h = layer(h, mask)
                h = h[0] if isinstance(h, tuple) else h  # a tuple in earlier transformers 5
            h = tower.layer_norm(tower.avg_pooler(h.permute(0, 2, 1)).permute(0, 2, 1))
        return [states[: int(n) // 2] for states, n in zip(h, steps, strict=True)]

    def _key_mask(self, steps: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """(batch, 1, queries, keys): True where a key is signal; additive for eager attention."""
        keep = (torch.arange(h.shape[1], device=h.device) < steps[:, None])[:, None, None, :]
        keep = keep.expand(-1, 1, h.shape[1], -1)
        if self.stock.config.audio_config._attn_implementation == "sdpa":
            return keep
        return torch.zeros(keep.shape, device=h.device, dtype=h.dtype).masked_fill(~keep, torch.finfo(h.dtype).min)

    def audio_states(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Encoder states per recording: cached where the encoder is the base's own, else computed
        together."""
        if not self.encoder_is_base:
            return self.encode(waves)
        out = []
        for wave in waves:
            key = wave_key(wave)
            value = self.cache.get(self._encoder_key, key)
            if value is None:
                with torch.no_grad():
                    states = self.encode([wave])[0]
                value = self.cache.put(self._encoder_key, key, states.float().cpu().numpy())
            out.append(torch.from_numpy(value).to(self.device))
        return out

    def embed(self, ids: torch.Tensor, waves: Sequence[np.ndarray]) -> torch.Tensor:
        """Inputs of the language model: ids (batch, time) with the audio vectors of `waves` (row by row, in
        order) in the place of the placeholders → (batch, time, width)."""
        inputs = self.stock.get_input_embeddings()(ids)
        if not waves:
            return inputs
        states = torch.cat(self.audio_states(waves))
        with self.autocast():
            vectors = self.stock.model.multi_modal_projector(states.to(self._projector_dtype()))
        places = ids == self.tokens.audio_id
        assert int(places.sum()) == len(vectors), "placeholders and audio vectors differ in number"
        return inputs.masked_scatter(places[..., None], vectors.to(inputs.dtype))

    def _projector_dtype(self) -> torch.dtype:
        return next(self.stock.model.multi_modal_projector.parameters()).dtype

    def states(self, inputs: torch.Tensor, **options):
        """The language model's output over embedded inputs; options as of the stock class (attention_mask,
        position_ids, past_key_values, use_cache)."""
        with self.autocast():
            return self.stock.model.language_model(inputs_embeds=inputs, **options)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(…, width) → (…, vocabulary) in fp32."""
        with self.autocast():
            return self.stock.lm_head(states).float()

    def forward(self, batch) -> torch.Tensor:
        """Logits at the positions that predict a supervised token of a right-padded batch:
        (supervised tokens, vocabulary) fp32. Causality alone hides the padding, so no mask is needed."""
        inputs, decoder = self.embed(batch.ids, batch.waves), self.stock.model.language_model
        if not qwen2_decoder.fits(decoder):
            states = self.states(inputs, use_cache=False).last_hidden_state
            return self.logits(states[batch.rows, batch.columns])
        # With dropout the rows of a shared prefix would share its mask: not the same training, so not shared.
        shared = batch.shared if len(batch) > 1 and not self.dropout else 0
        with self.autocast():
            states = qwen2_decoder.supervised_states(decoder, inputs, batch.rows, batch.columns, shared)
        return self.logits(states)

    def _key_of_encoder(self) -> str:
        """What cached encoder states depend on: weights, mel, arithmetic, kind of device, kernel."""
        weight = self.stock.lm_head.weight
        parts = (
            _checksum(self.stock.model.audio_tower),
            self.mel.recipe(),
            str(weight.dtype),
            weight.device.type,
            str(self.stock.config._attn_implementation),
            torch.__version__,
            transformers.__version__,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _checksum(module: nn.Module) -> str:
    """A digest over all parameters by name, cheap enough for 8 B on a GPU: position-weighted sums of the
    bits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters(), key=lambda item: item[0]):
        bits = parameter.detach().reshape(-1)
        bits = bits.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
        total = 0
        for start in range(0, bits.numel(), 1 << 24):
            part = bits[start : start + (1 << 24)].long()
            weights = torch.arange(start, start + len(part), device=part.device) % 65521 + 1
            total = (total + int((part * weights).sum())) & (2**64 - 1)
        digest.update(f"{name} {tuple(parameter.shape)} {total}\n".encode())
    return digest.hexdigest()
