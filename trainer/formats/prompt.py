"""The shape of what families fix: prompt pieces around instruction and content, and samples to audio tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from trainer.bases import BaseError, read_json


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
    stops: tuple[str, ...] = ()
    """Tokens that end generation besides `end` and the family's own, where they differ from base to base."""


@dataclass(frozen=True, slots=True)
class AudioShape(ABC):
    """Sample counts to counts of what the family makes of them."""

    sampling_rate: int
    """Hz."""
    window_samples: int
    """Longest recording the family takes, in samples."""

    @abstractmethod
    def audio_tokens(self, num_samples: int) -> int:
        """Vectors that enter the language model for a recording of `num_samples` at `sampling_rate`."""


@dataclass(frozen=True, slots=True)
class WhisperShape(AudioShape):
    """Frames of WhisperFeatureExtractor."""

    hop_length: int
    """Samples per mel frame."""

    def mel_frames(self, num_samples: int) -> int:
        """Mel frames that hold signal."""
        return -(-num_samples // self.hop_length)

    def padded(self, num_samples: int) -> int:
        """Samples up to which the family's extractor fills a recording with zeros."""
        return self.window_samples


def feature_extractor(folder: Path, key: str = "hop_length") -> dict:
    """Settings of a base's feature extractor, from processor_config.json (transformers 5) or preprocessor_config.json
    (hub folders of earlier ones), whichever has `key` among them."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            config = read_json(folder / name)
            config = config.get("feature_extractor") or config.get("audio_processor") or config
            config = {**config, **config.get("melspec_kwargs", {})}
            if key in config:
                return config
    raise BaseError(f"{folder}: no processor_config.json or preprocessor_config.json with a feature extractor")
