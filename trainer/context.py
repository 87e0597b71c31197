"""What a presentation is shown with besides its utterance: which draw of names, which demonstrations (light).

A stage input: pure in resolved job, plan and corpus, made once, written down and hashed like the plan, and used by
every later attempt.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.balance import Vectors, needs_vectors, random_vectors, whole_numbers
from trainer.corpus import Corpus
from trainer.demonstrations import Candidates, sample
from trainer.plan import StagePlan, plan_stage, shown_before
from trainer.resolve import Resolved
from trainer.rng import philox
from trainer.stage import Demonstrations, Diverse, Labels, Lookup, Stage
from trainer.store import Store
from trainer.tokens import DataError
from trainer.utterance import Utterance

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts as unit vectors."""
Encoder = Callable[[Lookup], Embed]
"""Loads the sentence encoder that demonstrations name (`trainer.sentence_encoder`; heavy, so it is handed in)."""
Aligner = Callable[[Sequence[Utterance], str], np.ndarray]
"""Utterances, as `speech` or `text`, as vectors of the base's aligner (`trainer.aligner`; heavy alike)."""
NONE = 0xFFFF
"""In `Context.source`: no demonstration."""


@dataclass(frozen=True)
class Context:
    """The context of every presentation of a stage."""

    draw: np.ndarray
    """Number of the draw of names, shape (count,), uint32; over the whole job, so that a scope may outlive a stage."""
    source: np.ndarray
    """Index into the job's sources of each demonstration, in the order shown, shape (count, most), uint16; NONE at the
    end where there are fewer."""
    row: np.ndarray
    """Index into the usable rows of that source, shape (count, most), uint32."""

    @property
    def sha256(self) -> str:
        """Hash of the three arrays, little-endian, in the order draw, source, row."""
        digest = hashlib.sha256()
        for array, kind in ((self.draw, "<u4"), (self.source, "<u2"), (self.row, "<u4")):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()

    def save(self) -> bytes:
        """The arrays as an npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, draw=self.draw, source=self.source, row=self.row)
        return buffer.getvalue()

    @classmethod
    def load(cls, data: bytes) -> "Context":
        """A context from the bytes of `save`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(arrays["draw"], arrays["source"], arrays["row"])

    def at(self, number: int, seed: int, sources: Sequence[Sequence[Utterance]]) -> "Shown":
        """What presentation `number` is shown with; `sources`: the usable rows of the job's sources in their order."""
        there = zip(self.source[number], self.row[number], strict=True)
        return Shown(seed, int(self.draw[number]), [sources[s][r] for s, r in there if s != NONE])


@dataclass(frozen=True, slots=True)
class Shown:
    """The context of one presentation."""

    seed: int
    """The job's."""
    draw: int
    """Number of the draw of names."""
    demonstrations: list[Utterance]
    """In the order shown, labels under their real names."""


def has_context(stage: Stage) -> bool:
    """Whether a stage has a context at all."""
    return isinstance(stage.view, Labels)


def prepare(
    resolved: Resolved,
    corpus: Corpus,
    store: Store,
    put: Callable[[str, bytes], None],
    encoder: Encoder,
    aligner: Aligner | None = None,
) -> None:
    """Writes the plans and contexts that the store lacks, by `put(key, bytes)`, and the embeddings that plans are made
    from. `encoder` loads a sentence encoder, `aligner` makes embeddings."""
    for n, stage in enumerate(resolved.stages):
        plan_key, context_key = _keys(stage)
        if not store.exists(plan_key):
            vectors = _vectors(resolved, stage, corpus, store, put, aligner)
            put(plan_key, plan_stage(resolved, n, corpus, vectors).save())
        if has_context(stage) and not store.exists(context_key):
            put(context_key, context(resolved, n, StagePlan.fetch(store, plan_key), corpus, encoder).save())


def prepared(resolved: Resolved, store: Store) -> tuple[list[StagePlan], dict[str, Context]]:
    """The plans in order and the contexts by name of the stage, as they are stored."""
    plans = [StagePlan.fetch(store, _keys(stage)[0]) for stage in resolved.stages]
    having = [stage for stage in resolved.stages if has_context(stage)]
    return plans, {stage.name: Context.load(store.get(_keys(stage)[1])) for stage in having}


def _vectors(
    resolved: Resolved, stage: Stage, corpus: Corpus, store: Store, put: Callable[[str, bytes], None], aligner
) -> Vectors | None:
    """The embeddings that the plan of a stage asks for, as stored by an earlier attempt, else made and stored now."""
    sources = {name: corpus.sources[name].rows for name in stage.sources}
    shown = {u.task for rows in sources.values() for u in rows if stage.shows(u.task)}
    if not needs_vectors(stage, [task for task in corpus.tasks.values() if task.name in shown]):
        return None
    assert isinstance(stage.sampler, Diverse)
    if stage.sampler.embeddings == "random":
        return {name: random_vectors(name, len(rows), resolved.spec.seed) for name, rows in sources.items()}
    key = f"inputs/{stage.name}/vectors.npz"
    if not store.exists(key):
        assert aligner is not None, "the base's aligner was not handed in"
        made = {name: whole_numbers(aligner(rows, resolved.sources[name].modality)) for name, rows in sources.items()}
        np.savez(buffer := io.BytesIO(), **made)  # type: ignore[arg-type]
        put(key, buffer.getvalue())
    with np.load(io.BytesIO(store.get(key)), allow_pickle=False) as stored:
        return {name: stored[name] for name in sources}


def _keys(stage: Stage) -> tuple[str, str]:
    return f"plan/{stage.name}.npz", f"inputs/{stage.name}/context.npz"


def context(
    resolved: Resolved, stage_index: int, plan: StagePlan, corpus: Corpus, encoder: Encoder | None = None
) -> Context:
    """The context of a stage. DataError where a query lacks what its demonstrations are looked up by, or there are
    fewer than the stage's fewest."""
    stage = resolved.stages[stage_index]
    assert isinstance(stage.view, Labels)
    sources = {name: corpus.sources[name].rows for name in resolved.sources}
    draw = draws(resolved, stage_index, plan)
    ask = stage.view.demonstrations
    source = np.full((len(plan), ask.most), NONE, dtype=np.uint16)
    row = np.zeros((len(plan), ask.most), dtype=np.uint32)
    if ask.most:
        places = np.array([(n, r) for n, rows in enumerate(sources.values()) for r in range(len(rows))])
        every = [u for rows in sources.values() for u in rows]
        names = list(sources)
        first = np.cumsum([0, *map(len, sources.values())])
        asked = first[[names.index(name) for name in stage.sources]][plan.source] + plan.row
        embed = encoder(ask) if encoder and ask.encoder else None
        for at, chosen in enumerate(_chosen(ask, every, asked.tolist(), resolved.spec.seed, stage.name, embed)):
            if len(chosen) < ask.least:
                query = every[asked[at]]
                raise DataError(
                    f"utterance {query.id}: task {query.task} has {len(chosen)} other sentences in its language, and "
                    f"demonstrations.least is {ask.least}; lower it, or give more rows with text"
                )
            if chosen:
                source[at, : len(chosen)], row[at, : len(chosen)] = places[chosen].T
    return Context(draw, source, row)


def draws(resolved: Resolved, stage_index: int, plan: StagePlan) -> np.ndarray:
    """Number of the draw of names of every presentation: of the example, the step, the pass over its source, or 0;
    shape (count,) uint32."""
    stage, batch = resolved.stages[stage_index], resolved.spec.global_batch
    assert isinstance(stage.view, Labels)
    number = np.arange(len(plan)) + batch * sum(s.steps for s in resolved.stages[:stage_index])
    match stage.view.scope:
        case "batch":
            number //= batch
        case "epoch":
            before = shown_before(resolved, stage_index)
            for n, name in enumerate(stage.sources):
                at = np.flatnonzero(plan.source == n)
                number[at] = (before[name] + np.arange(len(at))) // stage.kept(resolved.sources[name].rows)
        case "run":
            number[:] = 0
    return number.astype(np.uint32)


def _chosen(
    ask: Demonstrations, rows: list[Utterance], asked: list[int], seed: int, stage: str, embed: Embed | None
) -> Iterator[list[int]]:
    """Places in `rows` of the demonstrations of every row that is asked about, the nearest last, beside the query
    (inferred)."""
    candidates = Candidates(rows, seed)
    words = philox(seed, f"demonstrations/{stage}", len(asked) * (1 + ask.most)).reshape(len(asked), -1)
    counts = ask.least + (words[:, 0] % np.uint64(ask.most - ask.least + 1)).astype(np.int64)
    if ask.retriever == "random":
        for n, own, count in zip(asked, words, counts, strict=True):
            yield candidates.random(rows[n], own[1:].tolist(), int(count))
        return
    assert ask.retriever == "tfidf" or embed is not None, "a sentence encoder was not handed in"
    distinct = list(dict.fromkeys(asked))
    try:
        near = candidates.nearest((rows[n] for n in distinct), ask.nearest or ask.most, embed)
    except ValueError as error:
        raise DataError(str(error)) from None
    found = dict(zip(distinct, near, strict=True))
    for n, own, count in zip(asked, words, counts, strict=True):
        picked = range(min(count, len(found[n])))
        if ask.nearest is not None:
            picked = sorted(sample(len(found[n]), own[1 : 1 + count].tolist()))
        yield [found[n][k] for k in reversed(picked)]
