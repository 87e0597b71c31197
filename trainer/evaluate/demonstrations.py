"""How a test utterance is put under a condition: the names of its labels, and demonstrations before it (k-shot)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trainer.demonstrations import Candidates
from trainer.labels import Names, names_at_test
from trainer.manifest import Utterance
from trainer.sentence_encoder import sentence_encoder
from trainer.spec import Condition, Evaluate, Task
from trainer.tokens import DataError


class Asked(NamedTuple):
    """One utterance as it is put."""

    names: Names
    """What its labels go by."""
    demonstrations: Sequence[Utterance] = ()
    """In the order shown, labels under their real names."""


class Asking:
    """Puts utterances as a job's conditions say. `pool`: the rows that may be shown; those with text and label are.
    DataError where the sentence encoder cannot be had."""

    def __init__(self, evaluate: Evaluate, tasks: Mapping[str, Task], pool: Sequence[Utterance]):
        self.evaluate, self.tasks = evaluate, tasks
        demos = evaluate.demos
        usable = sorted((u for u in pool if u.text and u.label is not None), key=lambda u: u.id)
        self._candidates = Candidates(usable, demos.seed)
        self._embed = sentence_encoder(demos) if demos.encoder and demos.most else None
        self._shown: dict[tuple[str, ...], list[list[Utterance]]] = {}

    def check(self, queries: Sequence[Utterance]) -> None:
        """DataError for a query with too few demonstrations, or without the transcript or recording to look them up by:
        said before training."""
        by = {one.query_text for one in self.evaluate.conditions().values()}
        for query in queries if self.evaluate.demos.most else ():
            if (found := self._candidates.count(query)) < self.evaluate.demos.most:
                raise DataError(
                    f"utterance {query.id}: there are {found} other sentences of task {query.task} in its language "
                    f"with text and label, and evaluate.demos.k asks for {self.evaluate.demos.most}; ask for fewer, or "
                    "give more rows (evaluate.demos.from)"
                )
            if "gold" in by and not query.text:
                message = "no transcript to look demonstrations up by; use retriever: random or query_text: asr"
                raise DataError(f"utterance {query.id}: {message}")
            if "asr" in by and not query.audio:
                message = "no recording to hear what demonstrations are looked up by; use query_text: gold"
                raise DataError(f"utterance {query.id}: {message}")

    def __call__(
        self, condition: Condition, queries: Sequence[Utterance], heard: Sequence[str] | None = None
    ) -> list[Asked]:
        """The queries under a condition; `heard`: what the base hears in each, where they are looked up by that."""
        shown: Sequence[Sequence[Utterance]] = [()] * len(queries)
        if condition.shots:
            every = self._found(condition.query_text, queries, heard)
            # Looked up, the nearest stands last, beside the query (inferred, as in training).
            order = 1 if condition.query_text == "none" else -1
            shown = [rows[: condition.shots][::order] for rows in every]
        names = (names_at_test(self.tasks[u.task], condition.labels, self.evaluate.symbols, u.id) for u in queries)
        return [Asked(*one) for one in zip(names, shown, strict=True)]

    def _found(self, by: str, queries: Sequence[Utterance], heard: Sequence[str] | None) -> list[list[Utterance]]:
        """As many demonstrations as any condition shows, the nearest first; by nothing, the first of one order."""
        key = (by, *(u.id for u in queries), *(heard if by == "asr" and heard else ()))
        if key not in self._shown:
            most, candidates = self.evaluate.demos.most, self._candidates
            if by == "none":
                places = [candidates.first(u, most) for u in queries]
            else:
                texts = heard if by == "asr" else None
                places = candidates.nearest(queries, most, self._embed, texts=texts)
            self._shown[key] = [[candidates.rows[n] for n in own] for own in places]
        return self._shown[key]
