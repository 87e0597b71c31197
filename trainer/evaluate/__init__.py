"""Scoring: from a model and test utterances to prediction rows whose counts add up to every corpus metric."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

from trainer.decoding import Constraint, constraint_of, generate
from trainer.decoding.constrain import Trie, closed_answers
from trainer.decoding.likelihood import log_likelihoods
from trainer.evaluate.demonstrations import Asked
from trainer.labels import Names
from trainer.memory import out_of_memory
from trainer.predictions import CASCADE, SPEECH, TEXT, Row, prediction
from trainer.spec import Decode, Evaluate, Task
from trainer.tokens import DataError, own_task
from trainer.views import Example, Recordings, example

Between = Callable[[int], None]
Limits = Callable[[Sequence[int]], Constraint | None]
"""What the answers to a batch of examples, given by their indices, are limited to."""
T = TypeVar("T")

TRANSCRIBE = Task(name="transcribe", instruction={"en": "Transcribe the speech."}, answer="text")
"""What the base is asked in a cascade, and in the hearing check."""
BATCH_TOKENS = 8192
"""Padded prompt and answer tokens of one batch of generation, beams counted."""


def modalities(utterances: Sequence, evaluate: Evaluate) -> list[str]:
    """What a test set is scored as: speech where the rows have recordings, text where all have a transcript and
    it is the only way or the twin is wanted, the cascade on request. DataError where only some rows have a
    recording: a number over both would be neither."""
    mute = [u.id for u in utterances if not u.audio]
    if mute and len(mute) < len(utterances):
        raise DataError(
            f"test utterance {mute[0]} has no recording, {len(utterances) - len(mute)} others have one; record the "
            f"{len(mute)} without, or test on the others alone"
        )
    heard, read = not mute, all(u.text for u in utterances)
    if not (heard or read):
        missing = next(u.id for u in utterances if not u.text)
        raise DataError(f"test utterance {missing} has neither a recording nor a transcript")
    if evaluate.cascade and not heard:
        raise DataError("evaluate.cascade needs recordings of all test utterances")
    wanted = [(SPEECH, heard), (TEXT, read and (evaluate.text_twin or not heard)), (CASCADE, evaluate.cascade)]
    return [name for name, wish in wanted if wish]


def predict(
    model,
    utterances: Sequence,
    tasks: Mapping[str, Task],
    modality: str,
    decode: Decode,
    recordings: Recordings,
    between: Between = lambda done: None,
    *,
    asked: Sequence[Asked] | None = None,
    heard: Sequence[str] | None = None,
) -> list[Row]:
    """Prediction rows in the order of `utterances`. `modality`: `speech`, `text` (transcripts) or `cascade`
    (the base, adapters off, transcribes; its text is answered by the tuned model). `between`: called after every
    batch with the number of utterances that it answered. `asked`: how each is put, where that is not plainly (names of
    labels, demonstrations); `heard`: what the base transcribes, where that is known."""
    asked = asked or [Asked(Names(tasks[u.task], {})) for u in utterances]
    words: Sequence[str | None] = [None] * len(utterances)
    view = SPEECH if modality == SPEECH else TEXT
    if modality == CASCADE:
        words = heard or transcribe(model, utterances, recordings, between=lambda _: between(0))
    examples = [
        _put(u, view, one, text, model, recordings) for u, one, text in zip(utterances, asked, words, strict=True)
    ]
    said: list[Said] = [Said("")] * len(examples)
    for group in alike(utterances, examples):
        put_to = [own_task(utterances[i], asked[i].names.task) for i in group]
        found = _said(model, [examples[i] for i in group], put_to, decode, between)
        for i, one in zip(group, found, strict=True):
            said[i] = one
    rows = []
    for u, one, put, text in zip(utterances, said, asked, words, strict=True):
        row = prediction(u, tasks[u.task], modality, one.text, text, one.confidence, put.names)
        more = {"probabilities": one.probabilities, "demonstrations": [shown.id for shown in put.demonstrations]}
        rows.append(row | {key: value for key, value in more.items() if value})
    return rows


def _put(utterance, view: str, asked: Asked, text: str | None, model, recordings: Recordings) -> Example:
    """A query as it is put; `text` replaces its transcript."""
    before = [asked.names.utterance(shown) for shown in asked.demonstrations]
    put = (utterance, view, asked.names.task, model.tokens, recordings)
    return example(*put, supervised=False, content=text, demonstrations=before)


def transcribe(
    model,
    utterances: Sequence,
    recordings: Recordings,
    *,
    max_new_tokens: int = 128,
    between: Between = lambda done: None,
) -> list[str]:
    """What the base itself hears, adapters off."""
    asked = [example(u, SPEECH, TRANSCRIBE, model.tokens, recordings, supervised=False) for u in utterances]
    with model.base_only():
        return answer(model, asked, Decode(max_new_tokens=max_new_tokens), between)


class Said(NamedTuple):
    """One answer."""

    text: str
    confidence: float | None = None
    """Its probability among all labels or choices, where these were scored."""
    probabilities: dict[str, float] = {}
    """Of every label or choice."""


def _said(model, examples: Sequence[Example], tasks: Sequence[Task], decode: Decode, between: Between) -> list[Said]:
    """Answers to examples of one task, as `decode` says; `tasks`: as it is put to each."""
    if decode.method != "generate" and tasks[0].picks_one:
        return choose(model, examples, tasks, decode, between)
    limits = _limits(model, tasks, decode) if decode.constrain else lambda batch: None
    return [Said(text) for text in answer(model, examples, decode, between, limits)]


def _limits(model, tasks: Sequence[Task], decode: Decode) -> Limits:
    """Made once where it is one for all; of choices made for each batch, whose masks no other one can use."""
    if tasks[0].answer == "choice":
        return lambda batch: constraint_of([tasks[i] for i in batch], model, decode.max_new_tokens)
    once = constraint_of(tasks[:1], model, decode.max_new_tokens)
    return lambda batch: once


def answer(
    model,
    examples: Sequence[Example],
    decode: Decode,
    between: Between = lambda done: None,
    limits: Limits = lambda batch: None,
) -> list[str]:
    """Answer texts in the order of `examples`, generated in batches of alike length."""

    def texts(batch: Sequence[int]) -> list[str]:
        ids = generate(
            model, [examples[i] for i in batch], beams=decode.beams, max_new_tokens=decode.max_new_tokens,
            constraint=limits(batch),
        )  # fmt: skip
        return [model.tokens.tokenizer.decode(one) for one in ids]

    return _in_batches(texts, model, examples, [decode.max_new_tokens] * len(examples), decode.beams, between)


def choose(
    model, examples: Sequence[Example], tasks: Sequence[Task], decode: Decode, between: Between = lambda done: None
) -> list[Said]:
    """The most probable label per example, or of its own choices the most probable, and the probability of each:
    likelihoods over their sum. `tasks`: the task as it is put to each."""
    names = [tuple(task.labels or ()) for task in tasks]
    task_of = dict(zip(names, tasks, strict=True))

    @lru_cache(maxsize=256)
    def trie(labels: tuple[str, ...]) -> Trie:
        return Trie(closed_answers(task_of[labels], model.tokens))

    def most_probable(batch: Sequence[int]) -> list[Said]:
        tries = [trie(names[i]) for i in batch]
        asked = [examples[i] for i in batch]
        scores = log_likelihoods(model, asked, tries, per_token=decode.method == "mean_likelihood")
        out = []
        for own, row in zip(tries, scores.softmax(-1).tolist(), strict=True):
            chances = {name: round(p, 6) for name, p in zip(own.answers, row, strict=False)}
            best = own.answers[row.index(max(row))]
            out.append(Said(best, chances[best], chances))
        return out

    rooms = []
    for e, own in zip(examples, map(trie, names), strict=True):
        model.tokens.check_length(len(e.prompt), max(own.depths) + 1, name=e.name)
        rooms.append(len(own.children))
    return _in_batches(most_probable, model, examples, rooms, 1, between)


def _in_batches(
    work: Callable[[Sequence[int]], list[T]],
    model,
    examples: Sequence[Example],
    rooms: Sequence[int],
    beams: int,
    between: Between,
) -> list[T]:
    """What `work` makes of each example, given by their indices in batches of alike length; `rooms`: tokens of the
    answers to each."""
    for e, room in zip(examples, rooms, strict=True):
        model.tokens.check_length(len(e.prompt), min(room, 1), name=e.name)
    found: dict[int, T] = {}
    lengths = [len(e.prompt) + room for e, room in zip(examples, rooms, strict=True)]
    for indices in batches(lengths, BATCH_TOKENS // beams):
        found.update(zip(indices, _fitting(work, model, indices), strict=True))
        between(len(indices))
    return [found[i] for i in range(len(examples))]


def _fitting(work: Callable[[Sequence[int]], list[T]], model, batch: Sequence[int]) -> list[T]:
    """`work`, with a batch that does not fit into the memory cut in two."""
    try:
        with model.alike():
            return work(batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not out_of_memory(error) or len(batch) == 1:
            raise
    half = len(batch) // 2
    return _fitting(work, model, batch[:half]) + _fitting(work, model, batch[half:])


def alike(utterances: Sequence, examples: Sequence[Example]) -> list[list[int]]:
    """Indices by task and instruction with its menu: what is asked the same is answered together, and shares that,
    whatever demonstrations follow it."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, (u, e) in enumerate(zip(utterances, examples, strict=True)):
        groups.setdefault((u.task, e.asked), []).append(i)
    return list(groups.values())


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in order of length, cut where another would exceed `budget` padded tokens."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
