"""On what and how a job is scored."""

import itertools
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from trainer.fields import Spec
from trainer.stage import Lookup


class Decode(Spec):
    """How answers are generated."""

    beams: int = Field(default=1, ge=1, le=16)
    """Beams; 1 is greedy (arXiv 2509.15389 uses 3)."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest answer in tokens; an answer cut here counts as it stands, and is usually invalid."""
    method: Literal["generate", "likelihood", "mean_likelihood"] = "generate"
    """Write an answer token by token, or choose the label (answer label), or of a row's own choices the one (answer
    choice), that is most probable as the answer with its end: by the sum over its tokens, or by their mean, which puts
    long answers at no disadvantage (length-normalised: how arXiv 2510.13632 scores multiple choice). Likelihoods also
    say how sure the model is (`confidence` and `probabilities` of a prediction). Guards that ask for neither are
    generated all the same."""
    constrain: bool = False
    """Only answers that the task allows: one of its labels (label) or of the row's choices (choice), some of its labels
    (label_set), JSON of its intents and slots (json), which then always parse; text stays free. Free decoding is the
    other condition: do not compare the two."""

    @model_validator(mode="after")
    def _one_way(self) -> "Decode":
        if self.method != "generate" and (self.beams > 1 or self.constrain):
            raise ValueError(f"method {self.method} scores every label or choice; leave beams and constrain out")
        return self


QueryText = Literal["gold", "asr", "none"]
NONE: QueryText = "none"
ShownLabels = Literal["regular", "symbol", "permuted"]


class Condition(NamedTuple):
    """One way in which the test set is put to the model."""

    shots: int
    """Demonstrations before every query."""
    labels: ShownLabels
    """The names that labels go by."""
    query_text: QueryText
    """What demonstrations are looked up by; `none` where there are none."""


class Demos(Lookup):
    """Demonstrations in the prompt: transcripts and answers of other rows of the query's task and language, never the
    query's own sentence, and no sentence twice."""

    k: int | list[int] = 0
    """How many; 0 is zero-shot. Of a list (`[5, 0, 1, 2, 3, 4]`) each is scored by itself in the same job, and the
    first is the main one: its score is the job's, and the dev set is asked with it."""
    from_: list[str] = Field(default=[], alias="from")
    """Data sets that they come from (`folder:split`; arXiv 2505.07731: the task's train and validation), of which the
    test's tasks are used and none may be tested: so a task that was not trained on is shown its own rows. Default: the
    first of the job's sources that has transcripts with labels."""
    retriever: str = "random"
    """Which. `random`: the first k of one seeded order, the same for all utterances but those that say what one of them
    says. The nearest, the nearest last, as in training: by `tfidf`, or by a sentence encoder (the paper): its hub id
    (owner/name) or folder."""
    query_text: QueryText | list[QueryText] = "gold"
    """What the nearest are looked up by. `gold`: the utterance's own transcript (the paper), which production has not;
    `asr`: what the base, adapters off, makes of its recording; `none`: nothing, so as `random`. Of a list each is
    scored by itself, the first is the main one. The gold sentence is among the rows shown in none of the three."""
    seed: int = 0
    """Of the order of `random`."""

    @field_validator("k", "query_text")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("is one value or a list of different ones")
        if any(isinstance(k, int) and not 0 <= k <= 64 for k in listed(value)):
            raise ValueError("lies between 0 and 64")
        return value

    @model_validator(mode="after")
    def _looked_up(self) -> "Demos":
        if self.retriever == "random" and self.query_text not in ("gold", "none"):
            raise ValueError("retriever random looks nothing up; leave query_text out, or use tfidf")
        return self

    @property
    def most(self) -> int:
        """The most that any condition shows."""
        return max(listed(self.k))


def listed(value: Any) -> list[Any]:
    """A value, or several, as a list."""
    return value if isinstance(value, list) else [value]


class Evaluate(Spec):
    """On what and how a job is scored."""

    on: str | list[str] | None = None
    """Data set and split of the test, or several that are scored together, such as one per language (ids differ);
    default: the `test` (else `dev`) split of the speech data."""
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
    labels: ShownLabels | list[ShownLabels] = "regular"
    """Names that labels go by in menu, demonstrations and answer. `regular`: their own. `symbol`: symbols, each label
    its own (as the recipe `label_permutation`). `permuted`: every label under another one's name, while each definition
    stays with its meaning; one of at most ten such permutations an utterance. Answers count by the label that they
    mean, and `definition_following` says whether they follow the definition shown or the name. Of a list each is
    scored by itself, the first is the main one."""
    symbols: list[str] | None = Field(default=None, min_length=1)
    """Symbols of `symbol`, in the order of the labels; default: the Greek letters, as in the recipe."""
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

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("is one value or a list of different ones")
        return value

    def conditions(self) -> dict[str, Condition]:
        """The ways in which the test is put, by what tells each from the main one, which is the first: ''."""
        demos = self.demos
        by: list[QueryText] = listed(demos.query_text) if demos.retriever != "random" else [NONE]
        first = Condition(listed(demos.k)[0], listed(self.labels)[0], by[0])
        found = {}
        for shots, labels, query in itertools.product(listed(demos.k), listed(self.labels), by):
            one = Condition(shots, labels, query if shots else NONE)
            apart = [f"{shots}-shot"] * (shots != first.shots) + [labels] * (labels != first.labels)
            apart += [f"query-{query}"] * (shots > 0 and query != first.query_text)
            if one not in found.values():
                found[".".join(apart)] = one
        return found
