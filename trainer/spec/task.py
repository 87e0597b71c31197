"""A speech task as data."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from trainer.fields import Spec, readable
from trainer.yaml_file import read_yaml


class Task(Spec):
    """A speech task as data: what is asked, what may be answered, how it is scored."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Name that manifest rows carry in `task`."""
    instruction: dict[str, str] = Field(min_length=1)
    """What the model is told, per language tag; a missing language falls back to its base tag, then 'en'."""
    answer: Literal["json", "label", "label_set", "choice", "text"]
    """Form of the answer: JSON with intent and slots, one label, several labels, one of the row's own `choices`
    (multiple choice, story endings), or free text."""
    labels: list[str] | None = None
    """Closed set of labels (`label`, `label_set`)."""
    intents: list[str] | None = None
    """Closed set of intents (`json`); absent: any string."""
    slots: dict[str, list[str] | None] | None = None
    """Slot types in schema order (`json`); a list closes the values of its slot."""
    definitions: dict[str, str] = {}
    """What a label, intent or slot means, for the menu."""
    menu: bool = False
    """Put the labels, intents and slots (with definitions) into the instruction; with answer `choice` the row's own
    choices, below its question. Without it they are only scored (as how a story goes on)."""
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

    @property
    def closed(self) -> bool:
        """Whether its rows are told apart by one label, or by the intent of a closed set; else its answer is open."""
        return self.answer == "label" or (self.answer == "json" and bool(self.intents))

    @property
    def picks_one(self) -> bool:
        """Whether its answer is one name of a list, its own (`label`) or the row's (`choice`), so that the likelihoods
        of all can be compared."""
        return self.answer in ("label", "choice")

    @model_validator(mode="after")
    def _answers_fit(self) -> "Task":
        if self.answer in ("label", "label_set") and not self.labels:
            raise ValueError(f"answer {self.answer} needs labels")
        if self.answer == "choice" and (self.labels or self.definitions):
            raise ValueError("answer choice is one of the row's own choices; leave labels and definitions out")
        if self.answer != "json" and (self.slots or self.intents):
            raise ValueError(f"slots and intents belong to answer json, not {self.answer}")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels repeat")
        return self


def builtin_tasks() -> dict[str, Task]:
    """The built-in tasks by name."""
    folder = Path(__file__).parents[1] / "tasks"
    return {t.name: t for t in (read_task(p) for p in sorted(folder.glob("*.yaml")))}


def read_task(path: Path | str) -> Task:
    """A task file; SpecError names file and field."""
    data = read_yaml(path)
    try:
        return Task.model_validate(data)
    except ValidationError as error:
        raise readable(error, data, os.path.basename(path)) from None
