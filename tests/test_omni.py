"""The thinkers of Qwen2.5-Omni and Qwen3-Omni: from the whole model or alone, and back into the whole model."""

import pytest
import tiny_families
import torch
import toy
import transformers
from peft import PeftModel
from safetensors.torch import load as load_tensors
from test_conformance import ASK, LORA, WAVES, heard, trained
from tiny_families import TINY

from trainer.families import load
from trainer.spec import Tuning
from trainer.tokens import AUDIO, Tokens, family_of, render

CLASSES = {"qwen2_5_omni": "Qwen2_5Omni", "qwen3_omni_moe": "Qwen3OmniMoe"}


@pytest.fixture(scope="module", params=CLASSES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return TINY[family].build(tmp_path_factory.mktemp("omni"))


def stock(folder, part=""):
    """The stock class of the whole model, or of its part."""
    cls = getattr(transformers, f"{CLASSES[family_of(folder)]}{part}ForConditionalGeneration")
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


def asked(folder):
    tokens = Tokens(folder)
    prompt = render(ASK, AUDIO, prompt=tokens.prompt) + "low<|im_end|>"
    return TINY[tokens.family].ask(TINY[tokens.family].processor(folder), prompt, WAVES[3])


def of(model, inputs):
    """Logits over the whole of `inputs` by the family's own path."""
    model.train(False)
    with torch.no_grad():
        return model.logits(model.states(model.embed(inputs["input_ids"], WAVES[3:])).last_hidden_state)


def test_the_thinkers_own_folder_is_the_same_base(family, folder, tmp_path):
    alone = getattr(tiny_families, f"{family}_thinker")(tmp_path)
    model = load(alone)
    assert model.tokens.family == family
    thinker = stock(folder).thinker
    thinker.load_state_dict(stock(alone, "Thinker").state_dict())
    inputs = asked(folder)
    with torch.no_grad():
        want = thinker(**inputs).logits
    assert torch.allclose(of(model, inputs), want, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("encoder", ["frozen", "lora", "full"])
def test_an_adapter_goes_into_the_whole_model(folder, tmp_path, encoder):
    model = trained(folder, tuning=LORA.model_copy(update={"encoder": encoder}))
    for name, content in model.files().items():
        (tmp_path / name).write_bytes(content)
    omni, inputs = stock(folder), asked(folder)
    with torch.no_grad():
        bare = omni.thinker(**inputs).logits
        omni.thinker = PeftModel.from_pretrained(omni.thinker, tmp_path).merge_and_unload()
        omni.save_pretrained(tmp_path / "whole")
        for voices in folder.glob("spk_dict.pt"):
            (tmp_path / "whole" / voices.name).write_bytes(voices.read_bytes())
        want = stock(tmp_path / "whole").thinker(**inputs).logits
    assert torch.allclose(of(model, inputs), want, atol=2e-5 * float(want.abs().max()))
    assert float((bare - want).abs().max()) > 1e-2 * float(want.abs().max())


def test_full_tuning_goes_into_the_whole_model(folder):
    model = trained(folder, tuning=Tuning(method="full", encoder="full"))
    assert not any("visual" in key for key in model.trained)
    omni, inputs = stock(folder), asked(folder)
    missing, unknown = omni.thinker.load_state_dict(load_tensors(model.files()["model.safetensors"]), strict=False)
    assert not unknown
    assert all("visual" in key for key in missing)
    with torch.no_grad():
        want = omni.thinker(**inputs).logits
    assert torch.allclose(of(model, inputs), want, atol=1e-5 * float(want.abs().max()))


def test_the_projector_may_stay_frozen_in_a_trained_encoder(folder):
    model = load(folder, tuning=LORA.model_copy(update={"encoder": "full", "projector": "frozen"}))
    assert {model.part_of(k) for k in model.trained} == {"lm", "encoder"}
    model = load(folder, tuning=LORA.model_copy(update={"encoder": "full"}))
    assert {model.part_of(k) for k in model.trained} == {"lm", "encoder", "projector"}
    batch = model.collate(heard(model))
    model.forward(batch).sum().backward()
    learns = {k for k, p in model.trained.items() if p.grad is not None}
    assert {k for k in model.trained if model.part_of(k) == "projector"} <= learns


def test_windows_of_a_long_recording_do_not_see_each_other(folder):
    """The first 2 s of two recordings are the same, and so are their states; the tiny encoders hear 1 s or 2 s."""
    model = load(folder)
    long, changed = toy.wave(300, 3.5), toy.wave(300, 3.5)
    changed[40000:] *= 0.5
    same = model.tokens.audio_tokens(32000)
    with torch.no_grad():
        (a,), (b,) = model.encode([long]), model.encode([changed])
    assert torch.allclose(a[:same], b[:same], atol=1e-5)
    assert not torch.allclose(a[same:], b[same:], atol=1e-3)
