"""Reading audio: every format and rate, offsets, errors; silence and clipping on made waves."""

import numpy as np
import pytest
import soundfile

from trainer.audio import AudioError, clipping_share, info, read, silence_share, trim_silence


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


FILES = {
    "a.wav": ("WAV", "PCM_16"),
    "f.wav": ("WAV", "FLOAT"),
    "a.flac": ("FLAC", "PCM_16"),
    "v.ogg": ("OGG", "VORBIS"),
    "o.ogg": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("name", FILES)
def test_every_format_and_rate_gives_the_same_tone(tmp_path, name, rate):
    kind, coding = FILES[name]
    if coding == "OPUS" and rate == 44_100:
        rate = 24_000  # Opus knows 8, 12, 16, 24 and 48 kHz
    soundfile.write(tmp_path / name, tone(1.0, rate), rate, format=kind, subtype=coding)
    wave = read(tmp_path / name)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert abs(len(wave) - 16_000) <= (2400 if kind == "MP3" else 16)  # MP3 frames pad the ends
    spectrum = np.abs(np.fft.rfft(wave[2000:14_000]))
    assert abs(spectrum.argmax() * 16_000 / 12_000 - 440) < 3
    assert np.abs(wave[4000:12_000]).max() == pytest.approx(0.5, abs=0.05)
    found = info(tmp_path / name)
    assert (found.rate, found.channels) == (rate, 1)
    assert found.format == f"{kind}/{coding}"


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.5, 16_000), tone(0.5, 16_000, level=0.1)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read(tmp_path / "s.wav"), (left + right) / 2, atol=1e-7)


def test_offset_and_duration_cut_what_they_say(tmp_path):
    wave = np.linspace(-0.9, 0.9, 32_000, dtype=np.float32)
    soundfile.write(tmp_path / "r.wav", wave, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read(tmp_path / "r.wav", 0.5, 0.25), wave[8000:12_000])
    np.testing.assert_array_equal(read(tmp_path / "r.wav", 1.5), wave[24_000:])
    np.testing.assert_array_equal(read(tmp_path / "r.wav", 1.5, 99.0), wave[24_000:])
    assert len(read(tmp_path / "r.wav", 0.5, 0.25, rate=8_000)) == 2_000


@pytest.mark.parametrize(
    ("code", "content", "offset", "says"),
    [
        ("missing", None, 0, "no such file"),
        ("unreadable", b"this is no sound", 0, "wav, flac"),
        ("unreadable", b"", 0, "unreadable"),
        ("empty", np.zeros(0, np.float32), 0, "no samples"),
        ("offset", np.zeros(1600, np.float32), 0.1, "correct offset_s"),
        ("not_finite", np.array([0, np.nan, 0], np.float32), 0, "no numbers"),
    ],
)
def test_errors_say_path_reason_and_remedy(tmp_path, code, content, offset, says):
    path = tmp_path / "bad clip.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=says) as caught:
        read(path, offset)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_a_folder_is_not_a_recording(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        read(tmp_path)


class TestSilence:
    quiet = np.zeros(16_000, np.float32)

    def test_share_and_trim(self):
        wave = np.concatenate([self.quiet, tone(1.0, 16_000), self.quiet, tone(1.0, 16_000), self.quiet])
        assert silence_share(wave) == pytest.approx(3 / 5, abs=0.01)
        trimmed = trim_silence(wave)
        assert len(trimmed) == pytest.approx(3 * 16_000 + 2 * 1_600, abs=640)  # the inner silence stays
        assert np.abs(trimmed).max() == pytest.approx(0.5, abs=1e-3)

    def test_noise_far_below_the_speech_is_silence(self):
        noise = np.random.default_rng(0).normal(0, 1e-3, 16_000).astype(np.float32)
        assert silence_share(np.concatenate([noise, tone(1.0, 16_000)])) == pytest.approx(0.5, abs=0.01)

    def test_quiet_speech_is_speech_and_a_click_does_not_silence_it(self):
        quiet_speech = tone(1.0, 16_000, level=0.004)
        assert silence_share(quiet_speech) == 0
        quiet_speech[100:110] = 1.0
        assert silence_share(quiet_speech) == 0

    def test_nothing_at_all(self):
        assert silence_share(self.quiet) == 1.0
        assert silence_share(self.quiet[:0]) == 1.0
        assert len(trim_silence(self.quiet)) == 16_000
        assert len(trim_silence(self.quiet[:0])) == 0


def test_clipping_counts_runs_at_full_scale_only():
    wave = tone(1.0, 16_000, hertz=100, level=0.9)
    assert clipping_share(wave) == 0
    clipped = np.clip(wave * 2, -1, 1)
    assert clipping_share(clipped) == pytest.approx(2 * np.arccos(1 / 1.8) / np.pi, abs=0.02)
    peaks = np.zeros(1000, np.float32)
    peaks[::10] = 1.0
    assert clipping_share(peaks) == 0
