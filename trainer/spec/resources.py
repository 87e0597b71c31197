"""What a job may use and how the same result is computed faster: nothing here changes it."""

from typing import Literal

from pydantic import Field

from trainer.fields import Seconds, Spec


class Resources(Spec):
    """Limits of a job; none of them changes its result beyond rounding."""

    gpus: int = Field(default=0, ge=0)
    """GPUs wanted, a rank on each; 0 means whatever there is. A cluster that has fewer gives as many ranks on CPUs."""
    shard_base: bool = False
    """Split the frozen layers of the language model over the ranks, for a base too large for one GPU (FSDP2); every
    rank then answers the whole test. LoRA or projector tuning, without DoRA."""
    time: Seconds | None = None
    """Time limit of one attempt, e.g. '4h'; then a checkpoint is written and the run ends with reason timeout."""
    priority: int = 0
    """Higher runs earlier."""
    retries: int = Field(default=2, ge=0)
    """Attempts after infrastructure faults."""


class Execution(Spec):
    """How the same result is computed faster. Every field changes it by rounding only; not part of the hash. With all
    of them off, examples go one by one, padded and whole, through the stock layers."""

    packing: bool = True
    """Lay the examples of a micro-batch end to end; off: each is a micro-batch of its own."""
    share_prefix: bool = True
    """Compute what the prompts of one task have in common once per micro-batch. Off by itself under dropout."""
    attention: Literal["auto", "segments", "flex", "dense"] = "auto"
    """Attention over a pack; `auto`: `flex` on a GPU, `segments` on a CPU. `dense` writes the whole mask out."""
    trimming: bool = True
    """Compute of a recording only what its encoder states depend on; off: fill it up to the family's window, behind a
    mask. Not `encoder_window`, which changes what is heard."""
    encoder_batches: Literal["auto", "on", "off"] = "auto"
    """Encode recordings of alike length together, or each alone; `auto`: together on a GPU and where the encoder
    learns. States made together and lost before they were stored may come back with other last bits."""
    supervised_only: bool = True
    """Compute the last layer and the logits only where an answer's token is predicted; off: everywhere."""
    chunk: int = Field(default=1024, ge=0)
    """Tokens whose logits exist at once, made again in the backward pass where there are more; 0: all at once."""
    feature_cache: bool = True
    """Keep the states of a frozen encoder for all epochs, seeds and jobs."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute the language model's activations again in the backward pass; `auto`: only from the step on in which a
    single example does not fit into the memory otherwise."""
    prefetch: int = Field(default=2, ge=0, le=64)
    """Steps whose recordings are decoded and turned into mel frames ahead, in threads; 0: when they are needed."""
