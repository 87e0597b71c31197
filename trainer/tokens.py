"""What a base model's family fixes before any weights are loaded: prompt pieces, tokenizer, audio-token
formula.
 Light on purpose: a dry run counts with the same table that the trainer builds its batches from, so that the
two cannot disagree. Lengths are checked here, and nothing is ever truncated.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from trainer import answers
from trainer.bases import BaseError, locate_base, read_json

__all__ = [
    "AUDIO", "PROMPTS", "TARGETS", "Audio", "AudioShape", "BaseError", "DataError", "LengthError", "Prompt",
    "Tokenizer", "Tokens", "audio_tokens", "family_of", "locate_base", "reference", "render", "transcript",
]  # fmt: skip


class DataError(ValueError):
    """An utterance, or a data set, that cannot be trained on or scored."""


class LengthError(DataError):
    """An utterance does not fit the base model. Nothing is truncated: shorten it, or leave it out."""


class Audio:
    """Stands for the recording in `render`, where the text view has the transcript."""


AUDIO = Audio()


@dataclass(frozen=True, slots=True)
class Prompt:
    """The pieces around instruction and content, as one family's chat template writes them."""

    before: str
    """Everything up to the user's content."""
    audio_before: str
    audio_token: str
    """Repeated once per audio vector that enters the language model."""
    audio_after: str
    after: str
    """Everything between the user's content and the answer."""
    end: str
    """Ends the answer; supervised like the answer."""
    order: str
    """The family's own order: `audio_first` or `instruction_first`."""


PROMPTS = {
    # Chat template of Qwen/Qwen2-Audio-7B-Instruct, with its default system turn.
    "qwen2_audio": Prompt(
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        audio_before="Audio 1: <|audio_bos|>",
        audio_token="<|AUDIO|>",
        audio_after="<|audio_eos|>\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        order="audio_first",
    ),
}
"""Prompt pieces by `model_type` of the base's config.json: the list of supported families."""

TARGETS = {"qwen2_audio": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}
"""Linear layers of a block of the family's language model: what may get adapters (`tuning.targets`)."""


def render(
    instruction: str,
    content: str | Audio,
    order: str = "family",
    *,
    prompt: Prompt = PROMPTS["qwen2_audio"],
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


@dataclass(frozen=True, slots=True)
class AudioShape:
    """Sample counts to frame counts: WhisperFeatureExtractor, then the two strides of the encoder."""

    sampling_rate: int
    """Hz."""
    hop_length: int
    """Samples per mel frame."""
    window_samples: int
    """Longest recording the encoder hears, in samples."""

    def mel_frames(self, num_samples: int) -> int:
        """Mel frames that hold signal."""
        return -(-num_samples // self.hop_length)

    def audio_tokens(self, num_samples: int) -> int:
        """Vectors that enter the language model: a stride-2 convolution, then average pooling by two."""
        return ((self.mel_frames(num_samples) - 1) // 2 + 1) // 2


def audio_tokens(num_samples: int, shape: AudioShape) -> int:
    """Vectors that enter the language model for a recording of `num_samples` at the shape's rate."""
    return shape.audio_tokens(num_samples)


class Tokenizer:
    """`tokenizer.json` of a base, without transformers: text to ids and back."""

    def __init__(self, folder: str | Path):
        self._tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.special = {t.content: i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
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
    """Everything about a base folder that can be known without its weights.

    Attributes: `family`, `prompt`, `tokenizer`, `shape`, `max_positions` (tokens), `end`, `audio_id`
    (token ids), `stops` (ids that end generation).
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        config = read_json(folder / "config.json")
        self.family = family_of(folder)
        self.prompt = PROMPTS[self.family]
        self.tokenizer = Tokenizer(folder)
        self.shape = _audio_shape(folder)
        self.max_positions = int(config.get("text_config", {}).get("max_position_embeddings", 32768))
        self.end = self.tokenizer.id(self.prompt.end)
        self.audio_id = self.tokenizer.id(self.prompt.audio_token)
        # Stock Qwen2-Audio stops at either (its generation_config.json).
        self.stops = {self.end} | {i for t, i in self.tokenizer.special.items() if t == "<|endoftext|>"}

    def prompt_ids(
        self, instruction: str, content: str | int, order: str = "family", *, name: str = "?"
    ) -> tuple[int, ...]:
        """Ids of the prompt. `content`: transcript, or number of audio tokens (placeholders). `name`:
        utterance id for messages."""
        for part in (instruction, content):
            if isinstance(part, str) and "<|" in part:
                found = next((s for s in self.tokenizer.special if s in part), None)
                if found:
                    raise DataError(f"utterance {name}: the text holds the control token {found!r}; remove it")
        if isinstance(content, str):
            return self.tokenizer.ids(render(instruction, content, order, prompt=self.prompt))
        # One placeholder is tokenised and then repeated: a special token splits the text either way, and the
        # cache holds one entry per instruction instead of one per length.
        ids = self.tokenizer.ids(render(instruction, AUDIO, order, prompt=self.prompt))
        at = ids.index(self.audio_id)
        return ids[:at] + (self.audio_id,) * content + ids[at + 1 :]

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
        instruction = answers.instruction(task, utterance.language)
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
        answer = len(self.answer_ids(answers.render(reference(utterance, task), task)))
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


def transcript(utterance) -> str:
    """The text that the text view shows; an utterance without one cannot be shown as text."""
    if not utterance.text:
        raise DataError(f"utterance {utterance.id}: no transcript, so it has no text view")
    return utterance.text


def family_of(folder: str | Path) -> str:
    """The family of a base folder: `model_type` of its config.json."""
    family = read_json(Path(folder) / "config.json").get("model_type")
    if family not in PROMPTS:
        raise BaseError(f"{folder}: model_type {family!r} is not supported; supported: {', '.join(PROMPTS)}")
    return family


def _audio_shape(folder: Path) -> AudioShape:
    """From processor_config.json (transformers 5) or preprocessor_config.json (hub folders of earlier
    ones)."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            config = read_json(folder / name)
            config = config.get("feature_extractor", config)
            if "hop_length" in config:
                rate = int(config.get("sampling_rate", 16000))
                return AudioShape(rate, int(config["hop_length"]), int(config.get("chunk_length", 30)) * rate)
    raise BaseError(f"{folder}: no processor_config.json or preprocessor_config.json with a feature extractor")
