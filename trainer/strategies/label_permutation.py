"""Label permutation for unseen tasks (Agrawal and Ganapathy, arXiv 2505.07731).

Section 3 of the paper: a speech query after a text instruction with the classes' definitions and text demonstrations,
tuned under the classes' own names (*regular*), under fixed meaningless ones (*symbol*), or under names that are
permuted among the definitions (*random*), so that a model cannot learn what a name means and has to read it. With π
drawn from a pool the prompt shows "π(c): d(c)", and L = -Σ_t log P(π(y)_t | prompt). Evaluation uses the true names;
`evaluate.labels` has others, and `evaluate.demos` the k-shot test, also on a task that was not trained on.

Departures, each a field or named here:
- Demonstrations are looked up by TF-IDF, which needs no download; the paper's sentence encoder is
  `demonstrations: {retriever: BAAI/llm-embedder}`.
- Which demonstrations and in what order (the nearest last) is inferred; 0 to 5 of them is the authors' later code.
- The paper trains "speech encoder, Q-former parameters as well as the LoRA parameters", its code keeps the encoder
  frozen: that is the job's `tuning`, and there is a preset for each.
- Where instruction and recording stand is the task's `prompt_order`; the paper's is instruction, demonstrations, query.
- Labels outside the class set have no row here: a data set with such labels is refused.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from trainer.stage import Demonstrations, Labels, Naming, Source, Stage
from trainer.strategies.budget import Budget, in_proportion


class LabelPermutation(Naming):
    """Fine-tuning with demonstrations, and with labels under other names. With `labels: regular` and no demonstrations
    it is `sft`."""

    paper: ClassVar[str] = "SLU on Unseen Tasks With In-Context Learning (arXiv 2505.07731)"
    name: Literal["label_permutation"] = "label_permutation"
    """The recipe's name."""
    labels: Literal["regular", "symbol", "random"] = "random"
    """`regular`: labels under their own names. `symbol`: each under its own symbol, the same for the whole run.
    `random`: names permuted among the labels, while each definition stays with its meaning; one permutation serves the
    menu, the demonstrations and the query of an example (the paper's proposal)."""
    demonstrations: Demonstrations = Demonstrations(most=5)
    """Labelled sentences before the query; default 0 to 5 (the authors' code; the paper: "a random number")."""
    sources: list[Source] | None = Field(default=None, min_length=1)
    """Sources to train on, in proportion to their rows; default: all that `data` gives."""

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """One stage over all sources. `rows`: usable rows per source."""
        return [in_proportion(self.name, self.sources, rows, budget, self._view())]

    def _view(self) -> Labels:
        """The stage's view, without knobs that say nothing under its `labels`."""
        said = {"regular": set(), "symbol": {"symbols"}, "random": set(Naming.model_fields)}[self.labels]
        if self.labels == "random" and self.names == "real":
            said -= {"symbols"}
        if self.pool_size == "fresh":
            said -= {"pool_seed"}
        kept = {knob: getattr(self, knob) for knob in said | {"labels", "demonstrations"}}
        return Labels(**kept)
