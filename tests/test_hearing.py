"""The hearing check: its rule, its words, and what it is not fooled by."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from trainer import hearing
from trainer.families import load as load_model
from trainer.hearing import check, fold_of
from trainer.manifest import Utterance, write_manifest
from trainer.rng import philox
from trainer.spec import Task

TINY = Path(__file__).parents[1] / "models" / "tiny"
TASK = Task(name="t", instruction={"en": "Which?"}, answer="label", labels=["a", "b", "c", "d"])


class _Ears:
    """The parts of a model that the check itself touches."""

    class tokens:  # noqa: N801
        class shape:  # noqa: N801
            sampling_rate = 16000

        @staticmethod
        def audio_tokens(samples, *, name="?"):
            return samples


class _Silence:
    def wave(self, utterance):
        return np.zeros(160, np.float32)


def _spoken(n: int, *, text: bool = True, speakers: int = 6) -> list[Utterance]:
    return [
        Utterance(
            f"u{i:03}", "t", "xx", "train", text="one two three four" if text else None, label="abcd"[i % 4],
            audio=f"{i}.wav", speaker=f"s{i % speakers}" if speakers else None,
        )
        for i in range(n)
    ]  # fmt: skip


def _heard(monkeypatch, says) -> None:
    monkeypatch.setattr(hearing, "transcribe", lambda model, rows, recordings, between: [says(u) for u in rows])


def _sees(monkeypatch, feature) -> None:
    make = lambda model, recordings: lambda rows: np.stack([feature(u) for u in rows])  # noqa: E731
    monkeypatch.setattr(hearing, "pooled_features", make)


def _check(rows, **options):
    return check(_Ears(), rows, TASK, recordings=_Silence(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("says", "wer", "encoder", "words"),
    [
        ("One two, three four!", 0.0, "frozen", "hears this speech"),
        ("one two three", 0.25, "frozen", "hears this speech"),
        ("one two", 0.5, "lora", "hears part of it"),
        ("nine nine nine nine nine", 1.25, "lora", "text-only cannot work here; record or synthesise speech"),
    ],
)
def test_rule_and_words_of_the_word_error_rate(monkeypatch, says, wer, encoder, words):
    _heard(monkeypatch, lambda u: says)
    found = _check(_spoken(40))
    assert (found.wer, found.encoder, found.n, found.normaliser) == (wer, encoder, 40, "basic")
    assert words in found.verdict
    assert f"base WER {100 * wer:.0f} % on xx" in found.verdict
    assert found.probe_accuracy is None


def test_an_interval_over_the_rule_is_said(monkeypatch):
    _heard(monkeypatch, lambda u: "one two three four" if int(u.id[1:]) % 4 else "nine")
    found = _check(_spoken(40, speakers=0))
    assert found.wer == pytest.approx(0.25)
    assert found.wer_ci is not None
    assert found.wer_ci[0] < 0.25 < found.wer_ci[1]
    assert "25 % rule" in found.verdict


def test_the_sample_is_seeded_and_blind_to_the_order_of_rows(monkeypatch):
    asked: list[list[str]] = []

    def says(model, rows, recordings, between):
        asked.append(sorted(u.id for u in rows))
        return ["one"] * len(rows)

    monkeypatch.setattr(hearing, "transcribe", says)
    rows = _spoken(60)
    for order, seed in ((rows, 1), (rows[::-1], 1), (rows, 2)):
        assert _check(order, limit=10, seed=seed).n == 10
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_rows_without_transcript_are_left_to_the_probe_only_if_all_are(monkeypatch):
    _heard(monkeypatch, lambda u: "one two three four")
    rows = _spoken(10) + [replace(u, id=f"x{u.id}") for u in _spoken(30, text=False)]
    assert _check(rows).n == 10


def test_probe_that_sees_the_answer_leaves_the_encoder_frozen(monkeypatch):
    _sees(monkeypatch, lambda u: np.eye(4)["abcd".index(u.label)] + 0.1 * _noise(u.id, 4))
    found = _check(_spoken(72, text=False))
    assert (found.wer, found.normaliser, found.encoder) == (None, None, "frozen")
    assert found.probe_accuracy == 1.0
    assert found.majority_accuracy == 0.25
    assert "cross-validated by speaker" in found.verdict


def test_probe_that_sees_nothing_asks_for_the_encoder(monkeypatch):
    _sees(monkeypatch, lambda u: _noise(u.id, 8))
    found = _check(_spoken(72, text=False, speakers=0))
    assert found.encoder == "lora"
    assert found.probe_accuracy is not None
    assert found.probe_accuracy < 0.5
    assert "speakers unknown" in found.verdict


def test_a_probe_that_knows_only_the_voice_is_not_praised(monkeypatch):
    # Every speaker says one word only, and the features are the speaker.
    rows = [replace(u, label="abcd"[i % 4], speaker=f"s{i % 8}") for i, u in enumerate(_spoken(80, text=False))]
    _sees(monkeypatch, lambda u: np.eye(8)[int(u.id[1:]) % 8])
    by_speaker = _check(rows)
    by_utterance = _check([replace(u, speaker=None) for u in rows])
    assert by_utterance.probe_accuracy == 1.0
    assert by_speaker.probe_accuracy is not None
    assert by_speaker.probe_accuracy < 0.5


def test_folds_keep_speakers_whole():
    rows = _spoken(60)
    folds, by = fold_of(rows, 0)
    assert by == "speaker"
    for speaker in {u.speaker for u in rows}:
        assert len({f for f, u in zip(folds, rows, strict=True) if u.speaker == speaker}) == 1
    assert len(set(folds)) == hearing.FOLDS


def test_too_few_recordings_decide_nothing(monkeypatch):
    found = _check(_spoken(hearing.FEWEST - 1, text=False))
    assert (found.encoder, found.wer, found.probe_accuracy) == ("frozen", None, None)
    assert "too few for a probe" in found.verdict


def test_nothing_to_hear_is_an_error():
    with pytest.raises(ValueError, match="no recordings"):
        _check([Utterance("u", "t", "en", "train", text="hi", label="a")])


def test_with_a_real_model_long_recordings_are_left_out_and_counted(tmp_path):
    rows = []
    for i, seconds in enumerate((0.7, 0.9, 18.0)):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * _noise(f"w{i}", int(16000 * seconds)), 16000)
        rows.append(Utterance(f"u{i}", "t", "en", "train", text="yes", label="a", audio=str(tmp_path / f"{i}.wav")))
    model = load_model(TINY)
    found = check(model, rows, TASK)
    assert found.n == 2
    assert found.verdict.endswith("1 of 3 recordings are longer than the base hears and were left out.")
    with pytest.raises(ValueError, match="all 1 recordings are longer"):
        check(model, rows[2:], TASK)


def test_command_line_leaves_test_rows_alone(tmp_path, capsys):
    rows = []
    for i, split in enumerate(("train", "train", "test")):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * _noise(f"m{i}", 12000), 16000)
        rows.append(Utterance(f"u{i}", "mine", "en", split, text="yes", label="a", audio=f"{i}.wav"))
    write_manifest(rows, tmp_path / "manifest.jsonl")
    assert hearing.main([str(tmp_path), "--base", str(TINY), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 2
    assert found["encoder"] in ("frozen", "lora")
    assert hearing.main([str(tmp_path / "none"), "--base", str(TINY)]) == 2
    assert "no data set" in capsys.readouterr().err
    write_manifest([replace(u, text=None) for u in rows], tmp_path / "manifest.jsonl")
    assert hearing.main([str(tmp_path), "--base", str(TINY)]) == 2
    assert "put a task.yaml beside the manifest" in capsys.readouterr().err


def _noise(stream: str, n: int) -> np.ndarray:
    return philox(0, stream, n) / 2**64 - 0.5
