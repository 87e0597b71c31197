"""On what and how a job is scored."""

from typing import Literal

from pydantic import Field, model_validator

from trainer.fields import Spec


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
