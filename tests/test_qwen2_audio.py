import json

import numpy as np
import pytest
import torch
import toy
from peft import PeftModel
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from trainer.families import load
from trainer.features import FeatureCache, alike
from trainer.fields import SpecError
from trainer.spec import Execution, Tuning
from trainer.stage import Trainable
from trainer.tokens import AUDIO, render
from trainer.views import Example

ASK = "Which tone?"
LORA = Tuning(rank=4, alpha=8, encoder="frozen")
WAVES = [toy.wave(300 + 50 * i, s, seed=i) for i, s in enumerate((0.31, 1.0, 0.5, 2.26))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def examples(model, waves=WAVES):
    return [
        Example(
            str(i),
            model.tokens.prompt_ids(ASK, model.tokens.audio_tokens(len(w))),
            model.tokens.answer_ids(toy.LABELS[i % 3]),
            w,
        )
        for i, w in enumerate(waves)
    ]


def batch_of(model, waves=WAVES):
    return model.collate(examples(model, waves))


def jolt(model):
    """Moves every trained parameter, so that adapters are no longer neutral."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.05, generator=generator))


def stock_inputs(processor, waves, answer=""):
    text = [render(ASK, AUDIO) + answer] * len(waves)
    return processor(text=text, audio=list(waves), sampling_rate=16000, return_tensors="pt", padding=True)


@pytest.mark.parametrize("seconds", [0.061, 0.3, 1.0, 2.26, 15.96, 16.0])
def test_mel_is_the_padded_one_bit_for_bit(folder, processor, seconds):
    model = load(folder)
    clip = toy.wave(440, seconds)
    padded = processor.feature_extractor(clip, sampling_rate=16000, padding="max_length", return_tensors="np")
    mel = model.mel(clip)
    assert mel.shape[1] == min(-(-len(clip) // 320) + 2, 800)
    assert np.array_equal(mel, padded["input_features"][0][:, : mel.shape[1]])


def test_trimmed_encoder_equals_the_stock_padded_one(folder, processor):
    model = load(folder)
    for waves in (WAVES, WAVES[:1], [toy.wave(440, s) for s in (15.97, 15.99, 16.0, 0.4)]):
        with torch.no_grad():
            trimmed = model.encode(waves)
            for clip, states in zip(waves, trimmed, strict=True):
                inputs = stock_inputs(processor, [clip])
                captured = []
                hook = model.stock.model.audio_tower.register_forward_hook(lambda m, i, o, c=captured: c.append(o))
                stock = model.stock(**inputs).logits
                hook.remove()
                reference = captured[0].last_hidden_state[0, : len(states)]
                assert len(states) == int((inputs["input_ids"] == model.tokens.audio_id).sum())
                assert float((states - reference).abs().max() / reference.abs().max()) <= 1e-5
                ours = model.logits(model.states(model.embed(inputs["input_ids"], [clip])).last_hidden_state)
                assert float((ours - stock).abs().max() / stock.abs().max()) <= 1e-5


def test_logits_of_a_padded_batch_are_the_stock_ones_at_supervised_positions(folder, processor):
    model = load(folder)
    with torch.no_grad():
        batch = batch_of(model)
        ours = model.forward(batch)
        for r, clip in enumerate(WAVES):
            inputs = stock_inputs(processor, [clip], toy.LABELS[r % 3] + "<|im_end|>")
            stock = model.stock(**inputs).logits[0]
            answer = batch.targets[batch.rows == r]
            assert inputs["input_ids"][0, -len(answer) :].tolist() == answer.tolist()
            want = stock[-len(answer) - 1 : -1]
            assert float((ours[batch.rows == r] - want).abs().max() / want.abs().max()) <= 1e-5


def test_cached_states_do_not_depend_on_the_batch_nor_on_the_cache(folder, tmp_path):
    cold, warm = load(folder, cache=FeatureCache()), FeatureCache(tmp_path)
    for clip in reversed(WAVES):
        load(folder, cache=warm).audio_states([clip])
    warm.flush()
    again = load(folder, cache=FeatureCache(tmp_path))
    for a, b in zip(cold.audio_states(WAVES), again.audio_states(WAVES), strict=True):
        assert torch.equal(a, b)
    assert len(warm) == len(WAVES)


def test_states_made_together_are_those_made_alone(folder, monkeypatch):
    """To rounding; each once, in batches of alike length, and in the order asked for."""
    alone, together = load(folder).audio_states([*WAVES, WAVES[0]]), load(folder)
    together.execution = Execution(encoder_batches="on")
    states_of, batches = together.states_of, []
    monkeypatch.setattr(together, "states_of", lambda heard: batches.append(len(heard)) or states_of(heard))
    for a, b in zip(alone, together.audio_states([*WAVES, WAVES[0]]), strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max() / a.abs().max()) <= 1e-5
    assert sum(batches) == len(WAVES)
    assert len(batches) < len(WAVES)


def test_recordings_of_alike_length_go_together():
    assert alike([]) == []
    assert alike([5]) == [[0]]
    assert alike([100, 40, 99, 41, 1000]) == [[1, 3], [2, 0], [4]]
    assert alike([10] * 5, most=30) == [[0, 1, 2], [3, 4]]


def test_cached_states_stay_within_their_bytes_and_come_back_from_disk(tmp_path):
    def states(value, dtype=np.float32):
        return np.full((5, 4), value, dtype)

    cache = FeatureCache(limit=2 * states(0).nbytes)
    for n in range(2):
        cache.put("e", f"w{n}", states(n))
    assert cache.get("e", "w0") is not None  # used last, so w1 goes
    assert (cache.put("e", "w2", states(2)) == 2).all()
    assert cache.get("e", "w1") is None
    assert cache.bytes == cache.limit
    assert len(cache) == 2
    cache.put("e", "w2", states(3))
    assert cache.bytes == cache.limit
    assert FeatureCache(limit=1).put("e", "w", states(7)).mean() == 7  # used, though not kept
    small = FeatureCache(tmp_path, limit=1)
    for dtype in (np.float32, np.float16):
        small.put("e", np.dtype(dtype).name, states(1, dtype))
        found = small.get("e", np.dtype(dtype).name)
        assert found is not None
        assert found.dtype == dtype
        assert len(small) == 0


def test_a_cache_too_small_for_anything_changes_no_bit(folder):
    roomy, narrow = load(folder), load(folder, cache=FeatureCache(limit=0))
    for _ in range(2):
        for a, b in zip(roomy.audio_states(WAVES), narrow.audio_states(WAVES), strict=True):
            assert torch.equal(a, b)
    assert len(narrow.cache) == 0


def test_cache_tells_encoders_apart(folder, tmp_path):
    cache = FeatureCache()
    one = load(folder, cache=cache).audio_states(WAVES[:1])[0]
    other = load(toy.base(tmp_path / "other", seed=5), cache=cache).audio_states(WAVES[:1])[0]
    assert not torch.equal(one, other)


def test_lora_stays_off_the_audio_tower(folder):
    model = load(folder, tuning=LORA)
    assert {model.part_of(k) for k in model.trained} == {"lm", "projector"}
    assert all("lora_" in k for k in model.trained if model.part_of(k) == "lm")
    assert model.encoder_is_base
    everywhere = load(folder, tuning=LORA.model_copy(update={"encoder": "lora"}))
    tower = [k for k in everywhere.trained if everywhere.part_of(k) == "encoder"]
    assert tower
    assert all("lora_" in k for k in tower)
    assert not everywhere.encoder_is_base
    assert everywhere.lr_scales["encoder"] == LORA.encoder_lr_scale


def test_a_stage_opens_only_what_it_trains(folder):
    model = load(folder, tuning=LORA.model_copy(update={"encoder": "full"}))
    groups = model.set_trainable(Trainable(lm=True))
    assert groups["lm"]
    assert not groups["projector"] + groups["encoder"]
    groups = model.set_trainable(Trainable(lm=False, projector=True, encoder=True))
    assert {k for k, p in model.trained.items() if p.requires_grad} == {*groups["projector"], *groups["encoder"]}
    assert not any("embed_positions" in k for k in model.trained)


def test_lora_start_depends_on_the_seed_alone(folder):
    a, b, c = (load(folder, tuning=LORA, seed=s).files()["adapter_model.safetensors"] for s in (1, 1, 2))
    assert a == b
    assert a != c


@pytest.mark.parametrize("encoder", ["frozen", "lora", "full"])
def test_adapter_in_stock_peft_gives_the_same_logits(folder, processor, tmp_path, encoder):
    model = load(folder, tuning=LORA.model_copy(update={"encoder": encoder}), name="someone/base")
    jolt(model)
    for name, content in model.files().items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/base"
    assert str(folder) not in json.dumps(config)
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, tmp_path).eval()
    inputs = stock_inputs(processor, WAVES[:1])
    with torch.no_grad():
        want = stock(**inputs).logits
        model.train(False)
        got = model.logits(model.states(model.embed(inputs["input_ids"], WAVES[:1])).last_hidden_state)
        bare = load(folder).stock(**inputs).logits
    assert float((got - want).abs().max() / want.abs().max()) <= 1e-5
    assert float((bare - want).abs().max() / want.abs().max()) > 1e-2


@pytest.mark.parametrize("tuning", [
    LORA, LORA.model_copy(update={"encoder": "full"}), Tuning(method="full", encoder="full"),
    Tuning(method="projector", encoder="frozen"),
])  # fmt: skip
def test_saved_state_comes_back_bit_for_bit(folder, tuning):
    model = load(folder, tuning=tuning)
    jolt(model)
    files = model.files()
    other = load(folder, tuning=tuning, seed=9)
    other.load_files(files)
    assert other.files() == files
    for key, parameter in model.trained.items():
        assert torch.equal(parameter, other.trained[key]), key


@pytest.mark.parametrize("encoder", ["frozen", "lora", "full"])
def test_detach_gives_the_untouched_base_back(folder, encoder):
    model = load(folder)
    tuning = LORA.model_copy(update={"encoder": encoder})
    with torch.no_grad():
        before = model.forward(batch_of(model))
    for seed in (1, 2):
        model.attach(tuning, seed=seed)
        fresh = load(folder, tuning=tuning, seed=seed)
        assert model.files() == fresh.files()
        jolt(model)
        model.detach()
    assert not [n for n, _ in model.stock.named_modules() if "lora" in n]
    with torch.no_grad():
        assert torch.equal(model.forward(batch_of(model)), before)


def test_detach_notices_a_base_that_changed(folder):
    model = load(folder, tuning=LORA)
    with torch.no_grad():
        model.stock.lm_head.weight[0, 0] += 1
    with pytest.raises(RuntimeError, match="weights changed"):
        model.detach()


@pytest.mark.parametrize("encoder", ["frozen", "lora", "full"])
def test_base_only_hears_and_answers_like_the_base(folder, encoder):
    model = load(folder, tuning=LORA.model_copy(update={"encoder": encoder}))
    jolt(model)
    model.train(False)
    bare = load(folder)
    with torch.no_grad():
        want = bare.forward(batch_of(bare))
        tuned = model.forward(batch_of(model))
        with model.base_only():
            got = model.forward(batch_of(model))
        assert torch.allclose(got, want, atol=1e-5)
        assert not torch.allclose(tuned, want, atol=1e-3)
        assert torch.equal(model.forward(batch_of(model)), tuned)


def test_what_cannot_be_tuned_is_said(folder):
    with pytest.raises(SpecError, match=r"tuning\.targets: .*it has .*q_proj"):
        load(folder, tuning=LORA.model_copy(update={"targets": ["fc1"]}))
    with pytest.raises(SpecError, match=r"tuning\.encoder: 'auto' must be settled"):
        load(folder, tuning=Tuning())
