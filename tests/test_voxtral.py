"""Voxtral's windows, whole and trimmed, and its tokenizer."""

import base64
import json

import numpy as np
import pytest
import torch
import toy
from test_conformance import ASK, WAVES, heard, losses
from tiny_families import TINY
from transformers.integrations.mistral import convert_tekken_tokenizer

from trainer.families import load
from trainer.fields import SpecError
from trainer.resolve import read_and_resolve
from trainer.spec import parse_job
from trainer.tokens import AUDIO, BaseError, Tokens, render


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TINY["voxtral"].build(tmp_path_factory.mktemp("voxtral"))


@pytest.mark.parametrize("seconds", [0.02, 0.31, 1.95, 1.9999, 2.0, 2.001, 3.99, 4.0])
def test_whole_windows_of_mel_are_the_stock_ones_bit_for_bit(folder, seconds):
    """Also where the signal ends at a window's end, and without computing the silence behind it."""
    model, wave = load(folder), toy.wave(440, seconds)
    inputs = TINY["voxtral"].ask(
        TINY["voxtral"].processor(folder), render(ASK, AUDIO, prompt=model.tokens.prompt), wave
    )
    stock = np.concatenate(list(inputs["input_features"].numpy()), 1)
    assert np.array_equal(model.mel.filled(wave), stock)


def test_a_trimmed_window_ends_with_its_signal(folder):
    model = load(folder)
    whole = [model.tokens.audio_tokens(len(w)) for w in WAVES]
    assert whole == [16, 16, 16, 32]
    with torch.no_grad():
        before = model.audio_states([WAVES[0]])[0]
        model.hear("trimmed")
        # 250 samples a frame, 8 frames a vector.
        assert [model.tokens.audio_tokens(len(w)) for w in WAVES] == [-(-len(w) // 2000) for w in WAVES]
        after = model.audio_states([WAVES[0]])[0]
        assert len(after) == 3
        assert not torch.allclose(after, before[:3], atol=1e-3)  # no silence was attended: another input
        together, alone = model.encode(WAVES), [model.encode([w])[0] for w in WAVES]
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
        examples = heard(model)
        packed, _ = losses(model, examples)
        for e, got in zip(examples, packed, strict=True):
            one, _ = losses(model, [e])
            assert torch.allclose(got, one[0], atol=1e-3)
        model.hear("family")
        assert torch.equal(model.audio_states([WAVES[0]])[0], before)


def test_a_signal_that_fills_its_window_is_trimmed_to_nothing_less(folder):
    model, wave = load(folder), toy.wave(300, 4.0)
    with torch.no_grad():
        whole = model.encode([wave])[0]
        model.hear("trimmed")
        assert torch.equal(model.encode([wave])[0], whole)


def test_the_window_is_part_of_the_hash_only_where_it_is_chosen(folder, tmp_path):
    toy.data(tmp_path)
    plain, _ = toy.resolved(folder, tmp_path)
    assert toy.resolved(folder, tmp_path, encoder_window="family")[0].hash == plain.hash
    assert toy.resolved(folder, tmp_path, encoder_window="trimmed")[0].hash != plain.hash


def test_a_family_that_pads_nothing_refuses_to_trim(tmp_path):
    base = toy.base(tmp_path / "base")
    toy.data(tmp_path)
    for family in ("auto", "qwen2_audio"):
        with pytest.raises(SpecError, match=r"encoder_window.*qwen2_audio hears nothing.*only voxtral"):
            toy.resolved(base, tmp_path, encoder_window="trimmed", family=family)
    with pytest.raises(SpecError, match="encoder_window"):
        load(base).hear("trimmed")
    job = {"name": "x", "base": "no/where", "language": "en", "data": {"text": "text"}, "encoder_window": "short"}
    with pytest.raises(SpecError, match="encoder_window"):
        read_and_resolve(parse_job(job))


def test_a_folder_with_tekken_alone_names_the_remedy_which_works(folder, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AUDIO]", "[BEGIN_AUDIO]", "<pad>"]
    tekken = {
        "config": {"pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+", "default_vocab_size": 264,
                   "default_num_special_tokens": len(special), "version": "v7"},
        "vocab": [{"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode()} for n in range(256)],
        "special_tokens": [{"rank": n, "token_str": t, "is_control": True} for n, t in enumerate(special)],
    }  # fmt: skip
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    with pytest.raises(BaseError, match=r"no tokenizer\.json.*convert_tekken_tokenizer\('tekken\.json'\)"):
        Tokens(tmp_path)
    convert_tekken_tokenizer(str(tmp_path / "tekken.json")).save_pretrained(tmp_path)
    ids = Tokens(tmp_path).prompt_ids("ab", 16)
    assert ids == (1, 3, 6, *[5] * 16, 8 + ord("a"), 8 + ord("b"), 4)
