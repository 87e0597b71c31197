"""What every family must do alike: one suite over tiny random bases of the real classes."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import toy
from tiny_families import TINY
from torch.nn.attention import flex_attention

from trainer import audio, decoding
from trainer.estimate import parameters
from trainer.families import FAMILIES, load
from trainer.formats import FORMATS
from trainer.objectives import objective_loss
from trainer.objectives.cross_entropy import cross_entropy
from trainer.spec import Execution, Tuning
from trainer.stage import Contrastive, CrossEntropy, Distillation
from trainer.tokens import AUDIO, LengthError, render
from trainer.views import Example

ASK, OTHER = "Which tone do you hear in this recording?", "Say it again."
SECONDS = (0.31, 1.0, 0.5, 2.26)
WAVES = [toy.wave(300 + 50 * i, s, seed=i) for i, s in enumerate(SECONDS)]
ORDERS = ["audio_first", "instruction_first"]
LORA = Tuning(rank=4, alpha=8, encoder="frozen")


@pytest.fixture(scope="module", params=sorted(TINY))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return TINY[family].build(tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def base(folder):
    return load(folder)


@pytest.fixture(scope="module")
def processor(family, folder):
    return TINY[family].processor(folder)


def heard(model, waves=WAVES, order="family", ask=ASK):
    """Speech examples of one instruction, answers of different lengths."""
    return [
        Example(
            f"{ask}{i}",
            model.tokens.prompt_ids(ask, model.tokens.audio_tokens(len(w)), order),
            model.tokens.answer_ids(["low", "middle", "high"][i % 3] * (1 + i % 2)),
            w,
            ask,
        )
        for i, w in enumerate(waves)
    ]


def read(model, order="family", ask=ASK):
    """Text examples of one instruction."""
    said = ["a low tone", "rather a high tone than a low one", "x"]
    return [Example(t, model.tokens.prompt_ids(ask, t, order), model.tokens.answer_ids("low"), None, ask) for t in said]


def mixed(model, order="family"):
    """Speech and text under two instructions, shuffled together."""
    a, b = [*heard(model, order=order), *read(model, order)], heard(model, WAVES[:2], order, OTHER)
    return [a[0], b[0], a[5], a[2], a[4], b[1], a[1], a[3], a[6]]


def trained(folder, dtype=torch.float32, tuning=LORA):
    """A base with an adapter that does something."""
    model = load(folder, tuning=tuning, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.data = parameter.data.to(dtype)
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.05, generator=generator))
    return model


def losses(model, examples):
    """Loss per supervised token by example, and the gradients of their sum."""
    for parameter in model.trained.values():
        parameter.grad = None
    batch = model.collate(examples)
    tokens = cross_entropy(model.forward(batch), batch.targets)
    if model.trained:
        tokens.sum().backward()
    by_row = [tokens.detach()[batch.rows == r] for r in range(len(examples))]
    return by_row, {k: p.grad for k, p in model.trained.items() if p.grad is not None}


def close(a, b, tolerance):
    return float((a - b).abs().max()) <= tolerance * max(1e-3, float(b.abs().max()))


def test_all_supported_families_are_here():
    assert {name.split(":")[0] for name in TINY} == set(FAMILIES) == set(FORMATS)


@pytest.mark.parametrize("order", ORDERS)
def test_the_prompt_is_the_processors_chat_template(family, base, processor, order):
    """Both orders of the user's content; the transcript in the place of the recording."""
    piece, text = {"type": "audio", "audio": "x.wav"}, {"type": "text", "text": ASK}
    content = [piece, text] if order == "audio_first" else [{"type": "text", "text": ASK + "\n"}, piece]
    want = TINY[family].template(processor, [{"role": "user", "content": content}])
    asked, written = ASK, order
    if order not in TINY[family].orders:  # the template writes its own, and what was asked as it stands
        asked, written = ASK + "\n", TINY[family].orders[0]
    assert render(asked, AUDIO, written, prompt=base.tokens.prompt) == want


def test_audio_tokens_are_counted_as_the_processor_does(family, base, processor):
    for seconds in (0.1, 0.3, 0.5, 0.985, 1.0, 2.01, 5.003, TINY[family].window_s):
        wave = toy.wave(440, seconds)
        inputs = TINY[family].ask(processor, render(ASK, AUDIO, prompt=base.tokens.prompt), wave)
        ids = inputs["input_ids"][0]
        assert int((ids == base.tokens.audio_id).sum()) == base.tokens.audio_tokens(len(wave)), seconds
        assert tuple(ids.tolist()) == base.tokens.prompt_ids(ASK, base.tokens.audio_tokens(len(wave)))


def test_what_the_loss_does_not_read_is_left_out_without_changing_it(family, folder, base, processor):
    """Packs of trimmed recordings against the stock forward, alone and as its own processor pads it."""
    examples = heard(base)
    with torch.no_grad():
        by_row, _ = losses(base, examples)
        for e, got in zip(examples, by_row, strict=True):
            answer = base.tokens.tokenizer.decode(e.answer[:-1]) + base.tokens.prompt.end
            inputs = TINY[family].ask(processor, render(ASK, AUDIO, prompt=base.tokens.prompt) + answer, e.wave)
            assert tuple(inputs["input_ids"][0].tolist()) == e.prompt + e.answer
            logits = base.stock(**inputs).logits[0, -len(e.answer) - 1 : -1].float()
            assert close(got, cross_entropy(logits, torch.tensor(e.answer)), 1e-4), e.name


@pytest.mark.parametrize("order", ORDERS)
def test_packed_and_shared_equal_one_by_one(folder, order):
    """Loss and every gradient, in fp64."""
    model = trained(folder, torch.float64)
    examples = mixed(model, order)
    found = {}
    for name, changes in {
        "shared": {}, "whole": {"share_prefix": False}, "dense": {"attention": "dense"},
        "not cached": {"feature_cache": False},
    }.items():  # fmt: skip
        model.execution = Execution(**changes)
        found[name] = losses(model, examples)
    alone = [losses(model, [e]) for e in examples]
    want = {k: sum(g[k] for _, g in alone if k in g) for k in found["shared"][1]}
    for name, (by_row, gradients) in found.items():
        for got, (one, _) in zip(by_row, alone, strict=True):
            assert close(got, one[0], 1e-9), name
        assert gradients.keys() == want.keys()
        for key, gradient in gradients.items():
            assert float((gradient - want[key]).norm()) <= 1e-7 * float(want[key].norm()) + 1e-12, (name, key)


PLAIN = Execution(
    packing=False, share_prefix=False, attention="dense", trimming=False, encoder_batches="off", supervised_only=False,
    chunk=0, feature_cache=False, checkpointing="off", prefetch=0,
)  # fmt: skip
"""Every example alone and whole through the stock layers."""
FAST = Execution(chunk=7, encoder_batches="on", checkpointing="on")
SWITCHES = {name: value for name, value in PLAIN if name not in ("feature_cache", "prefetch")}
"""Without a learning encoder's cache, which is tested above, and what the loop does (tests/test_equalities.py)."""


def step(model, examples, execution):
    """A step as the loop computes it: mean loss per supervised token by example, and the gradients of the sum."""
    model.execution = execution
    for layer in model.language_model.layers:
        layer.gradient_checkpointing = False
    if execution.checkpointing == "on":
        model.save_memory()
    for parameter in model.trained.values():
        parameter.grad = None
    rows = torch.zeros(len(examples), dtype=torch.float64)
    for indices in model.micro_batches(examples, 10**6)[0]:
        loss = objective_loss(CrossEntropy(), model, model.collate([examples[i] for i in indices]))
        loss.total.backward()
        rows[indices] = loss.rows
    return rows, {k: p.grad for k, p in model.trained.items() if p.grad is not None}


def test_no_switch_of_execution_changes_a_step(folder):
    """Loss of every example and every gradient, those of a learning encoder too, in fp64 but for norms, which the stock
    classes take in fp32: each switch off by itself, and all of them."""
    model = trained(folder, torch.float64, LORA.model_copy(update={"encoder": "lora"}))
    model.train()
    examples = mixed(model, "instruction_first")[:6]
    want, gradients = step(model, examples, PLAIN)
    for name, changes in {"all on": {}, **{k: {k: v} for k, v in SWITCHES.items()}}.items():
        got, found = step(model, examples, FAST.model_copy(update=changes))
        assert close(got, want, 1e-9), name
        assert found.keys() == gradients.keys()
        for key, gradient in found.items():
            off = float((gradient - gradients[key]).norm())
            assert off <= 1e-6 * float(gradients[key].norm()) + 1e-12, (name, key)


@pytest.mark.parametrize("tuning", [LORA, LORA.model_copy(update={"dora": True})], ids=["lora", "dora"])
def test_computing_activations_again_changes_nothing(folder, tuning):
    """Nor does cutting the logits into pieces."""
    model = trained(folder, torch.float64, tuning)
    model.train()
    batch, found = model.collate(mixed(model)), []
    for _ in range(2):
        for parameter in model.trained.values():
            parameter.grad = None
        total = objective_loss(CrossEntropy(), model, batch).total
        total.backward()
        found.append({"loss": total.detach(), **{k: p.grad for k, p in model.trained.items() if p.grad is not None}})
        model.execution = Execution(chunk=3)
        assert model.save_memory() == (len(found) == 1)  # on, and then it is on
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert float((value - found[1][key]).norm()) <= 1e-9 * float(value.norm()) + 1e-15, key


def test_parameters_are_estimated_from_the_config(family, folder, base):
    """Norms and biases are left out, and a head may be the embeddings themselves."""
    lm, met, encoder = parameters(family.split(":")[0], json.loads((folder / "config.json").read_text()))
    made = sum(p.numel() for n, p in base.stock.named_parameters() if base.part_of(n) == "lm")
    if base.stock.get_input_embeddings().weight is base.lm_head.weight:
        made += base.lm_head.weight.numel()
    assert abs(lm - made) <= 0.01 * made
    assert met <= lm
    assert encoder > 0


def test_states_of_layers_are_the_stock_ones(base):
    """Every example of the pack alone, at the inputs (which Granite's decoder scales first), in the middle and after
    the final norm."""
    examples = [replace(e, answer=()) for e in mixed(base)]
    last = len(base.language_model.layers)
    depths = [0, 1, last]
    with torch.no_grad():
        for e, found in zip(examples, base.layer_states(examples, depths), strict=True):
            inputs = base.embed(torch.tensor([e.prompt]), [] if e.wave is None else [e.wave])
            want = base.language_model(inputs_embeds=inputs, output_hidden_states=True).hidden_states
            scale = float(want[0].norm() / inputs.norm())
            for depth, states in zip(depths, found, strict=True):
                assert close(states * (scale if depth == 0 else 1), want[depth][0], 1e-4), (e.name, depth)


@pytest.mark.parametrize("kind", [
    Distillation(alpha=0.5), Contrastive(group_size=2, answer_weight=1.0),
    Contrastive(group_size=4, similarity="wasserstein"),
], ids=["distillation", "cosine", "wasserstein"])  # fmt: skip
def test_objectives_that_compare_have_finite_gradients(folder, kind):
    model = trained(folder)
    model.train()
    words = [model.tokens.text_ids(w) for w in ("a low tone", "a high one", "x", "nothing")]
    if kind.twin == "asked":
        read_instead = [(model.tokens.prompt_ids(ASK, w), e) for w, e in zip("abcd", heard(model), strict=True)]
        examples = [replace(e, twin=Example("", prompt, e.answer, None, ASK)) for prompt, e in read_instead]
    else:
        examples = [replace(e, twin=Example("", w, (), None)) for w, e in zip(words, heard(model), strict=True)]
    objective_loss(kind, model, model.collate(examples)).total.backward()
    found = {model.part_of(k): p.grad for k, p in model.trained.items() if p.grad is not None}
    assert {"lm", "projector"} <= set(found)
    assert all(torch.isfinite(p.grad).all() for p in model.trained.values() if p.grad is not None)


def test_sharing_leaves_tokens_out(base):
    batch = base.collate(mixed(base, "instruction_first"))
    assert batch.given / len(batch.ids) > 1.3


def test_flex_agrees_with_segments(folder, monkeypatch):
    """Loss and every gradient, by torch's own plain form of the kernel. On a CPU torch refuses the backward pass, as it
    would not compile there, though the plain form has one: the refusal is taken out of the way here. The compiled
    kernel itself takes a GPU."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)
    model = trained(folder, torch.float64)
    want, gradients = losses(model, mixed(model))
    model.execution = Execution(attention="flex")
    got, found = losses(model, mixed(model))
    for a, b in zip(got, want, strict=True):
        assert close(a, b, 1e-6)
    assert found.keys() == gradients.keys()
    for key, gradient in found.items():
        assert float((gradient - gradients[key]).norm()) <= 1e-5 * float(gradients[key].norm()) + 1e-9, key


def test_text_alone_works(folder):
    model = trained(folder)
    by_row, gradients = losses(model, read(model))
    assert all(torch.isfinite(row).all() for row in by_row)
    assert gradients
    assert not any(model.part_of(k) != "lm" and g.abs().sum() > 0 for k, g in gradients.items())


def test_supervised_is_the_answer_alone(base):
    examples = mixed(base)
    batch = base.collate(examples)
    for row, e in enumerate(examples):
        mine = batch.rows == row
        assert tuple(batch.targets[mine].tolist()) == e.answer
        assert tuple(batch.ids[batch.at[mine][:-1] + 1].tolist()) == e.answer[:-1]
    assert not (batch.targets == base.tokens.audio_id).any()


def test_adapters_stay_off_the_encoder_unless_asked_for(folder):
    model = load(folder, tuning=LORA)
    assert {model.part_of(k) for k in model.trained} == {"lm", "projector"}
    assert all("lora_" in k for k in model.trained if model.part_of(k) == "lm")
    for how in ("lora", "full"):
        asked = load(folder, tuning=LORA.model_copy(update={"encoder": how}))
        tower = [k for k in asked.trained if asked.part_of(k) == "encoder"]
        assert tower
        assert all(("lora_" in k) == (how == "lora") for k in tower)


@pytest.mark.parametrize("tuning", [
    LORA, LORA.model_copy(update={"encoder": "full"}), LORA.model_copy(update={"encoder": "lora"}),
    Tuning(method="full", encoder="full"), Tuning(method="projector", encoder="frozen"),
], ids=["lora", "encoder full", "encoder lora", "full", "projector"])  # fmt: skip
def test_saved_and_loaded_gives_the_same_logits(folder, tuning):
    model = trained(folder, tuning=tuning)
    model.train(False)
    again = load(folder, tuning=tuning, seed=7)
    again.load_files(model.files())
    again.train(False)
    assert again.files() == model.files()
    with torch.no_grad():
        batch = model.collate(mixed(model))
        assert torch.equal(model.forward(batch), again.forward(batch))


def test_detached_is_the_base_again(folder):
    model = load(folder)
    with torch.no_grad():
        before = model.forward(model.collate(mixed(model)))
        model.attach(LORA.model_copy(update={"encoder": "full"}), seed=3)
        for parameter in model.trained.values():
            parameter.add_(0.01)
        model.detach()
        assert torch.equal(model.forward(model.collate(mixed(model))), before)


def test_what_a_recording_gives_does_not_depend_on_its_neighbours(base):
    with torch.no_grad():
        together = base.encode(WAVES)
        for wave, states in zip(WAVES, together, strict=True):
            (alone,) = base.encode([wave])
            assert alone.shape == states.shape
            assert close(states, alone, 1e-4)
            assert len(base.project([alone])) == base.tokens.audio_tokens(len(wave))


def test_generation_is_the_same_alone_and_in_a_batch(base):
    asked = [Example(e.name, e.prompt, (), e.wave, e.asked) for e in mixed(base)]
    together = decoding.generate(base, asked, max_new_tokens=6)
    for e, got in zip(asked, together, strict=True):
        assert decoding.generate(base, [e], max_new_tokens=6) == [got], e.name


def test_generation_is_the_stock_one(family, base, processor):
    wave = WAVES[3]
    inputs = TINY[family].ask(processor, render(ASK, AUDIO, prompt=base.tokens.prompt), wave)
    ids = inputs["input_ids"]
    want = base.stock.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=1)[0, ids.shape[1] :].tolist()
    (got,) = decoding.generate(base, [Example("", tuple(ids[0].tolist()), (), wave)], max_new_tokens=6)
    stopped = [n for n, token in enumerate(want) if token in base.tokens.stops]
    assert got == want[: stopped[0] if stopped else None]


def tones(rate):
    """Half a second of two tones that every rate can hold, fading in and out."""
    at = np.arange(rate // 2) / rate
    return np.hanning(len(at)) * (0.3 * np.sin(2 * np.pi * 300 * at) + 0.1 * np.sin(2 * np.pi * 1700 * at))


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_are_heard_alike(family, base, tmp_path, rate, channels):
    """As the same sound at the family's own rate (16 kHz; Mimi's is 24); of two channels the mean."""
    own = base.tokens.shape.sampling_rate
    path = tmp_path / "clip.wav"
    given = tones(rate)[:, None] * ([[1.0]] if channels == 1 else [[1.5, 0.5]])
    soundfile.write(path, given, rate, subtype="FLOAT")
    wave, want = audio.read(path, rate=own), tones(own).astype(np.float32)
    assert len(wave) == len(want)
    assert float(np.abs(wave - want).max()) < 1e-3
    with torch.no_grad():
        states, wanted = (base.project(base.encode([w])) for w in (wave, want))
    assert states.shape == wanted.shape
    if "mimi" not in family:  # its random base is far more sensitive: the smallest difference gives other states
        assert float((states - wanted).norm()) < 0.05 * float(wanted.norm())


def test_forty_seconds_are_heard_or_refused_by_one_line(base):
    shape = base.tokens.shape
    samples = 40 * shape.sampling_rate
    if samples > shape.window_samples:
        with pytest.raises(LengthError, match="hears at most") as refused:
            base.tokens.audio_tokens(samples, name="long")
        assert "long" in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        return
    with torch.no_grad():
        heard_as = base.project(base.encode([toy.wave(300, samples / 16000)]))
    assert torch.isfinite(heard_as).all()
    assert len(heard_as) == base.tokens.audio_tokens(samples)


def test_short_long_and_empty_recordings_behave_as_documented(family, base, tmp_path):
    shape = base.tokens.shape
    shortest = next(n for n in range(1, shape.sampling_rate) if shape.audio_tokens(n) >= 1)
    for samples in {shortest, max(shortest, shape.sampling_rate // 20)}:
        with torch.no_grad():
            states = base.encode([toy.wave(300, samples / 16000)[:samples]])
            assert torch.isfinite(base.project(states)).all()
            assert len(base.project(states)) == shape.audio_tokens(samples)
    with pytest.raises(LengthError, match="too few"):
        base.tokens.audio_tokens(0)
    with pytest.raises(LengthError, match="hears at most"):
        base.tokens.audio_tokens(shape.window_samples + 1)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match="no samples"):
        audio.read(tmp_path / "empty.wav")


@pytest.mark.parametrize("encoder", ["frozen", "lora"])
def test_what_threads_make_ahead_of_the_encoder_has_the_same_bits(folder, encoder):
    """Then the step itself makes no frames; and what a frozen encoder's states are known of needs none at all."""
    model = trained(folder, tuning=LORA.model_copy(update={"encoder": encoder}))
    examples = mixed(model)
    want = losses(model, examples)
    fresh = trained(folder, tuning=LORA.model_copy(update={"encoder": encoder}))
    with ThreadPoolExecutor(4) as pool:
        ahead = list(pool.map(lambda e: fresh.listened(e, kept=fresh.keeps), examples))
    heard = [h for e in ahead for h in e.heard]
    assert len(heard) == sum(e.wave is not None for e in examples)
    assert all(len(h.frames) and h.states is None for h in heard)
    fresh.frames = None
    for known in (False, True):
        got = losses(fresh, ahead)
        assert all(torch.equal(a, b) for a, b in zip(got[0], want[0], strict=True))
        assert got[1].keys() == want[1].keys()
        assert all(torch.equal(got[1][k], want[1][k]) for k in want[1])
        if encoder == "frozen" and not known:
            ahead = [fresh.listened(e, kept=fresh.keeps) for e in examples]
            assert all(h.states is not None and not h.frames for e in ahead for h in e.heard)
