"""The contract: what a job is. Light: no torch, no files touched but the spec itself.

A spec is read strictly (unknown keys refused, shares and times in words), resolved once against its data
(`trainer.resolve`), and what runs is the resolved form. The field docstrings here are the spec reference:
`docs/spec.md` and the JSON Schema are generated from them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_validator

from trainer.fields import Problem, Spec, SpecError, problem, readable, walk
from trainer.spec.data import Data, Language, SourceLanguage
from trainer.spec.evaluate import Condition, Decode, Demos, Evaluate, listed
from trainer.spec.resources import Execution, Resources
from trainer.spec.task import Task, builtin_tasks, read_task
from trainer.spec.tuning import Tuning
from trainer.stage import Optimizer
from trainer.strategies import Auto, Recipe
from trainer.yaml_file import read_yaml

EXACT = 2**53
"""Whole numbers below it are the same in every reader of JSON (RFC 8785, which hashes are made by)."""
TaskRef = Annotated[str | Task, BeforeValidator(lambda v: Task.model_validate(v) if isinstance(v, Mapping) else v)]


class JobSpec(Spec):
    """One fine-tuning job. A first one needs: name, base, data, language, recipe, evaluate."""

    spec_version: Literal[1] = 1
    """Version of this shape."""
    name: str = Field(min_length=1, max_length=200)
    """Name of the job; not part of its hash."""
    base: str
    """Base model: hub id, local folder or s3:// folder."""
    revision: str | None = None
    """Revision of a hub model; of an s3:// folder its listing (`listing:…`, as `attune explain` prints it), refused
    where the folder holds other files. Pinned when the job is resolved."""
    family: Literal[
        "auto", "qwen2_audio", "qwen2_5_omni", "qwen3_omni_moe", "voxtral", "audioflamingo3", "granite_speech",
        "phi4_multimodal", "attune_composed",
    ] = "auto"  # fmt: skip
    """Model family; `auto` reads it from the base."""
    encoder_window: Literal["family", "trimmed"] = "family"
    """What the encoder gets of a short recording. `family`: as published, made faster only where that changes no
    value. `trimmed`: nothing behind the signal, for families that otherwise hear silence up to their window (Voxtral:
    30 s); fewer tokens, another result, refused by families to which it means nothing."""
    language: Language
    """Language of the target users."""
    source: SourceLanguage | None = None
    """Language that lends its speech (cross-lingual)."""
    data: Data
    """Labelled utterances."""
    tasks: list[TaskRef] | None = None
    """Speech tasks by built-in name or written out; default: the data set's own `task.yaml`, else the
    built-in tasks that its rows name."""
    recipe: Recipe = Auto()
    """Strategy: a name, or a name with its knobs."""
    init_from: str | None = None
    """Start from the trained weights of an earlier job on the same base, with a fresh optimiser: the job's id in the
    service, its folder, the folder of one of its checkpoints or of an adapter; also s3://. Pinned by content. What it
    trained, this job must train too, with the same rank; what it did not train starts as in the base."""
    tuning: Tuning = Tuning()
    """What is adapted and how."""
    optimizer: Optimizer = Optimizer()
    """Optimiser of every stage, before the recipe's own ratios."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps of the whole job; default: from `epochs`."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the abundant source, where `steps` is not given (arXiv 2509.15389: 3)."""
    global_batch: int = Field(default=32, gt=0)
    """Examples per optimiser step over all ranks and micro-batches (arXiv 2509.15389: 128)."""
    micro_batch_tokens: int | Literal["auto"] = "auto"
    """Token budget of one micro-batch; changes speed and memory, never which examples are in a step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto`: bf16 on a GPU, fp32 on a CPU. The result says which."""
    seed: int = 0
    """Seed of order and initialisation."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between checkpoints; the last step always has one."""
    evaluate: Evaluate = Evaluate()
    """On what and how it is scored."""
    resources: Resources = Resources()
    """Limits; not part of the hash."""
    execution: Execution = Execution()
    """Exact optimisations and their switches; not part of the hash."""
    tags: dict[str, str] = {}
    """Free labels; not part of the hash."""

    @property
    def lends_base(self) -> bool:
        """Whether a process can use its base again after the job: it is neither changed nor split."""
        return self.tuning.method == "lora" and not self.resources.shard_base

    @field_validator("micro_batch_tokens")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, int) and value <= 0:
            raise ValueError("micro_batch_tokens must be above 0")
        return value


def parse_job(data: Any, at: str = "") -> JobSpec:
    """A JobSpec from parsed YAML or JSON; SpecError lists every problem with its dotted field."""
    if not isinstance(data, Mapping):
        raise problem(at or "spec", f"a job is a mapping of fields, not {type(data).__name__}")
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise readable(error, data, at) from None
    said = walk(spec.model_dump(by_alias=True), at)
    if huge := [(field, value) for field, value in said if isinstance(value, int) and abs(value) >= EXACT]:
        message = "lies beyond 2^53, from where on JSON does not keep every whole number; use a smaller one"
        raise SpecError([Problem(field, value, message) for field, value in huge])
    return spec


def json_schema() -> dict[str, Any]:
    """JSON Schema of a job spec, with the field docstrings as descriptions."""
    return TypeAdapter(JobSpec).json_schema()


__all__ = [
    "Condition", "Data", "Decode", "Demos", "Evaluate", "Execution", "JobSpec", "Language", "Resources",
    "SourceLanguage", "Task", "Tuning", "builtin_tasks", "json_schema", "listed", "parse_job", "read_task", "read_yaml",
]  # fmt: skip
