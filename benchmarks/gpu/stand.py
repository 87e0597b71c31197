"""What the rows of the GPU benchmark stand on: the base in its copies, inputs, steps of both sides, the clock."""

import contextlib
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours, peers, shapes
from benchmarks.measure import in_turns, spread
from trainer.families import attention
from trainer.features import FeatureCache
from trainer.views import Example

PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 or H200 by its data sheet, without sparsity."""


@dataclass(frozen=True)
class Scale:
    """How large the base and the rows are."""

    divide: int
    small: bool
    """One layer of everything instead of all."""
    device: str
    dtype: torch.dtype
    rounds: int
    warm: int
    """Rounds before them that are not counted."""
    gate_steps: int
    steps: int
    """Steps of one timed call."""
    step: int = 32
    """Examples of a step."""
    prompt: int = 250
    packed: tuple[int, int] = (16, 512)
    """Texts of the language-model row, and tokens of each."""
    utterances: int = 64
    """Of the evaluation row."""
    new_tokens: int = 20


FULL = Scale(1, False, "cuda", torch.bfloat16, rounds=5, warm=1, gate_steps=20, steps=2)
TINY = Scale(
    32,
    True,
    "cpu",
    torch.float32,
    rounds=1,
    warm=0,
    gate_steps=1,
    steps=1,
    step=8,
    packed=(2, 32),
    utterances=4,
    new_tokens=3,
)


class Stand:
    """One base at a public shape with random weights, once for Attune and once for each peer."""

    def __init__(self, base: str, scale: Scale, folder: Path):
        self.scale, self.base = scale, base
        self.config = shapes.BASES[base](divide=scale.divide, **({"layers": 1} if scale.small else {}))
        self.folder = shapes.write_folder(self.config, folder)
        self.ours = shapes.family(self._stock(attention.NAME), self.folder)
        self.ours.attach(ours.LORA, seed=0)
        self.start = {key: p.detach().clone() for key, p in self.ours.trained.items()}
        self.collate = self.collator()
        self._peers: dict[str, Any] = {}

    def _stock(self, name: str) -> Any:
        return shapes.random_stock(self.config, name, device=self.scale.device, dtype=self.scale.dtype)

    def collator(self, *, left: bool = False) -> peers.Collator:
        return peers.Collator(self.ours.mel.extractor, self.ours.tokens.end, self.scale.device, left=left)

    def peer(self, name: str) -> Any:
        """`tuned`: LoRA as ours, sdpa, no checkpointing. `naive`: LoRA on all linear layers, checkpointing."""
        if name not in self._peers:
            stock = self._stock("sdpa")
            if name == "naive":
                self._peers[name] = peers.lora(stock, peers.everywhere(), checkpointing=True)
            else:
                self._peers[name] = peers.lora(stock, self.ours.module.peft_config["default"], start=self.start)
        return self._peers[name]

    def drop(self, name: str) -> None:
        """Gives a peer's memory back."""
        self._peers.pop(name, None)
        gc.collect()
        if self.scale.device == "cuda":
            torch.cuda.empty_cache()

    def ready(self) -> None:
        """Waits for the GPU."""
        if self.scale.device == "cuda":
            torch.cuda.synchronize()

    def turns(self, timed: Mapping[str, Callable[[], object]], work: int) -> list[dict[str, float]]:
        """Units of `work` per second of every peer, and the ratio of ours to each, round by round."""
        rows = []
        for found in in_turns(timed, self.scale.rounds, warm=self.scale.warm, ready=self.ready):
            rates = {name: work / found[name] for name in timed}
            rows.append(
                {**rates, **{f"ours / {name}": rates["ours"] / rates[name] for name in timed if name != "ours"}}
            )
        return rows

    # ---- steps

    def examples(self, count: int, **options: Any) -> list[Example]:
        return shapes.examples(self.ours.tokens, count, self.scale.prompt, **options)

    def train_ours(self, examples: Sequence[Example], batch: int, *, cache: bool = False) -> list[float]:
        """Losses of Attune's steps from the beginning. `cache`: encoder states kept from call to call; without it every
        recording is encoded in its step."""
        self._begin(self.ours.trained)
        self.ours.execution = self.ours.execution.model_copy(update={"feature_cache": cache})
        return [e["loss"] for e in ours.train(self.ours, examples, batch)]

    @torch.no_grad()
    def _begin(self, trained: Mapping[str, torch.nn.Parameter]) -> None:
        for key, parameter in trained.items():
            parameter.copy_(self.start[key])

    def forget(self) -> None:
        self.ours.cache = FeatureCache()

    def inputs(self, examples: Sequence[Example], padded: int = shapes.BLOCK) -> list[dict[str, torch.Tensor]]:
        """The padded batches of a peer, made beforehand and on the device: its data loader costs it nothing here."""
        return [self.collate(examples[at : at + padded]) for at in range(0, len(examples), padded)]

    def train_peer(self, name: str, inputs: Sequence[dict[str, torch.Tensor]], per_step: int) -> list[float]:
        """Losses of the peer's steps of `per_step` padded batches each: the correct loss, fused AdamW."""
        model = self.peer(name)
        parameters = [p for p in model.parameters() if p.requires_grad]
        cuda = self.scale.device == "cuda"
        optimizer = torch.optim.AdamW(parameters, lr=ours.PLAIN.peak_lr, weight_decay=0.0, fused=cuda)
        if name != "naive":  # which has other adapters, drawn by PEFT
            self._begin({key: p for key, p in model.named_parameters() if p.requires_grad})
        losses = []
        for first in range(0, len(inputs), per_step):
            optimizer.zero_grad()
            chosen = inputs[first : first + per_step]
            tokens = sum(int((b["labels"] != peers.IGNORED).sum()) for b in chosen)
            loss = 0.0
            for batch in chosen:
                with self.autocast():
                    part = peers.summed_loss(model, batch) / tokens
                part.backward()
                loss += float(part.detach())
            torch.nn.utils.clip_grad_norm_(parameters, ours.PLAIN.clip_norm)
            optimizer.step()
            losses.append(loss)
        return losses

    def autocast(self):
        if self.scale.dtype == torch.bfloat16:
            return torch.autocast(self.scale.device, dtype=torch.bfloat16)
        return contextlib.nullcontext()


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Median, minimum and maximum of every column."""
    return spread(rows, 4)
