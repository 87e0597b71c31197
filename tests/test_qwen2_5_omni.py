"""The thinker of Qwen2.5-Omni: from the whole model's folder or its own, and back into the whole model."""

import pytest
import tiny_families
import torch
import toy
from peft import PeftModel
from safetensors.torch import load as load_tensors
from test_conformance import ASK, LORA, WAVES, heard, trained
from tiny_families import TINY
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration

from trainer.families import load
from trainer.spec import Tuning
from trainer.tokens import AUDIO, Tokens, render


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TINY["qwen2_5_omni"].build(tmp_path_factory.mktemp("omni"))


def whole(folder):
    return Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def asked(folder):
    prompt = render(ASK, AUDIO, prompt=Tokens(folder).prompt)
    return TINY["qwen2_5_omni"].ask(TINY["qwen2_5_omni"].processor(folder), prompt + "low<|im_end|>", WAVES[1])


def of(model, inputs):
    """Logits over the whole of `inputs` by the family's own path."""
    model.train(False)
    with torch.no_grad():
        return model.logits(model.states(model.embed(inputs["input_ids"], WAVES[1:2])).last_hidden_state)


def test_the_thinkers_own_folder_is_the_same_base(folder, tmp_path):
    alone = tiny_families.qwen2_5_omni_thinker(tmp_path)
    model = load(alone)
    assert model.tokens.family == "qwen2_5_omni"
    stock = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(alone, dtype=torch.float32).eval()
    thinker = whole(folder).thinker
    thinker.load_state_dict(stock.state_dict())
    inputs = asked(folder)
    with torch.no_grad():
        want = thinker(**inputs).logits
    assert torch.allclose(of(model, inputs), want, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("encoder", ["frozen", "lora", "full"])
def test_an_adapter_goes_into_the_whole_model(folder, tmp_path, encoder):
    model = trained(folder, tuning=LORA.model_copy(update={"encoder": encoder}))
    for name, content in model.files().items():
        (tmp_path / name).write_bytes(content)
    omni, inputs = whole(folder), asked(folder)
    with torch.no_grad():
        bare = omni.thinker(**inputs).logits
        omni.thinker = PeftModel.from_pretrained(omni.thinker, tmp_path).merge_and_unload()
        omni.save_pretrained(tmp_path / "whole")
        (tmp_path / "whole" / "spk_dict.pt").write_bytes((folder / "spk_dict.pt").read_bytes())
        want = whole(tmp_path / "whole").thinker(**inputs).logits
    assert torch.allclose(of(model, inputs), want, atol=2e-5 * float(want.abs().max()))
    assert float((bare - want).abs().max()) > 1e-2 * float(want.abs().max())


def test_full_tuning_goes_into_the_whole_model(folder):
    model = trained(folder, tuning=Tuning(method="full", encoder="full"))
    assert not any("visual" in key for key in model.trained)
    omni, inputs = whole(folder), asked(folder)
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


def test_chunks_of_a_long_recording_do_not_see_each_other(folder):
    """The first second of two recordings is the same, and so are its states."""
    model = load(folder)
    long, changed = toy.wave(300, 2.5), toy.wave(300, 2.5)
    changed[20000:] *= 0.5
    with torch.no_grad():
        (a,), (b,) = model.encode([long]), model.encode([changed])
    assert torch.allclose(a[:12], b[:12], atol=1e-5)
    assert not torch.allclose(a[13:], b[13:], atol=1e-3)
