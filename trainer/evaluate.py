"""Scoring: from a model and test utterances to prediction rows whose counts add up to every corpus metric."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from trainer.decoding import generate
from trainer.memory import out_of_memory
from trainer.predictions import CASCADE, SPEECH, TEXT, Row, prediction
from trainer.spec import Decode, Evaluate, Task
from trainer.tokens import DataError
from trainer.views import Example, Recordings, example

Between = Callable[[int], None]

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
) -> list[Row]:
    """Prediction rows in the order of `utterances`. `modality`: `speech`, `text` (transcripts) or `cascade`
    (the base, adapters off, transcribes; its text is answered by the tuned model). `between`: called after every
    batch with the number of utterances that it answered."""
    heard: list[str | None] = [None] * len(utterances)
    view = SPEECH if modality == SPEECH else TEXT
    if modality == CASCADE:
        heard = list(transcribe(model, utterances, recordings, between=lambda _: between(0)))
    asked = (
        example(u, view, tasks[u.task], model.tokens, recordings, supervised=False, content=said)
        for u, said in zip(utterances, heard, strict=True)
    )
    texts = answer(model, list(asked), decode, between)
    return [
        prediction(u, tasks[u.task], modality, text, said)
        for u, text, said in zip(utterances, texts, heard, strict=True)
    ]


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


def answer(model, examples: Sequence[Example], decode: Decode, between: Between = lambda done: None) -> list[str]:
    """Answer texts in the order of `examples`, generated in batches of alike length."""
    texts = [""] * len(examples)
    room = decode.max_new_tokens
    for e in examples:
        model.tokens.check_length(len(e.prompt), min(room, 1), name=e.name)
    for indices in _batches([len(e.prompt) + room for e in examples], BATCH_TOKENS // decode.beams):
        chosen = [examples[i] for i in indices]
        for i, ids in zip(indices, _generate(model, chosen, decode), strict=True):
            texts[i] = model.tokens.tokenizer.decode(ids)
        between(len(indices))
    return texts


def _generate(model, examples: Sequence[Example], decode: Decode) -> list[list[int]]:
    """`generate`, with a batch that does not fit into the memory cut in two."""
    try:
        return generate(model, examples, beams=decode.beams, max_new_tokens=decode.max_new_tokens)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not out_of_memory(error) or len(examples) == 1:
            raise
    half = len(examples) // 2
    return _generate(model, examples[:half], decode) + _generate(model, examples[half:], decode)


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in order of length, cut where another would exceed `budget` padded tokens."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
