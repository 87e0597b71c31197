"""Seen how: from an utterance and a view to prompt ids, recording and answer ids."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer import answers, audio
from trainer.stage import Plain
from trainer.tokens import DataError, Tokens, asked, reference, transcript

TEXT, SPEECH = "text", "speech"
VIEWS = (TEXT, SPEECH)
"""Names of the numbers in `StagePlan.view`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance as the model gets it."""

    name: str
    """Utterance id, for messages."""
    prompt: tuple[int, ...]
    """Ids up to the answer, audio placeholders expanded."""
    answer: tuple[int, ...]
    """Ids that are supervised: the answer and its end."""
    wave: np.ndarray | None
    """Recording (samples,) float32 at the base's rate; None in the text view."""
    asked: str = ""
    """What examples have in common that may share a prefix: the instruction. Only a hint of where to look."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Recordings:
    """Decoded recordings by utterance, the latest kept in memory up to `limit_bytes`."""

    def __init__(self, rate: int, *, trim_silence: bool = False, limit_bytes: int = 1 << 30):
        self.rate, self.trim_silence, self.limit_bytes = rate, trim_silence, limit_bytes
        self._held: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def wave(self, utterance) -> np.ndarray:
        """(samples,) float32 mono at `rate`; errors of `trainer.audio.read`."""
        if utterance.audio is None:
            raise DataError(f"utterance {utterance.id}: no recording, so it has no speech view")
        key = (utterance.audio, utterance.offset_s, utterance.duration_s)
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


def example(
    utterance,
    view: str,
    task,
    tokens: Tokens,
    recordings: Recordings,
    *,
    supervised: bool = True,
    content: str | None = None,
) -> Example:
    """The plain view of one utterance. `content` replaces the transcript (cascade: what the base heard);
    `supervised=False` leaves the answer empty (prediction). DataError names the utterance."""
    try:
        return _example(utterance, view, task, tokens, recordings, supervised, content)
    except DataError:
        raise
    except ValueError as error:  # of the recording, or of a label that is none of the task's
        raise DataError(f"utterance {utterance.id}: {error}") from error


def _example(utterance, view, task, tokens, recordings, supervised, content) -> Example:
    instruction = asked(utterance, task)
    wave = None
    if view == SPEECH:
        wave = recordings.wave(utterance)
        shown: str | int = tokens.audio_tokens(len(wave), name=utterance.id)
    else:
        shown = transcript(utterance) if content is None else content
    prompt = tokens.prompt_ids(instruction, shown, task.prompt_order, name=utterance.id)
    answer: tuple[int, ...] = ()
    if supervised:
        answer = tokens.answer_ids(answers.render(reference(utterance, task), task))
    tokens.check_length(len(prompt), len(answer), name=utterance.id)
    return Example(utterance.id, prompt, answer, wave, answers.instruction(task, utterance.language))


def training_example(
    utterance, view: int, kind: Plain, tasks: Mapping[str, object], tokens: Tokens, recordings: Recordings
) -> Example:
    """The example of one presentation of a plan (`view`: its number there) under a stage's view."""
    match kind:
        case Plain():
            return example(utterance, VIEWS[view], tasks[utterance.task], tokens, recordings)
