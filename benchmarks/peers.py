"""The other side of a comparison: stock transformers and PEFT on the same examples in the same order.

Rows are padded to the longest of a batch, recordings to the feature extractor's whole window, logits are made for every
position: as a data collator with the stock processor gives them to the stock model.
"""

import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.ours import PLAIN
from trainer.views import Example

IGNORED = -100
"""Label of what is not supervised."""


def everywhere(rank: int = 16) -> LoraConfig:
    """LoRA as most recipes have it: every linear layer, the audio tower's included."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def lora(stock: Any, config: LoraConfig, *, start: dict[str, torch.Tensor] | None = None, checkpointing=False) -> Any:
    """The stock model with adapters, ready to train. `start`: values to begin from, by parameter name; without them
    PEFT draws its own. `checkpointing`: gradient checkpointing as transformers and PEFT switch it on."""
    stock.requires_grad_(False)
    if checkpointing:
        stock.gradient_checkpointing_enable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(stock, config)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if start is not None:
                parameter.data.copy_(start[key])
    model.config.use_cache = False
    return model.train()


class Collator:
    """Examples to the stock model's inputs, padded on the right, or on the `left` to generate."""

    def __init__(self, extractor: Any, pad: int, device: str | torch.device = "cpu", *, left: bool = False):
        self.extractor, self.pad, self.device, self.left = extractor, pad, device, left

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """{input_ids, attention_mask, labels: (batch, time), and where there are recordings input_features
        (recordings, bins, frames of the window), feature_attention_mask (recordings, frames)}."""
        shape = (len(examples), max(map(len, examples)))
        ids, mask, labels = np.full(shape, self.pad), np.zeros(shape, np.int64), np.full(shape, IGNORED)
        for r, e in enumerate(examples):
            start = shape[1] - len(e) if self.left else 0
            ids[r, start : start + len(e)], mask[r, start : start + len(e)] = (*e.prompt, *e.answer), 1
            labels[r, start + len(e.prompt) : start + len(e)] = e.answer
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        waves = [np.asarray(e.wave) for e in examples if e.wave is not None]
        if waves:
            rate = self.extractor.sampling_rate
            found = self.extractor(
                waves, sampling_rate=rate, padding="max_length", return_attention_mask=True, return_tensors="np"
            )
            batch |= {"input_features": found["input_features"], "feature_attention_mask": found["attention_mask"]}
        return {k: torch.from_numpy(v).to(self.device) for k, v in batch.items()}


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens, from the stock forward's logits."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    targets = batch["labels"][:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")


def plain_loop(model: Any, collate: Collator, examples: Sequence[Example], batch: int, parts: int = 1) -> list[dict]:
    """The plain correct loop: a step's gradient is that of its mean loss over supervised tokens, however many `parts`
    it is computed in. Loss and gradient norm (before clipping) of every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PLAIN.peak_lr, weight_decay=PLAIN.weight_decay)
    found, size = [], batch // parts
    for first in range(0, len(examples) // batch * batch, batch):
        optimizer.zero_grad()
        loss, tokens = 0.0, 0
        for at in range(first, first + batch, size):
            inputs = collate(examples[at : at + size])
            tokens += int((inputs["labels"] != IGNORED).sum())
            part = summed_loss(model, inputs)
            part.backward()
            loss += float(part.detach())
        for p in parameters:
            if p.grad is not None:
                p.grad /= tokens
        norm = torch.nn.utils.clip_grad_norm_(parameters, PLAIN.clip_norm)
        optimizer.step()
        found.append({"loss": loss / tokens, "grad_norm": float(norm)})
    return found


class _InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class _Kept(TrainerCallback):
    """What the trainer logs, and nothing printed."""

    def __init__(self):
        self.steps: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "grad_norm" in logs:
            self.steps.append({"loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"])})


def trainer(model: Any, collate: Collator, examples: Sequence[Example], batch: int, parts: int = 1, **options) -> list:
    """Stock Trainer on the same steps, `parts` accumulation steps each: what it logs of every step."""
    kept = _Kept()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch // parts, gradient_accumulation_steps=parts,
            max_steps=len(examples) // batch, learning_rate=PLAIN.peak_lr, weight_decay=PLAIN.weight_decay,
            lr_scheduler_type="constant", max_grad_norm=PLAIN.clip_norm, logging_steps=1, save_strategy="no",
            report_to="none", remove_unused_columns=False, disable_tqdm=True, label_names=["labels"],
            dataloader_pin_memory=False, use_cpu=str(collate.device) == "cpu", **options,
        )  # fmt: skip
        used = _InOrder(model=model, args=arguments, data_collator=collate, train_dataset=list(examples))  # type: ignore[arg-type]
        used.remove_callback(PrinterCallback)
        used.add_callback(kept)
        used.train()
    return kept.steps
