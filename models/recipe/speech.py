"""Text to speech by espeak-ng (through ctypes), resampling, and the log-mel features of Whisper."""

import ctypes
from typing import NamedTuple

import espeakng_loader
import numpy as np
import soxr
from transformers.audio_utils import mel_filter_bank

RATE, HOP, FFT, BANDS, WINDOW_FRAMES = 16000, 320, 400, 80, 600  # 50 frames/s, a window of 12 s
ACCENTS = {
    "en": [*"en-us en-us en en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc".split()],  # noqa: SIM905
    "fr": ["fr", "fr", "fr-be", "fr-ch"],
    "de": ["de"],
    "ar": ["ar"],
}
# Voice variants (timbre, formants, excitation) are disjoint: what is measured was never a training voice.
UNSEEN = ["m2", "m5", "f5", "Annie", "Michael", "belinda", "pablo", "linda"]
VARIANTS = (  # noqa: SIM905
    "m1 m3 m4 m6 m7 m8 f1 f2 f3 f4 klatt klatt2 klatt3 klatt4 klatt5 klatt6 Gene Gene2 Mike Andrea steph steph2 steph3 "
    "Denis Alex Alicia Lee Andy Hugo Jacky Henrique john Marco Mario Nguyen Reed Storm Tweaky Diogo antonio max edward "
    "edward2 robert sandro victor zac adam anika announcer aunty benjamin boris caleb david ed grandma grandpa "
    "gustave ian iven iven2 iven3 iven4 kaukovalta marcelo michel miguel mike2 norbert paul pedro quincy shelby travis "
    "RicishayMax RicishayMax2 RicishayMax3 AnxiousAndy Mr fast whisper whisperf croak UniRobot robosoft robosoft3 "
    "robosoft5"
).split()


class Spoken(NamedTuple):
    wave: np.ndarray  # float32 mono in -1..1
    rate: int  # Hz
    word_ms: list[float]  # start of each blank-separated word
    phones: list[tuple[float, str]]  # start in ms, espeak's name of the phoneme


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("ms", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Identifier),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _WORD, _PHONEME = 2, 1, 1, 1, 7
_RATE, _PITCH, _RANGE = 1, 3, 4


class Espeak:
    """One synthesiser per process; espeak-ng keeps global state."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS)
        self._wave, self._words, self._phones = [], {}, []
        self._callback = _CALLBACK(self._receive)  # the library keeps only a pointer: keep the object alive
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave, count, events) -> int:
        if wave and count > 0:
            self._wave.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
        i = 0
        while events and events[i].type:
            event = events[i]
            if event.type == _WORD:
                self._words[event.text_position] = event.ms
            elif event.type == _PHONEME:
                self._phones.append((float(event.ms), bytes(event.id.string).decode("utf-8", "replace")))
            i += 1
        return 0

    def say(self, text: str, voice: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> Spoken:
        """Speak `text` with `accent+variant`; rate in words/min, pitch and range 0..99. ValueError: no such voice."""
        for kept in (self._wave, self._words, self._phones):
            kept.clear()
        if self._lib.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"voice {voice!r}: espeak-ng has none of this name; see espeak-ng-data/voices")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._lib.espeak_Synth(data, len(data), 0, 1, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        starts, position = [], 1
        for word in text.split():  # espeak may merge two words: the second then starts with the first
            starts.append(float(max(self._words.get(position, -1), starts[-1] if starts else 0)))
            position += len(word) + 1
        wave = np.concatenate(self._wave).astype(np.float32) / 32768 if self._wave else np.zeros(0, np.float32)
        return Spoken(wave, self.rate, starts, list(self._phones))


def resample(wave: np.ndarray, rate: float) -> np.ndarray:
    """`wave` taken to be sampled at `rate` Hz -> 16 kHz float32."""
    return soxr.resample(wave, rate, RATE, quality="MQ").astype(np.float32)


_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)).astype(np.float32)
_MEL = mel_filter_bank(1 + FFT // 2, BANDS, 0, RATE / 2, RATE, norm="slaney", mel_scale="slaney").astype(np.float32)


def log_mel(wave: np.ndarray) -> np.ndarray:
    """(frames, 80): the valid frames of the model's WhisperFeatureExtractor, without computing its padding."""
    wave = wave[: WINDOW_FRAMES * HOP]
    frames = -(-len(wave) // HOP)
    tail = min(FFT, WINDOW_FRAMES * HOP - len(wave))
    padded = np.pad(np.pad(wave, (0, tail)), FFT // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][:frames]
    power = np.abs(np.fft.rfft(windows * _HANN, axis=1)).astype(np.float32) ** 2
    log = np.log10(np.maximum(power @ _MEL, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4
