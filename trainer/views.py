"""Seen how: from an utterance and a view to prompt ids, recording and answer ids."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np

from trainer import answers, audio
from trainer.context import Context, Shown
from trainer.example import Clip, Example
from trainer.interleaved import interleaved, running
from trainer.labels import names
from trainer.predictions import limited
from trainer.rng import philox
from trainer.spec import Task, builtin_tasks
from trainer.stage import Interleaved, Labels, Plain, Stage, Transcribe, Twin, View
from trainer.tokens import AudioShape, DataError, Tokens, asked, demonstration, right_answer, transcript
from trainer.words import in_turns

TEXT, SPEECH = "text", "speech"
VIEWS = (TEXT, SPEECH)
"""Names of the numbers in `StagePlan.view`."""
TRANSCRIBE = "transcribe"
"""Name of the built-in task that the view of that name asks."""


CLIPS = 100_000
"""Recordings whose length and key are remembered: some 100 MB of them, so that memory does not grow with the corpus."""


class Recordings:
    """Decoded recordings by utterance, the latest kept in memory up to `limit_bytes`."""

    def __init__(self, rate: int, *, trim_silence: bool = False, limit_bytes: int = 1 << 30):
        self.rate, self.trim_silence, self.limit_bytes = rate, trim_silence, limit_bytes
        self._held: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._clips: dict[tuple, Clip] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def clip(self, utterance) -> Clip:
        """The recording, decoded when it is needed; DataError names the utterance whenever that is."""
        key = (utterance.id, *_place(utterance))
        if (known := self._clips.get(key)) is not None:
            return known
        if len(self._clips) >= CLIPS:
            self._clips.clear()
        return self._clips.setdefault(key, Clip(partial(self._named, utterance)))

    def _named(self, utterance) -> np.ndarray:
        try:
            return self.wave(utterance)
        except ValueError as error:
            raise DataError(f"utterance {utterance.id}: {error}") from error

    def wave(self, utterance) -> np.ndarray:
        """(samples,) float32 mono at `rate`; errors of `trainer.audio.read`."""
        key = _place(utterance)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        wave = audio.read(utterance.audio, utterance.offset_s, utterance.duration_s, self.rate)
        if self.trim_silence:
            wave = audio.trim_silence(wave, self.rate)
        with self._lock:
            if key in self._held:  # another thread was first
                return self._held[key]
            self._held[key] = wave
            self._bytes += wave.nbytes
            while self._bytes > self.limit_bytes and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return wave


def _place(utterance) -> tuple:
    """Where a recording is; DataError where there is none."""
    if utterance.audio is None:
        raise DataError(f"utterance {utterance.id}: no recording, so it has no speech view")
    return utterance.audio, utterance.offset_s, utterance.duration_s


class Silence:
    """Stands for `Recordings` where only lengths count: silence, as long as a row's `duration_s` says, and nothing is
    decoded. Within what every family hears: what does not fit is for the recording itself to tell."""

    def __init__(self, shape: AudioShape):
        self.rate, self.most = shape.sampling_rate, shape.window_samples

    def wave(self, utterance) -> np.ndarray:
        """(samples,) zeros; DataError, AudioError as of `Recordings`."""
        path, offset_s, seconds = _place(utterance)
        if seconds is None:
            seconds = audio.info(path).duration_s - offset_s
        return np.zeros(max(self.rate // 4, min(self.most, round(seconds * self.rate))), np.float32)

    clip = wave


def example(
    utterance,
    view: str,
    task,
    tokens: Tokens,
    recordings: Recordings | Silence,
    *,
    supervised: bool = True,
    content: str | None = None,
    demonstrations: Sequence = (),
) -> Example:
    """The plain view of one utterance. `content` replaces the transcript (cascade: what the base heard);
    `supervised=False` leaves the answer empty (prediction); `demonstrations` are utterances that stand before it as
    text and answer. DataError names the utterance."""
    try:
        return _example(utterance, view, task, tokens, recordings, supervised, content, demonstrations)
    except DataError:
        raise
    except ValueError as error:  # of the recording, or of a label that is none of the task's
        raise DataError(f"utterance {utterance.id}: {error}") from error


def _example(utterance, view, task, tokens, recordings, supervised, content, demonstrations) -> Example:
    instruction = asked(utterance, task, [_demonstration(u, task) for u in demonstrations])
    name = utterance.id
    if demonstrations:
        name += f" after demonstrations {', '.join(u.id for u in demonstrations)}"
    wave = None
    if view == SPEECH:
        wave = recordings.clip(utterance)
        shown: str | int = tokens.audio_tokens(len(wave), name=utterance.id)
    else:
        shown = transcript(utterance) if content is None else content
    prompt = tokens.prompt_ids(instruction, shown, task.prompt_order, name=name)
    answer: tuple[int, ...] = ()
    if supervised:
        answer = tokens.answer_ids(right_answer(utterance, task))
    tokens.check_length(len(prompt), len(answer), name=name)
    return Example(utterance.id, prompt, answer, wave, answers.instruction(task, utterance.language))


def _demonstration(utterance, task) -> str:
    try:
        return demonstration(utterance, task)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"utterance {utterance.id}, a demonstration: {error}") from error


def _interleaved(utterance, view: str, kind: Interleaved, tokens, recordings, draws) -> tuple[Example, Example | None]:
    """The running text and its twin, where it has another than itself."""
    if view == TEXT:
        return running(utterance, tokens), None
    assert draws is not None, "segments are drawn"
    try:
        wave = recordings.wave(utterance)
        return interleaved(utterance, kind, tokens, wave, draws(len(utterance.words or ()) + 2).tolist())
    except DataError:
        raise
    except ValueError as error:  # of the recording
        raise DataError(f"utterance {utterance.id}: {error}") from error


@cache
def _transcription() -> Task:
    return builtin_tasks()[TRANSCRIBE]


def training_example(
    utterance,
    view: int,
    kind: View,
    tasks: Mapping,
    tokens: Tokens,
    recordings: Recordings | Silence,
    shown: Shown | None = None,
    *,
    twin: Twin | None = None,
    draws: Callable[[int], np.ndarray] | None = None,
) -> Example:
    """The example of one presentation of a plan (`view`: its number there) under a stage's view, with the `twin` that
    its objective asks for; `shown`: its context, where the view has one; `draws`: as many random words as it is asked
    for, the same whenever this presentation is made, where the view draws any."""
    match kind:
        case Plain():
            made = example(utterance, VIEWS[view], tasks[utterance.task], tokens, recordings)
        case Transcribe():
            bare = replace(utterance, task=TRANSCRIBE, label=None)
            made = example(bare, VIEWS[view], _transcription(), tokens, recordings)
        case Labels():
            assert shown is not None, "a view of labels has a context"
            given = names(tasks[utterance.task], kind, shown.seed, shown.draw)
            before = [given.utterance(u) for u in shown.demonstrations]
            seen = given.utterance(utterance)
            made = example(seen, VIEWS[view], given.task, tokens, recordings, demonstrations=before)
        case Interleaved():
            made, read = _interleaved(utterance, VIEWS[view], kind, tokens, recordings, draws)
            if twin == "asked":
                return replace(made, twin=read)
    if twin == "transcript":
        words = tokens.text_ids(transcript(utterance), name=utterance.id)
        return replace(made, twin=Example(utterance.id, words, (), None))
    if twin == "asked" and VIEWS[view] != TEXT:
        read = training_example(utterance, VIEWS.index(TEXT), kind, tasks, tokens, recordings, shown)
        return replace(made, twin=read)
    return made


def training_examples(
    resolved, corpus, contexts: Mapping[str, Context], tokens: Tokens, recordings: Recordings | Silence
) -> Callable[[Stage, str, int, int, int], Example]:
    """Makes the example of (stage, source, row, view, number of the presentation in the stage) of a resolved job."""
    tasks = {task.name: task for task in resolved.spec.tasks}
    rows = {name: corpus.sources[name].rows for name in resolved.sources}
    in_order = list(rows.values())

    def make(stage: Stage, source: str, row: int, view: int, at: int) -> Example:
        found = contexts.get(stage.name)
        shown = found and found.at(at, resolved.spec.seed, in_order)
        utterance, twin = rows[source][row], stage.objective.twin
        draws = partial(philox, resolved.spec.seed, f"segments/{stage.name}/{at}")
        return training_example(utterance, view, stage.view, tasks, tokens, recordings, shown, twin=twin, draws=draws)

    return make


def reference_examples(resolved, corpus, tokens: Tokens, recordings: Recordings, stage: Stage) -> list[Example]:
    """What misalignment and forgetting are measured on in a stage; labels go by their own names, as when scored."""
    assert stage.measure is not None
    tasks = {task.name: task for task in resolved.spec.tasks}
    timed = isinstance(stage.view, Interleaved)
    usable = [u for u in corpus.test.rows if u.audio and u.text and (not timed or in_turns(u))]
    view, speech = Plain() if isinstance(stage.view, Labels) else stage.view, VIEWS.index(SPEECH)
    made_of = (view, tasks, tokens, recordings)
    return [
        training_example(u, speech, *made_of, twin="asked", draws=partial(philox, 0, f"segments/measured/{n}"))
        for n, u in enumerate(limited(usable, stage.measure.utterances))
    ]
