"""What the loop and the evaluation ask of a loaded base, the same for all families.

A family's file says where its parts are and how it hears: `read`, `parts`, `frames`, `states_of`, `project`. All else
is here: trainable parts on and off, the pack through the decoder, logits where they are asked for; and in
`listening.py`, states of a frozen encoder from a cache. Each differs from the stock forward in what is computed, not in
its value, and is tested so.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
import transformers
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.adapter import Parts, adapter_files, attach, checksum, detach, load_adapter, start_from
from trainer.batch import Batch, assign, collate, groups
from trainer.families import attention, decoder
from trainer.families.listening import Listening, Wave
from trainer.families.shards import Shards
from trainer.features import FeatureCache
from trainer.fields import problem
from trainer.resolve import pin_base
from trainer.spec import Execution
from trainer.tokens import Tokens
from trainer.views import Example


class Family(Listening):
    """A loaded base, with or without a trained state on it.

    Attributes: `tokens` (prompt, tokenizer, limits), `stock` (the transformers model), `module` (stock or its
    PEFT wrapper), `trained` (parameters by name), `checksum` (of the base at load), `folder` and `pin` (where the
    base lay, and `trainer.resolve.pin_base` of it), `cache` (encoder states).
    """

    parts: ClassVar[Parts]
    """Which modules are encoder, projector and language model, and what gets adapters."""

    def __init__(self, stock: Any, folder: str | Path, name: str, cache: FeatureCache | None = None):
        # Any: torch types every attribute of a Module as `Tensor | Module`.
        self.stock: Any = stock.eval().requires_grad_(False)
        self.module: Any = self.stock
        self.name, self.folder = name, Path(folder)
        self.pin = str(pin_base(str(folder), None))
        self.tokens = Tokens(folder)
        self.cache = FeatureCache() if cache is None else cache
        self.trained: dict[str, nn.Parameter] = {}
        self.lr_scales = {"lm": 1.0, "projector": 1.0, "encoder": 1.0}
        self.bf16 = self.lm_head.weight.dtype == torch.bfloat16
        self.encoder_is_base = True
        self.dropout = 0.0
        self.reusable = True
        self._shards: Shards | None = None
        self.execution = Execution()
        self.checksum = checksum(self.stock)
        self.prepare()
        self._name_encoder()

    def hear(self, window: str) -> None:
        """Sets what the encoder gets of a recording (the job's `encoder_window`); SpecError where the family cannot.
        Only on a bare base."""
        if window == self.tokens.window:
            return
        assert not self.trained, "a trained state is attached already; detach it first"
        self.tokens = Tokens(self.folder, window)
        self.prepare()
        self._name_encoder()

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
        cache: FeatureCache | None = None,
    ) -> Self:
        """The base in a local folder; with `tuning`, its trainable parts attached. `dtype`: of the frozen
        weights (trained ones are fp32). `name`: how the user calls the base."""
        transformers.utils.logging.disable_progress_bar()
        stock = cls.read(Path(folder), dtype=dtype, attn_implementation=attention.NAME, local_files_only=True)
        model = cls(stock.to(device), folder, name or Path(folder).name, cache)
        if tuning is not None:
            model.attach(tuning, seed=seed)
        return model

    # ---- what a family says

    @classmethod
    @abstractmethod
    def read(cls, folder: Path, **options) -> Any:
        """The stock model in a folder; `options` go to its `from_pretrained`."""

    def project(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Encoder states per recording → what the language model gets, all recordings end to end (vectors, width);
        as many vectors per recording as `tokens.audio_tokens` says."""
        return self.projector(torch.cat(list(states)).to(next(self.projector.parameters()).dtype))

    def still(self) -> list[nn.Module]:
        """What runs as in inference also in training."""
        return [self.audio_tower] if self.encoder_is_base else []

    @property
    def language_model(self) -> Any:
        """The decoder without its head; takes `inputs_embeds`."""
        return self.stock.model.language_model

    @property
    def lm_head(self) -> Any:
        return self.stock.lm_head

    @property
    def audio_tower(self) -> Any:
        return self.stock.model.audio_tower

    @property
    def projector(self) -> Any:
        return self.stock.model.multi_modal_projector

    # ---- trained state

    def part_of(self, name: str) -> str:
        """`encoder`, `projector` or `lm`, from a parameter's name."""
        return self.parts.of(name)

    def attach(self, tuning, *, seed: int, execution: Execution | None = None, shard: bool = False) -> None:
        """Makes the parts of `tuning` trainable, freshly initialised from `seed`; `execution` says how they are
        computed from here on. `shard`: splits the base over the ranks, where there are several."""
        assert not self.trained, "a trained state is attached already; detach it first"
        self.execution = execution or Execution()
        self.module, self.trained = attach(self.stock, tuning, self.parts, seed=seed, name=self.name)
        self.encoder_is_base = not any(self.part_of(k) == "encoder" for k in self.trained)
        self.lr_scales = {**self.lr_scales, "encoder": tuning.encoder_lr_scale}
        self.dropout = tuning.dropout if tuning.method == "lora" else 0.0
        self.reusable = tuning.method == "lora"
        if self.execution.checkpointing == "on":
            self.save_memory()
        if shard and dist.is_initialized() and dist.get_world_size() > 1:
            self.shard()

    def detach(self) -> None:
        """Back to the bare base; raises where its weights are not those that were loaded (the process must
        then end: everything it would train from here is suspect)."""
        self.stock = self.module = detach(self.module).eval().requires_grad_(False)
        self.trained, self.encoder_is_base, self.execution = {}, True, Execution()
        for layer in self.language_model.layers:
            layer.gradient_checkpointing = False
        if checksum(self.stock) != self.checksum:
            raise RuntimeError("the base model's weights changed while an adapter was trained; start a new process")

    def files(self) -> dict[str, bytes]:
        """The trained state as {file name: bytes}, in stock PEFT layout for LoRA."""
        return adapter_files(self.module, self.trained)

    def load_files(self, files: dict[str, bytes]) -> None:
        """Puts a state written by `files` back, bit for bit."""
        load_adapter(self.module, self.trained, files)

    def start_from(self, weights: bytes, ref: str) -> None:
        """Puts the trained state that another job left (`Start.weights`) in place of fresh parameters; SpecError where
        it does not fit."""
        start_from(self.module, self.trained, weights, ref)

    def set_trainable(self, trainable) -> dict[str, list[str]]:
        """Opens the parts that a stage trains (`Stage.trainable`) and closes the others.
        Returns the names of the open parameters by part."""
        groups: dict[str, list[str]] = {"lm": [], "projector": [], "encoder": []}
        for key, parameter in self.trained.items():
            part = self.part_of(key)
            parameter.requires_grad_(getattr(trainable, part))
            if parameter.requires_grad:
                groups[part].append(key)
        return groups

    def train(self, mode: bool = True) -> None:
        """Dropout on or off, but for what is `still`."""
        self.module.train(mode)
        for module in self.still():
            module.eval()

    @contextlib.contextmanager
    def base_only(self) -> Iterator[None]:
        """The base as loaded, adapters off (cascade: the base transcribes)."""
        if not isinstance(self.module, PeftModel):
            if self.trained:
                raise problem("evaluate.cascade", "the base itself must be left to transcribe: use method: lora")
            yield
            return
        was, self.encoder_is_base = self.encoder_is_base, True
        opened = {name: p.requires_grad for name, p in self.trained.items()}
        try:
            with self.module.disable_adapter():
                yield
        finally:
            self.encoder_is_base = was
            # PEFT opens every parameter of the adapter again, also those that a stage keeps closed.
            for name, learns in opened.items():
                self.trained[name].requires_grad_(learns)

    def shard(self) -> None:
        """Splits the frozen layers of the language model over the ranks of the process group (FSDP2): every rank holds
        its part, and gathers a layer while it is computed. Adapters, projector and the whole audio side stay on every
        rank outside of it, so that ranks with text and ranks with speech meet in the same gathers.

        From here on all ranks must run the decoder equally often, `alike`. The model cannot be lent again.
        """
        self._shards = Shards(self.language_model.layers, set(self.trained.values()), self.device)
        self.reusable = False

    @property
    def sharded(self) -> bool:
        """Whether `shard` was called."""
        return self._shards is not None

    def alike(self) -> contextlib.AbstractContextManager[None]:
        """What ranks compute alike: where the base is split over them, a failure of one is one of all
        (`Shards.alike`)."""
        return contextlib.nullcontext() if self._shards is None else self._shards.alike()

    # ---- forward

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def autocast(self):
        """bf16 arithmetic where the base is bf16."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def embed(self, ids: torch.Tensor, waves: Sequence[Wave], *, keep: bool = True) -> torch.Tensor:
        """Inputs of the language model: ids (batch, time) with the audio vectors of `waves` (row by row, in
        order) in the place of the placeholders → (batch, time, width). `keep`: as of `audio_states`."""
        places = ids == self.tokens.audio_id
        # A placeholder has no embedding of its own where the language model did not know the token.
        inputs = self.stock.get_input_embeddings()(ids.masked_fill(places, self.tokens.end))
        if not waves:
            return inputs
        with self.autocast():
            vectors = self.project(self.audio_states(waves, keep=keep))
        assert int(places.sum()) == len(vectors), "placeholders and audio vectors differ in number"
        return inputs.masked_scatter(places[..., None], vectors.to(inputs.dtype))

    def states(self, inputs: torch.Tensor, **options):
        """The language model's output over embedded inputs; options as of the stock class (attention_mask,
        position_ids, past_key_values, use_cache)."""
        with self.autocast():
            return self.language_model(inputs_embeds=inputs, **options)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(…, width) → (…, vocabulary) in fp32, or fp64 from fp64."""
        with self.autocast():
            made = self.lm_head(states)
        return made if made.dtype == torch.float64 else made.float()

    def positions(self, mask: torch.Tensor) -> torch.Tensor:
        """Positions of a left-padded batch for `states`, from its mask (batch, time) of 1 and 0: real tokens count."""
        return (mask.cumsum(-1) - 1).clamp(min=0)

    def micro_batches(
        self, examples: Sequence[Example], budget: int, world_size: int = 1, **how
    ) -> list[list[list[int]]]:
        """A step's examples cut up and spread over ranks (`trainer.batch.assign`, options as there)."""
        shared = groups(examples, audio_id=self.tokens.audio_id, share=self.shares)
        budget = budget if self.execution.packing else 1  # one token: each example alone
        return assign([len(e) for e in examples], shared, budget, world_size, **how)

    def collate(self, examples: Sequence[Example], *, share: bool = True) -> Batch:
        """The pack of a micro-batch on the model's device. With dropout the examples of a shared prefix would share
        its mask: not the same training, so nothing is shared."""
        return collate(
            examples, pad=self.tokens.end, audio_id=self.tokens.audio_id, device=self.device,
            share=share and self.shares, multiple=512 if self.attention == "flex" else 1,
        )  # fmt: skip

    @property
    def shares(self) -> bool:
        """Whether packs share prefixes."""
        return self.execution.share_prefix and not self.dropout

    @property
    def attention(self) -> str:
        """Attention over packs, of `trainer.families.attention`."""
        said = self.execution.attention
        return said if said != "auto" else "flex" if self.device.type == "cuda" else "segments"

    def save_memory(self) -> bool:
        """Has the language model compute its activations again in the backward pass, to the same values; False where
        it does so already, or may not."""
        layers = self.language_model.layers
        if self.execution.checkpointing == "off" or any(layer.gradient_checkpointing for layer in layers):
            return False
        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        return True

    def supervised_states(self, batch: Batch) -> torch.Tensor:
        """Final states at the places that predict a supervised token: (supervised, width)."""
        if not self.execution.supervised_only:
            return self.final_states(batch)[batch.at]
        inputs = self._inputs(batch)
        with self.autocast():
            return decoder.supervised_states(self.language_model, inputs, batch, self.attention)

    def final_states(self, batch: Batch) -> torch.Tensor:
        """Final states of all tokens of a pack: (time, width)."""
        inputs = self._inputs(batch)
        with self.autocast():
            return decoder.final_states(self.language_model, inputs, batch, self.attention)

    def layer_states(self, examples: Sequence[Example], depths: Sequence[int]) -> list[list[torch.Tensor]]:
        """States of all tokens of each example, which sees itself alone, after layers `depths` (0: the inputs; the
        last after the final norm): result[example][n] is (tokens, width) at depths[n]."""
        if not self.execution.packing and len(examples) > 1:
            return [self.layer_states([e], depths)[0] for e in examples]
        batch = self.collate(examples, share=False)
        inputs = self._inputs(batch)
        with self.autocast():
            found = decoder.layer_states(self.language_model, inputs, batch, self.attention, depths)
        (order,) = groups(examples, audio_id=self.tokens.audio_id, share=False)
        spans = dict(zip(order.members, batch.groups[0].rests, strict=True))
        return [[found[d][start : start + n] for d in depths] for _, (start, n) in sorted(spans.items())]

    def _inputs(self, batch: Batch) -> torch.Tensor:
        # Segments are cut anew for every presentation.
        inputs = self.embed(batch.ids[None], batch.waves, keep=not any(e.cuts for e in batch.examples))
        if self.sharded and torch.is_grad_enabled():
            # Text alone gives no gradient to a projector, but the other ranks' backward gathers need this rank.
            inputs = inputs if inputs.requires_grad else inputs.requires_grad_()
        return inputs

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits at the places that predict a supervised token: (supervised tokens, vocabulary) fp32."""
        return self.logits(self.supervised_states(batch))
