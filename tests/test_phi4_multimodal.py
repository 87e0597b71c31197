"""What Phi-4-Multimodal has of its own: a speech adapter beside the base, long rotary factors, a random mask."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_conformance import ASK, LORA, WAVES, mixed
from tiny_families import TINY
from transformers import Phi4MultimodalForCausalLM

from trainer.families import load
from trainer.tokens import AUDIO, BaseError, Tokens, render

TOKENS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TINY["phi4_multimodal"].build(tmp_path_factory.mktemp("phi"))


def test_a_base_with_its_speech_adapter_beside_it_is_refused_until_it_is_merged(folder, tmp_path):
    published, merged = tmp_path / "published", tmp_path / "merged"
    shutil.copytree(folder, published)
    stock = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pattern = r".*model\.layers.*\.(qkv_proj|o_proj|gate_up_proj|down_proj)"
    tuned = get_peft_model(stock, LoraConfig(target_modules=pattern, init_lora_weights=False)).eval()
    tuned.save_pretrained(published / "speech-lora")
    with pytest.raises(BaseError, match=r"adapter beside it \(speech-lora\).*merge_and_unload"):
        Tokens(published)
    bare = Phi4MultimodalForCausalLM.from_pretrained(published, dtype=torch.float32)
    PeftModel.from_pretrained(bare, published / "speech-lora").merge_and_unload().save_pretrained(merged)
    for name in TOKENS:
        shutil.copy(published / name, merged / name)
    model = load(merged)
    prompt = render(ASK, AUDIO, prompt=model.tokens.prompt)
    inputs = TINY["phi4_multimodal"].ask(TINY["phi4_multimodal"].processor(folder), prompt, WAVES[0])
    with torch.no_grad():
        want = tuned(**inputs).logits
        got = model.logits(model.states(model.embed(inputs["input_ids"], WAVES[:1])).last_hidden_state)
    assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))


def changed(folder, to, **fields):
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **fields}))
    return to


def test_the_context_window_is_what_the_short_rotary_factors_serve(folder, tmp_path):
    assert Tokens(folder).max_positions == 2048
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    long = changed(folder, tmp_path / "long", rope_parameters=rope, original_max_position_embeddings=512)
    assert Tokens(long).max_positions == 512


def test_a_placeholder_that_the_tokenizer_lacks_is_named(folder, tmp_path):
    with pytest.raises(BaseError, match=r"tokenizer\.json has no token 99999"):
        Tokens(changed(folder, tmp_path / "odd", audio_config={"audio_token_id": 99999}))


def test_training_asks_no_random_state(folder):
    model = load(folder, tuning=LORA.model_copy(update={"encoder": "full"}))
    model.train()
    before = np.random.get_state()[2]
    with torch.no_grad():
        one, other = (model.forward(model.collate(mixed(model))) for _ in range(2))
    assert torch.equal(one, other)
    assert np.random.get_state()[2] == before
