"""What a base model's family fixes before any weights are loaded: prompt pieces, tokenizer, audio-token
formula.
 Light on purpose: a dry run counts with the same table that the trainer builds its batches from, so that the
two cannot disagree. Lengths are checked here, and nothing is ever truncated.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from trainer import answers
from trainer.bases import BaseError, locate_base, read_json
from trainer.fields import problem
from trainer.formats import FORMATS, PART_OF
from trainer.formats.prompt import AUDIO, Audio, AudioShape, Prompt
from trainer.formats.qwen2_audio import PROMPT as QWEN2_AUDIO

__all__ = [
    "AUDIO", "Audio", "AudioShape", "BaseError", "DataError", "LengthError", "Prompt", "Tokenizer", "Tokens",
    "family_of", "locate_base", "reference", "render", "transcript",
]  # fmt: skip


class DataError(ValueError):
    """An utterance, or a data set, that cannot be trained on or scored."""


class LengthError(DataError):
    """An utterance does not fit the base model. Nothing is truncated: shorten it, or leave it out."""


def render(
    instruction: str,
    content: str | Audio,
    order: str = "family",
    *,
    prompt: Prompt = QWEN2_AUDIO,
    audio_tokens: int = 1,
) -> str:
    """The prompt as one string; equal to the processor's chat template for `audio_tokens=1`.

    `order`: `family`, `audio_first` or `instruction_first`. In the text view the transcript and a line break
    stand where the audio piece stands, so that both views ask at the same place.
    """
    if isinstance(content, Audio):
        piece = prompt.audio_before + prompt.audio_token * audio_tokens + prompt.audio_after
    else:
        piece = content + "\n"
    if order == "family":
        order = prompt.order
    user = {"audio_first": piece + instruction, "instruction_first": f"{instruction}\n{piece}"}[order]
    return prompt.before + user + prompt.after


SAVED = "AutoTokenizer.from_pretrained('.').save_pretrained('.') of transformers"
TEKKEN = "transformers.integrations.mistral.convert_tekken_tokenizer('tekken.json').save_pretrained('.')"


class Tokenizer:
    """`tokenizer.json` of a base, without transformers: text to ids and back."""

    def __init__(self, folder: str | Path):
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            remedy = TEKKEN if (path.parent / "tekken.json").exists() else SAVED
            raise BaseError(
                f"{folder}: no tokenizer.json, from which Attune makes tokens; make it once, there: {remedy}"
            )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.special = {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        self.control = re.compile("|".join(re.escape(t) for t in self.special) or "(?!)")
        self._cached = functools.lru_cache(maxsize=200_000)(self._ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids; special tokens are recognised, none is added."""
        return self._cached(text)

    def id(self, token: str) -> int:
        """The id of one special token."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise BaseError(f"tokenizer.json has no token {token!r}: the folder is not of the family it claims")
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class Tokens:
    """Everything about a base folder that can be known without its weights, under the job's `encoder_window`.

    Attributes: `family`, `window`, `prompt`, `tokenizer`, `shape`, `max_positions` (tokens), `end`, `audio_id`
    (token ids), `stops` (ids that end generation).
    """

    def __init__(self, folder: str | Path, window: str = "family"):
        folder = Path(folder)
        config = read_json(folder / "config.json")
        self.family = family_of(folder)
        known = FORMATS[self.family]
        self.prompt = known.prompt(folder)
        self.tokenizer = Tokenizer(folder)
        self.window = window
        self.shape: AudioShape = known.shape(folder)
        if window == "trimmed":
            check_window(self.family, window)
            self.shape = known.trimmed(self.shape)
        self.max_positions = int(known.text_config(config).get("max_position_embeddings", 32768))
        self.end = self.tokenizer.id(self.prompt.end)
        self.audio_id = self.tokenizer.id(self.prompt.audio_token)
        ends = {*known.STOPS, *self.prompt.stops}
        self.stops = {self.end} | {i for t, i in self.tokenizer.special.items() if t in ends}

    def prompt_ids(
        self, instruction: str, content: str | int, order: str = "family", *, name: str = "?"
    ) -> tuple[int, ...]:
        """Ids of the prompt. `content`: transcript, or number of audio tokens (placeholders). `name`:
        utterance id for messages."""
        for part in (instruction, content):
            if isinstance(part, str):
                self._refuse_control(part, name)
        if isinstance(content, str):
            return self.tokenizer.ids(render(instruction, content, order, prompt=self.prompt))
        # One placeholder is tokenised and then repeated: a special token splits the text either way, and the
        # cache holds one entry per instruction instead of one per length.
        ids = self.tokenizer.ids(render(instruction, AUDIO, order, prompt=self.prompt))
        at = ids.index(self.audio_id)
        return ids[:at] + (self.audio_id,) * content + ids[at + 1 :]

    def text_ids(self, text: str, *, name: str = "?") -> tuple[int, ...]:
        """Ids of a text by itself, without prompt or end."""
        self._refuse_control(text, name)
        return self.tokenizer.ids(text)

    def _refuse_control(self, text: str, name: str) -> None:
        if found := self.tokenizer.control.search(text):
            raise DataError(f"utterance {name}: the text holds the control token {found[0]!r}; remove it")

    def answer_ids(self, answer: str) -> tuple[int, ...]:
        """Ids of the answer and its end: exactly what is supervised."""
        return (*self.tokenizer.ids(answer), self.end)

    def audio_tokens(self, num_samples: int, *, name: str = "?") -> int:
        """Audio tokens of a recording; LengthError where it is longer than the window or too short for
        one."""
        if num_samples > self.shape.window_samples:
            rate = self.shape.sampling_rate
            raise LengthError(
                f"utterance {name}: {num_samples / rate:.2f} s of audio, the base hears at most "
                f"{self.shape.window_samples / rate:g} s; cut the recording (offset_s, duration_s) or leave it out"
            )
        count = self.shape.audio_tokens(num_samples)
        if count < 1:
            raise LengthError(f"utterance {name}: {num_samples} samples of audio are too few for one audio token")
        return count

    def check_length(self, prompt: int, answer: int, *, name: str = "?") -> None:
        """LengthError where prompt and answer together (tokens) exceed the context window."""
        if prompt + answer > self.max_positions:
            raise LengthError(
                f"utterance {name}: {prompt} prompt + {answer} answer tokens, the context window holds "
                f"{self.max_positions}; shorten the instruction or leave the utterance out"
            )

    def count(self, utterance, task, view: str) -> tuple[int, int, int]:
        """(prompt, answer, audio) tokens of one example; `view` is `text` or `speech`. Audio tokens are part
        of the prompt. The recording's length is taken from `duration_s`, which a dry run has without
        decoding."""
        instruction = asked(utterance, task)
        audio = 0
        if view == "speech":
            if utterance.duration_s is None:
                raise DataError(f"utterance {utterance.id}: no duration_s; import or validate the data set first")
            samples = round(utterance.duration_s * self.shape.sampling_rate)
            audio = self.audio_tokens(samples, name=utterance.id)
            prompt = len(self.prompt_ids(instruction, audio, task.prompt_order, name=utterance.id))
        else:
            text = transcript(utterance)
            prompt = len(self.prompt_ids(instruction, text, task.prompt_order, name=utterance.id))
        answer = len(self.answer_ids(right_answer(utterance, task)))
        self.check_length(prompt, answer, name=utterance.id)
        return prompt, answer, audio


def reference(utterance, task):
    """What a right answer says, in manifest form: the label; for a text answer without one, the
    transcript."""
    if utterance.label is not None:
        return utterance.label
    if task.answer == "text" and utterance.text is not None:
        return utterance.text
    raise DataError(f"utterance {utterance.id}: no label, so task {task.name!r} has nothing to learn or to score")


def own_task(utterance, task):
    """The task as it is put to one utterance: with answer `choice` the utterance's own choices are its labels."""
    if task.answer != "choice":
        return task
    if not utterance.choices:
        raise DataError(f"utterance {utterance.id}: no choices, of which task {task.name!r} asks for one; list them")
    return task.model_copy(update={"labels": list(utterance.choices)})


def right_answer(utterance, task) -> str:
    """What is to be written; ValueError where the label is none of the task's."""
    return answers.render(reference(utterance, task), own_task(utterance, task))


def asked(utterance, task, demonstrations: Sequence[str] = ()) -> str:
    """The task's instruction, demonstrations and, where this is the utterance's task, its own question and choices: a
    cascade transcribes first."""
    question = utterance.question if utterance.task == task.name else None
    return answers.instruction(own_task(utterance, task), utterance.language, question, demonstrations)


def demonstration(utterance, task) -> str:
    """An utterance as `asked` shows it before another one: transcript, its question and choices, the right answer."""
    label, own = reference(utterance, task), own_task(utterance, task)
    return answers.demonstration(transcript(utterance), label, own, utterance.question)


def transcript(utterance) -> str:
    """The text that the text view shows; an utterance without one cannot be shown as text."""
    if not utterance.text:
        raise DataError(f"utterance {utterance.id}: no transcript, so it has no text view")
    return utterance.text


def check_window(family: str, window: str) -> None:
    """SpecError where a family has no such `encoder_window`."""
    if window == "trimmed" and not hasattr(FORMATS[family], "trimmed"):
        can = ", ".join(name for name, known in FORMATS.items() if hasattr(known, "trimmed"))
        message = f"{family} hears nothing behind the signal that could be left out (only {can}); leave it out"
        raise problem("encoder_window", message, window)


def family_of(folder: str | Path) -> str:
    """The family of a base folder: `model_type` of its config.json."""
    found = str(read_json(Path(folder) / "config.json").get("model_type"))
    family = PART_OF.get(found, found)
    if family not in FORMATS:
        raise BaseError(f"{folder}: model_type {found!r} is not supported; supported: {', '.join(FORMATS)}")
    return family
