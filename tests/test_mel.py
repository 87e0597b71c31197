"""Our mel frames are the stock extractor's, bit for bit, at every length."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from trainer.features import Mel
from trainer.formats.qwen2_audio import shape

# The real Qwen2-Audio's, an older Whisper's, the tiny base's.
SETTINGS = [{"feature_size": 128}, {"feature_size": 80}, {"feature_size": 80, "hop_length": 320, "chunk_length": 16}]


def made(folder, **settings) -> tuple[WhisperFeatureExtractor, Mel]:
    WhisperFeatureExtractor(**settings).save_pretrained(folder)
    mel = Mel(folder, shape(folder))
    return mel.extractor, mel


@pytest.mark.parametrize("settings", SETTINGS)
def test_frames_are_the_stock_ones(tmp_path, settings):
    stock, mel = made(tmp_path, **settings)
    window, hop = stock.n_samples, stock.hop_length
    random = np.random.default_rng(0)
    near_the_end = [window - n for n in (0, 1, 100, hop, hop + 1, 2 * hop, 2 * hop + 1, 4 * hop + 3)]
    for samples in [1, 50, hop, hop + 1, 399, 400, 401, 16000, 48000, 48001, *near_the_end]:
        wave = (0.1 * random.standard_normal(samples)).astype(np.float32)
        if samples % 3 == 0:
            wave[: samples // 2] = 0
        padded = stock(wave, sampling_rate=16000, padding="max_length", return_tensors="np")["input_features"][0]
        ours = mel(wave)
        assert ours.dtype == padded.dtype
        assert ours.shape == (padded.shape[0], min(-(-samples // hop) + 2, padded.shape[1]))
        assert np.array_equal(ours, padded[:, : ours.shape[1]]), f"{samples} samples"
        assert np.array_equal(mel.whole(wave), padded)


def test_silence_is_the_floor(tmp_path):
    stock, mel = made(tmp_path, **SETTINGS[0])
    silent = np.zeros(16000, np.float32)
    assert np.array_equal(
        mel(silent), stock(silent, sampling_rate=16000, return_tensors="np")["input_features"][0][:, :102]
    )


def test_random_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dither: 0\.1 makes"):
        made(tmp_path, dither=0.1)
