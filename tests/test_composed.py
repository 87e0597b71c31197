"""Composed bases beyond what every family must do: against the stock encoders, composing, training end to end."""

import json

import numpy as np
import pytest
import tiny_composed
import torch
import toy
from tiny_composed import ENCODERS, Plain
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from trainer import audio, decoding
from trainer.__main__ import main
from trainer.bases import BaseError
from trainer.families import load
from trainer.families.composed import encoders, projectors
from trainer.families.composed.compose import PROJECTORS, compose
from trainer.families.composed.encoders import AudioTower
from trainer.families.composed.model import ComposedConfig
from trainer.formats.composed import ConvolutionFrames, MimiFrames, Shape, WhisperFrames, text_config
from trainer.objectives.cross_entropy import cross_entropy
from trainer.run import run
from trainer.spec import Tuning
from trainer.store import FolderStore
from trainer.tokens import AUDIO, Tokens, render
from trainer.views import Example

OTHERS = {
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {},
}
"""Language models that packs would not compute as they do."""
SAMPLES = (5000, 16000, 8123)
WAVES = [toy.wave(300 + 50 * n, count / 16000, seed=n) for n, count in enumerate(SAMPLES)]


def stock(name):
    """(stock model, extractor, tower of our own around its encoder)"""
    cls, config, extractor = ENCODERS[name]
    torch.manual_seed(1)
    model = cls(config).eval()
    model = getattr(model, "hubert", getattr(model, "model", model))
    settings = {**model.config.to_dict(), "model_type": "mimi_encoder" if name == "mimi" else name}
    tower = AudioTower(ComposedConfig(audio_config=settings, extractors=[extractor.to_dict()]))
    encoder = model.encoder if name in ("whisper", "mimi") else model
    tower.encoders[0].load_state_dict(encoder.state_dict())
    return model, extractor, tower.eval()


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True)


@torch.no_grad()
def test_whisper_of_a_full_window_is_the_stock_encoder():
    model, extractor, tower = stock("whisper")
    wave = toy.wave(440, 8.0)
    mel = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_features"]
    (got,) = tower([mel], [len(wave)])
    torch.testing.assert_close(got, model.encoder(mel).last_hidden_state[0])


@torch.no_grad()
def test_whisper_does_not_hear_its_padding():
    """The stock encoder does: it attends to it."""
    model, extractor, tower = stock("whisper")
    mel = extractor(WAVES[0], sampling_rate=16000, return_tensors="pt")["input_features"]
    (got,) = tower([mel], [SAMPLES[0]])
    (trimmed,) = tower([mel[..., : len(got) * 2 + 2]], [SAMPLES[0]])
    torch.testing.assert_close(got, trimmed)
    assert (model.encoder(mel).last_hidden_state[0][: len(got)] - got).abs().max() > 0.01


@pytest.mark.parametrize("name", ["hubert", "wav2vec2", "wavlm"])
@torch.no_grad()
def test_speech_encoders_together_are_the_stock_ones_alone(name):
    model, _, tower = stock(name)
    got = tower([padded(WAVES)], SAMPLES)
    for wave, states in zip(WAVES, got, strict=True):
        want = model(torch.from_numpy(wave)[None]).last_hidden_state[0]
        torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-5)
    lengths = model._get_feat_extract_output_lengths(torch.tensor(SAMPLES)).tolist()
    assert [len(s) for s in got] == lengths


@torch.no_grad()
def test_the_stock_batch_of_a_group_norm_depends_on_neighbours():
    """Why convolutions run one recording after the other."""
    model, _, tower = stock("hubert")
    mask = padded([np.ones(n, np.int64) for n in SAMPLES])
    want = tower([padded(WAVES)], SAMPLES)[0]
    got = model(padded(WAVES), attention_mask=mask).last_hidden_state[0, : len(want)]
    assert (got - want).abs().max() > 1e-3


@torch.no_grad()
def test_mimi_gives_the_stock_latents():
    model, _, tower = stock("mimi")
    got = tower([padded(WAVES)], SAMPLES)
    for wave, states in zip(WAVES, got, strict=True):
        torch.testing.assert_close(states, model.encoder(torch.from_numpy(wave)[None, None]).latents[0].T)
    assert [len(s) for s in got] == [-(-n // 1920) for n in SAMPLES]


@torch.no_grad()
def test_two_encoders_stand_side_by_side_in_time():
    a, b = ENCODERS["whisper"], ENCODERS["hubert"]
    config = ComposedConfig(
        audio_config=a[1].to_dict(), second_audio_config=b[1].to_dict(), extractors=[a[2].to_dict(), b[2].to_dict()]
    )
    tower = AudioTower(config).eval()
    mel = a[2](WAVES, sampling_rate=16000, return_tensors="pt")["input_features"]
    got = tower([mel, padded(WAVES)], SAMPLES)
    for n, (wave, states) in enumerate(zip(WAVES, got, strict=True)):
        heard = tower.encoders[1](torch.from_numpy(wave)[None]).last_hidden_state[0]
        assert states.shape == (-(-len(wave) // 320), 48)
        torch.testing.assert_close(states[: len(heard), 24:], heard, rtol=1e-4, atol=1e-5)
        assert (states[len(heard) :, 24:] == states[len(heard) - 1, 24:]).all(), n
    counted = torch.arange(12.0)[:, None]
    at = [(0, 0), (1, 4), (2, 8), (3, 11)]  # 12.5 Hz beside 50 Hz, which ends first
    assert [tuple(row.tolist()) for row in encoders.beside(counted[:4], counted, 1280, 320)] == at


@pytest.mark.parametrize(("kind", "settings"), [
    ("linear", {"stride": 3, "width": 8}),
    ("conv", {"stride": 6, "width": 8}),
    ("conv", {"stride": 1, "width": 8}),
    ("transformer", {"stride": 2, "width": 8, "layers": 2, "heads": 2, "key_heads": 1, "mlp": 8}),
    ("qformer", {"stride": 4, "queries": 3, "width": 8, "layers": 2, "heads": 2, "mlp": 8, "cross_every": 2}),
])  # fmt: skip
@torch.no_grad()
def test_projectors_take_any_lengths_together(kind, settings):
    torch.manual_seed(0)
    made = projectors.projector({"kind": kind, "queries": 1, **settings}, 5, 7).eval()
    rows = [torch.randn(n, 5) for n in (1, 13, 4, 8, 6)]
    whisper = WhisperFrames(16000, 480000, 160)
    shape = Shape(16000, 480000, (whisper,), settings["stride"], settings.get("queries", 1))
    got = made(rows).split([shape.audio_tokens(320 * len(row)) for row in rows])
    for row, vectors in zip(rows, got, strict=True):
        torch.testing.assert_close(vectors, made([row]))


@torch.no_grad()
def test_the_causal_projector_is_causal():
    torch.manual_seed(0)
    settings = {"kind": "transformer", "stride": 2, "width": 8, "layers": 2, "heads": 2, "key_heads": 1, "mlp": 8}
    made = projectors.projector(settings, 5, 7)
    row = torch.randn(12, 5)
    torch.testing.assert_close(made([row])[:3], made([row[:6]]))
    assert not torch.allclose(made([row])[3:], made([row.flip(0)])[3:])


def test_projectors_of_the_papers_have_their_sizes():
    """SALAD's adapter on Mimi before Qwen2.5-3B: 122 M; the contrastive paper's on HuBERT-large before Llama-8B: 42.5 M
    (both as reported, rounded)."""
    with torch.device("meta"):
        salad = projectors.projector({"kind": "transformer", "stride": 1, **PROJECTORS["transformer"]}, 512, 2048)
        four = {**PROJECTORS["qformer"], "queries": 4, "layers": 4, "cross_every": 1}
        contrastive = projectors.projector({"kind": "qformer", "stride": 17, **four}, 1024, 4096)
    assert sum(p.numel() for p in salad.parameters()) == pytest.approx(122e6, rel=0.02)
    assert sum(p.numel() for p in contrastive.parameters()) == pytest.approx(42.5e6, rel=0.02)


def test_frames_of_the_published_encoders():
    """Whisper-large: 1500 of 30 s; wav2vec 2.0: 49 of a second; Mimi: 12.5 per second."""
    layers = tuple(zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True))
    assert WhisperFrames(16000, 480000, 160).audio_tokens(480000) == 1500
    assert [ConvolutionFrames(16000, 480000, layers).audio_tokens(n) for n in (16000, 400, 399)] == [49, 1, 0]
    assert [MimiFrames(24000, 720000, 1920).audio_tokens(n) for n in (240000, 1921, 1, 0)] == [125, 2, 1, 0]


def test_a_sliding_window_bounds_the_context():
    text = {"max_position_embeddings": 32768, "sliding_window": 4096}
    assert text_config({"text_config": text})["max_position_embeddings"] == 4096
    for off in ({"use_sliding_window": False}, {"sliding_window": None}, {"layer_types": ["full_attention"]}):
        assert text_config({"text_config": {**text, **off}})["max_position_embeddings"] == 32768


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for name in ("whisper", "mimi"):
        tiny_composed.encoder(name, folder / name)
    tiny_composed.llm("llama", folder / "llm")
    tiny_composed.llm("qwen2", folder / "plain", template=None)
    tiny_composed.llm("qwen2", folder / "twice", template=tiny_composed.TEMPLATE * 2)
    return folder


@pytest.fixture(scope="module")
def folder(parts):
    given = ["compose", "--encoder", str(parts / "whisper"), "--llm", str(parts / "llm"), "--out", str(parts / "base")]
    assert main([*given, "--width", "16", "--window", "8"]) == 0
    return parts / "base"


def test_the_parts_keep_their_weights(parts, folder):
    model = load(folder)
    whisper = AutoModel.from_pretrained(parts / "whisper").encoder.state_dict()
    ours = model.audio_tower.encoders[0].state_dict()
    assert whisper.keys() == ours.keys()
    assert all(torch.equal(whisper[key], ours[key]) for key in whisper)
    llm = AutoModel.from_pretrained(parts / "llm").state_dict()
    ours = model.language_model.state_dict()
    assert llm.keys() == ours.keys()
    assert all(torch.equal(llm[key], ours[key]) for key in llm)
    assert model.stock.config.audio_config.dropout == 0
    assert len(AutoTokenizer.from_pretrained(parts / "llm")) == len(model.lm_head.weight) == model.tokens.audio_id


def test_a_base_that_knows_no_chat_gets_a_plain_prompt(parts):
    compose([str(parts / "whisper")], str(parts / "plain"), parts / "unchatty", settings={"width": 16})
    tokens = Tokens(parts / "unchatty")
    assert render("Say it.", AUDIO, prompt=tokens.prompt) == "<|audio|>\nSay it.\n"
    assert tokens.prompt.end == "<|im_end|>"
    assert tokens.shape.window_samples == 128000  # what the encoder has positions for, not the 30 s of the default


THINKS = (
    "<|begin|>{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_the_prompt_is_taken_from_the_chat_template(parts):
    """One with a token in front, and a thinking that can be switched off; the recording first or behind."""
    tiny_composed.llm("llama", parts / "thinks", template=THINKS)
    (parts / "thinks" / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    given = [str(parts / "whisper")], str(parts / "thinks"), parts / "thoughtless"
    compose(*given, settings={"width": 16}, order="instruction_first", audio_token="<|sound|>")
    tokens = Tokens(parts / "thoughtless")
    assert tokens.prompt.before == "<|begin|><|im_start|>user\n"
    assert tokens.prompt.after == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokens.prompt.end == "<|im_end|>"
    assert tokens.stops == {0, tokens.end}
    asked = render("Say it.", AUDIO, prompt=tokens.prompt)
    assert asked == f"{tokens.prompt.before}Say it.\n<|sound|>\n{tokens.prompt.after}"


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "mlp"}, "no such kind; there are linear, conv, transformer, qformer"),
    ({"settings": {"layers": 2}}, "--projector linear has no layers; it has stride, width"),
    ({"settings": {"stride": 0}}, "stride 0 must be at least 1"),
    ({"audio_token": "<|AUDIO|>"}, "has that token already; choose another"),
    ({"encoders": ["whisper", "mimi"]}, "the encoders hear at 16000 and 24000 Hz; they must agree"),
    ({"encoders": ["llm"]}, "'llama' is not supported; supported: whisper, hubert, wav2vec2, wavlm, mimi"),
    ({"out": "llm"}, "exists already; name a new folder"),
    ({"llm": "granite"}, "packed, it answers otherwise than by itself"),
    ({"llm": "gemma2"}, "gemma2 is not supported; take .* like Llama, Mistral or Qwen"),
    ({"llm": "lfm2"}, "lfm2 is not supported; take .* like Llama"),
    ({"llm": "twice"}, "its chat template does not show every turn as it is, and once"),
    ({"llm": "mamba"}, "mamba is not supported; take .* like Llama"),
])  # fmt: skip
def test_parts_that_do_not_go_together_are_refused(parts, change, message):
    if change.get("llm") in OTHERS:
        tiny_composed.llm("llama", parts / change["llm"])  # for its tokenizer
        config = AutoConfig.for_model(change["llm"], **tiny_composed.TEXT, **OTHERS[change["llm"]])
        tiny_composed.saved(AutoModelForCausalLM.from_config, config, parts / change["llm"])
    given = {"encoders": ["whisper"], "llm": "llm", "out": "refused", **change}
    heard, llm, out = ([str(parts / n) for n in given.pop("encoders")], *(parts / given.pop(k) for k in ("llm", "out")))
    with pytest.raises(BaseError, match=message):
        compose(heard, str(llm), out, **given)
    assert not (parts / "refused").exists()
    assert not (parts / "refused.part").exists()


def test_the_projector_is_trained_alone_and_saved(folder, tmp_path):
    """From a job to its result; what it saved, loaded again, answers as the trained model did."""
    world = toy.data(tmp_path / "data")
    changes = {
        "recipe": {"name": "sft"}, "data": {"speech": "speech"}, "steps": 4,
        "tuning": {"method": "projector", "encoder": "frozen"},
    }  # fmt: skip
    resolved, corpus = toy.resolved(folder, world, **changes)
    store, events = FolderStore(tmp_path / "out"), []
    result = run(resolved, store, corpus=corpus, threads=1, sink=events.append)
    assert result.outcome == "succeeded", result.message
    losses = [e["loss"] for e in events if e["kind"] == "step"]
    assert losses[-1] < losses[0]
    prefix = f"{result.checkpoint}/adapter/"
    files = {key.removeprefix(prefix): store.get(key) for key in store.list(prefix)}
    model = load(folder, tuning=resolved.spec.tuning)
    before = {k: p.detach().clone() for k, p in model.trained.items()}
    model.load_files({k: v for k, v in files.items() if k == "model.safetensors"})
    assert all(k.startswith("multi_modal_projector.") for k in before)
    assert all(not torch.equal(p, before[k]) for k, p in model.trained.items())
    rows = [json.loads(line) for line in store.get("attempts/1/predictions/speech.jsonl").splitlines()]
    assert len(rows) == 9
    for n, row in enumerate(rows):
        wave = audio.read(world / "speech" / "audio" / f"test{n}.wav", rate=16000)
        prompt = model.tokens.prompt_ids("Which tone?", model.tokens.audio_tokens(len(wave)))
        (ids,) = decoding.generate(model, [Example("", prompt, (), wave)], max_new_tokens=4)
        assert model.tokens.tokenizer.decode(ids) == row["text"]


def test_a_folder_without_a_model_is_said_so(parts, capsys):
    (parts / "empty").mkdir()
    given = ["compose", "--encoder", str(parts / "empty"), "--llm", str(parts / "llm"), "--out", str(parts / "nothing")]
    assert main(given) == 2
    assert "empty" in capsys.readouterr().err


def test_parts_without_all_their_weights_are_refused(parts):
    """They would be drawn at random."""
    cls, config, extractor = ENCODERS["hubert"]
    folder = tiny_composed.saved(cls, config, parts / "torn")
    extractor.save_pretrained(folder)
    deeper = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(BaseError, match=r"torn: no weights for 16 parameters, such as encoder.layers.2"):
        compose([str(folder)], str(parts / "llm"), parts / "nothing")


def test_a_base_of_several_shards_is_one(folder, tmp_path):
    model = Plain(folder).model
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def heard(model, waves):
    tokens = model.tokens
    return [
        Example(str(n), tokens.prompt_ids("Which?", tokens.audio_tokens(len(w))), tokens.answer_ids("low"), w)
        for n, w in enumerate(waves)
    ]


def gradients(model, examples):
    """Of the encoder, in training mode."""
    model.train()
    batch = model.collate(examples)
    cross_entropy(model.forward(batch), batch.targets).sum().backward()
    found = {k: p.grad for k, p in model.trained.items() if model.part_of(k) == "encoder" and p.grad is not None}
    for parameter in model.trained.values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("name", ["whisper and hubert linear", "wavlm transformer", "mimi linear"])
def test_an_encoder_trained_in_a_batch_gets_the_gradients_of_each_alone(tmp_path, name):
    """In fp64; nothing is dropped in training that was not asked for."""
    folder = tiny_composed.BUILD[f"attune_composed: {name}"](tmp_path)
    model = load(folder, tuning=Tuning(method="projector", encoder="full"), dtype=torch.float64)
    for parameter in model.trained.values():
        parameter.data = parameter.data.double()
    examples = heard(model, WAVES)
    together, alone = gradients(model, examples), [gradients(model, [e]) for e in examples]
    assert len(together) > 10
    for key, gradient in together.items():
        want = sum(one[key] for one in alone)
        assert float((gradient - want).norm()) <= 1e-7 * float(want.norm()) + 1e-12, key


@pytest.mark.parametrize("name", sorted(tiny_composed.BUILD))
def test_half_precision_is_near_full(tmp_path, name):
    """Frozen weights in bf16, trained ones in fp32: what a GPU computes with."""
    folder, found = tiny_composed.BUILD[name](tmp_path), {}
    for dtype in (torch.float32, torch.bfloat16):
        model = load(folder, tuning=Tuning(rank=2, alpha=4, encoder="full"), dtype=dtype)
        batch = model.collate(heard(model, WAVES))
        # oneDNN gives wrong values for bf16 convolutions as narrow as those of a tiny Mimi (torch 2.13).
        with torch.backends.mkldnn.flags(enabled="mimi" not in name):
            losses = cross_entropy(model.forward(batch), batch.targets)
            losses.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.trained.values() if p.grad is not None)
        found[dtype] = losses.detach()
    full, half = found.values()
    assert (half - full).abs().mean() < 0.1 * full.abs().mean()


def test_adapters_of_the_encoder_all_have_an_effect(tmp_path):
    """WavLM's attention reads its projections' weights past any adapter on them, so none is put there."""
    folder = tiny_composed.BUILD["attune_composed: wavlm transformer"](tmp_path)
    model = load(folder, tuning=Tuning(rank=2, alpha=4, encoder="lora"))
    found = {k: g for k, g in gradients(model, heard(model, WAVES[:1])).items() if "lora_B" in k}
    assert len(found) == 4
    assert all(g.abs().sum() > 0 for g in found.values())
