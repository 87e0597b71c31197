"""The contract: what a job is. Light: no torch, no files touched but the spec itself.

A spec is read strictly (unknown keys refused, shares and times in words), resolved once against its data
(`trainer.resolve`), and what runs is the resolved form. The field docstrings here are the spec reference:
`docs/spec.md` and the JSON Schema are generated from them.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from trainer.fields import Seconds, Share, Spec, problem, readable
from trainer.stage import Optimizer
from trainer.strategies import Auto, Recipe

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]
"""BCP-47 tag: 'it', 'fr-FR'."""


class Task(Spec):
    """A speech task as data: what is asked, what may be answered, how it is scored."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Name that manifest rows carry in `task`."""
    instruction: dict[str, str] = Field(min_length=1)
    """What the model is told, per language tag; a missing language falls back to its base tag, then 'en'."""
    answer: Literal["json", "label", "label_set", "text"]
    """Form of the answer: JSON with intent and slots, one label, several labels, or free text."""
    labels: list[str] | None = None
    """Closed set of labels (`label`, `label_set`)."""
    intents: list[str] | None = None
    """Closed set of intents (`json`); absent: any string."""
    slots: dict[str, list[str] | None] | None = None
    """Slot types in schema order (`json`); a list closes the values of its slot."""
    definitions: dict[str, str] = {}
    """What a label, intent or slot means, for the menu."""
    menu: bool = False
    """Put the labels, intents and slots (with definitions) into the instruction."""
    slot_order: Literal["schema", "as_given"] = "schema"
    """Order of slots in the answer, the same for text and speech; `as_given` keeps the manifest's (paper
    presets)."""
    prompt_order: Literal["family", "instruction_first", "audio_first"] = "family"
    """Whether the instruction stands before or after the audio; `family`: as the base was trained."""
    normaliser: Literal["raw", "basic", "basic_characters", "arabic", "whisper_english", "whisper_basic"] = "basic"
    """Text normaliser of WER, CER and MER, named in every result; their rates on the text as written stand beside.
    `whisper_english` and `whisper_basic` are Whisper's own, as most papers use."""
    metrics: list[str] = []
    """Metrics to score; empty: the defaults of the answer form. The first is the main one."""

    @model_validator(mode="after")
    def _answers_fit(self) -> "Task":
        if self.answer in ("label", "label_set") and not self.labels:
            raise ValueError(f"answer {self.answer} needs labels")
        if self.answer != "json" and (self.slots or self.intents):
            raise ValueError(f"slots and intents belong to answer json, not {self.answer}")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels repeat")
        return self


class Data(Spec):
    """Where the labelled utterances are. A reference is `folder`, `folder:split` or a manifest file; the folder
    may be `s3://bucket/prefix`, whose recordings are fetched as they are needed."""

    corpus: str | None = None
    """Data set whose rows have recordings and transcripts: its text and its speech are both used."""
    text: str | None = None
    """Data set of labelled sentences (the `text` source)."""
    speech: str | None = None
    """Data set of labelled recordings (the `speech` source)."""
    synthetic: str | None = None
    """Data set of labelled synthetic clips (the `synthetic` source)."""
    speech_fraction: Share = 1.0
    """Share of the recordings in `speech` (or of `corpus`) that may be used; subsets are nested: 2 % is part of
    5 %."""
    speech_per_label: int | None = Field(default=None, gt=0)
    """Recordings per label instead of a fraction (k per class); nested too."""
    subset_seed: int = 0
    """Which recordings: seed of the nested subsets, apart from the training seed."""
    trim_silence: Literal["report", "on"] = "report"
    """Silence at the ends of recordings: only reported, or cut in training and evaluation alike."""

    @model_validator(mode="after")
    def _one_place(self) -> "Data":
        if self.corpus and (self.text or self.speech):
            raise ValueError("corpus gives text and speech; leave out text and speech, or leave out corpus")
        if not (self.corpus or self.text or self.speech or self.synthetic):
            raise ValueError("give corpus, or text and/or speech and/or synthetic")
        if self.speech_per_label is not None and self.speech_fraction != 1.0:
            raise ValueError("speech_fraction and speech_per_label both choose the recordings; keep one")
        return self


class Tuning(Spec):
    """How the parts that a stage trains are trained."""

    method: Literal["lora", "full", "projector"] = "lora"
    """LoRA on the language model, full tuning of it, or the projector alone."""
    rank: int = Field(default=16, gt=0)
    """LoRA rank (arXiv 2509.15389's re-implementation: 16)."""
    alpha: float = Field(default=32.0, gt=0)
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """LoRA dropout. Default 0, so that exact optimisations stay exact."""
    targets: Literal["auto"] | list[str] = "auto"
    """Linear layers of the language model that get adapters; `auto`: all attention and MLP projections. The
    audio tower is never hit by these names."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction of each weight apart (arXiv 2402.09353). Slower: packs share all the same, but
    every layer's norm is computed in every pass."""
    encoder: Literal["frozen", "lora", "full", "auto"] = "auto"
    """Audio encoder. `auto` follows the hearing check: frozen where the base hears (WER at most 25 %), else
    LoRA in the encoder; the value and its reason are printed before training and stored."""
    encoder_lr_scale: float = Field(default=0.2, gt=0)
    """Encoder's learning rate as a multiple of `optimizer.peak_lr` (a first trial: 0.2)."""
    projector: Literal["frozen", "full"] = "full"
    """Projector in the stages that hear speech (arXiv 2509.15389 trains it in mixed stages)."""


class Decode(Spec):
    """How answers are generated."""

    beams: int = Field(default=1, ge=1, le=16)
    """Beams; 1 is greedy (arXiv 2509.15389 uses 3)."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest answer in tokens; an answer cut here counts as it stands, and is usually invalid."""
    method: Literal["generate", "likelihood", "mean_likelihood"] = "generate"
    """Write an answer token by token, or choose the label (answer label) that is most probable as the answer with its
    end: by the sum over its tokens, or by their mean, which puts long labels at no disadvantage. Likelihoods also say
    how sure the model is (`confidence` and `probabilities` of a prediction). Guards that ask for no label are generated
    all the same."""
    constrain: bool = False
    """Only answers that the task allows: one of its labels (label), some of them (label_set), JSON of its intents and
    slots (json), which then always parse; text stays free. Free decoding is the other condition: do not compare the
    two."""

    @model_validator(mode="after")
    def _one_way(self) -> "Decode":
        if self.method != "generate" and (self.beams > 1 or self.constrain):
            raise ValueError(f"method {self.method} scores every label; leave beams and constrain out")
        return self


class Demos(Spec):
    """Demonstrations in the prompt: transcripts and answers of the training side, never the utterance itself."""

    k: int = Field(default=0, ge=0, le=64)
    """How many; 0 is zero-shot."""
    retriever: Literal["random", "tfidf"] = "random"
    """Which. `random`: the first k of one seeded order, the same for all utterances but those that say what one of them
    says. `tfidf`: the k nearest to the utterance's own transcript, which production has not (arXiv 2505.07731 retrieves
    by it too, with a sentence encoder), the nearest last, as in training."""
    seed: int = 0
    """Of that order."""


class Evaluate(Spec):
    """On what and how a job is scored."""

    on: str | None = None
    """Data set and split of the test; default: the `test` (else `dev`) split of the speech data."""
    metric: str = "auto"
    """Main metric; `auto`: the task's first."""
    text_twin: bool = True
    """Also score the transcripts of the same utterances as text, where there are any (the text–speech gap)."""
    cascade: bool = False
    """Also score the base's own transcription answered as text by the tuned adapter."""
    decode: Decode = Decode()
    """Generation."""
    demos: Demos = Demos()
    """Demonstrations in the prompts of test and dev set (k-shot); guards are asked without."""
    dev: str | None = None
    """Data set and split that is scored at every checkpoint, by the main metric; default: none, with `select: best` the
    `dev` split of the speech data."""
    dev_limit: int = Field(default=256, gt=0)
    """Score at most N utterances of the dev set, of a seeded order, the same at every checkpoint."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint is tested and kept as the result: the last, or the one that is best on the dev set by the main
    metric, of equal ones the first. The result says its step."""
    guards: list[str] = []
    """Further test sets, each with tasks of its own (its task.yaml, else the built-in ones), answered by the base and
    by the adapter on it: what training has cost elsewhere (forgetting)."""
    limit: int | None = Field(default=None, gt=0)
    """Score only the first N utterances of a seeded order; for quick looks, named in the result."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation by speaker with pooled out-of-fold predictions. Not built yet: refused by name."""


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
    """How the same result is computed faster. Every field changes it by rounding only; not part of the hash."""

    share_prefix: bool = True
    """Compute what the prompts of one task have in common once per micro-batch. Off by itself under dropout."""
    attention: Literal["auto", "segments", "flex", "dense"] = "auto"
    """Attention over a pack; `auto`: `flex` on a GPU, `segments` on a CPU. `dense` writes the whole mask out."""
    feature_cache: bool = True
    """Keep the states of a frozen encoder for all epochs, seeds and jobs."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute the language model's activations again in the backward pass; `auto`: only from the step on in which a
    single example does not fit into the memory otherwise."""
    prefetch: int = Field(default=2, ge=0, le=64)
    """Steps whose recordings are read and decoded ahead, in threads; 0: when they are needed."""


class SourceLanguage(Spec):
    """Cross-lingual transfer: the language that has speech. Not built yet: refused by name."""

    language: Language
    """Language of the source data."""
    data: str
    """Data set of the source language."""


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
        return JobSpec.model_validate(data)
    except ValidationError as error:
        raise readable(error, data, at) from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans and floats: `on`, `off`, `yes`, `no` are words (PyYAML reads YAML 1.1, where
    `evaluate: {on: x}` has the key True), and 5e-6 is a number. Escapes that name half of a character are refused."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise yaml.constructor.ConstructorError(None, None, f"half of a character ({value!r})", node.start_mark)
        return value


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in (_BOOL, _FLOAT)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    """A mapping whose keys stand once; YAML's own would keep the last silently."""
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if twice := next((k for k in keys if keys.count(k) > 1), None):
        raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' stands twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def read_yaml(path: Path | str) -> Any:
    """A spec file as plain data; SpecError names the file and, for a syntax error, the line."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except FileNotFoundError:
        raise problem(str(path), "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise problem(str(path), f"cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise problem(str(path), f"not valid YAML{where}: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise problem(str(path), "nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of a tagged value: !!int x, 2026-99-99
        raise problem(str(path), f"not valid YAML: a value is not what it looks like ({error}); quote it") from None


def builtin_tasks() -> dict[str, Task]:
    """The built-in tasks by name."""
    folder = Path(__file__).parent / "tasks"
    return {t.name: t for t in (read_task(p) for p in sorted(folder.glob("*.yaml")))}


def read_task(path: Path | str) -> Task:
    """A task file; SpecError names file and field."""
    data = read_yaml(path)
    try:
        return Task.model_validate(data)
    except ValidationError as error:
        raise readable(error, data, os.path.basename(path)) from None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a job spec, with the field docstrings as descriptions."""
    return TypeAdapter(JobSpec).json_schema()
