"""What Granite Speech has of its own: scaled logits, an adapter in the base, normalisation that must not move."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_conformance import ASK, LORA, WAVES, heard, mixed
from tiny_families import TINY
from transformers import GraniteForCausalLM, GraniteSpeechForConditionalGeneration

from trainer.families import load
from trainer.tokens import AUDIO, BaseError, Tokens, render


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TINY["granite_speech"].build(tmp_path_factory.mktemp("granite"))


def copy(folder, to, **text_config):
    """The base in another folder, its language model's config changed."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config["text_config"].update(text_config)
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_logits_are_scaled_as_the_language_models_own_class_does(folder, tmp_path):
    model = load(copy(folder, tmp_path / "scaled", logits_scaling=8.0))
    own = GraniteForCausalLM(model.stock.config.text_config).eval()
    own.model.load_state_dict(model.language_model.state_dict())
    own.lm_head.load_state_dict(model.lm_head.state_dict())
    examples = heard(model, WAVES[:1])
    with torch.no_grad():
        got = model.forward(model.collate(examples))
        ids = torch.tensor([[*examples[0].prompt, *examples[0].answer]])
        want = own(inputs_embeds=model.embed(ids, WAVES[:1])).logits[0, -len(examples[0].answer) - 1 : -1]
    assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))


def test_a_base_with_its_own_adapter_is_refused_until_it_is_merged(folder, tmp_path):
    with_own, merged = copy(folder, tmp_path / "with"), copy(folder, tmp_path / "merged")
    stock = GraniteSpeechForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    pattern = r".*language_model.*\.(q_proj|v_proj)"
    tuned = get_peft_model(stock, LoraConfig(target_modules=pattern, init_lora_weights=False)).eval()
    tuned.save_pretrained(with_own)
    with pytest.raises(BaseError, match=r"adapter of its own.*merge_and_unload"):
        Tokens(with_own)
    bare = GraniteSpeechForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)
    PeftModel.from_pretrained(bare, with_own).merge_and_unload().save_pretrained(merged)
    model = load(merged)
    processor = TINY["granite_speech"].processor(merged)
    inputs = TINY["granite_speech"].ask(processor, render(ASK, AUDIO, prompt=model.tokens.prompt), WAVES[0])
    with torch.no_grad():
        want = tuned(**inputs).logits
        got = model.logits(model.states(model.embed(inputs["input_ids"], WAVES[:1])).last_hidden_state)
    assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))


def test_other_language_models_are_refused_and_the_later_template_is_known(folder, tmp_path):
    with pytest.raises(BaseError, match="'granitemoehybrid' is not supported"):
        Tokens(copy(folder, tmp_path / "hybrid", model_type="granitemoehybrid"))
    later = copy(folder, tmp_path / "later")
    (later / "chat_template.jinja").write_text(
        "{% for m in messages %}USER: {{ m['content'] }}\n ASSISTANT:{% endfor %}"
    )
    assert render(ASK, AUDIO, prompt=Tokens(later).prompt) == f"USER: <|audio|>{ASK}\n ASSISTANT:"


def test_training_moves_no_statistics_and_drops_nothing(folder):
    """The published configs have dropout and batch norm in the encoder, and dropout in the Q-Former."""
    model = load(folder, tuning=LORA.model_copy(update={"encoder": "full"}))
    model.train()
    examples = mixed(model)
    before = {k: v.clone() for k, v in model.module.named_buffers()}
    with torch.no_grad():
        one, other = (model.forward(model.collate(examples)) for _ in range(2))
    assert torch.equal(one, other)
    for key, value in model.module.named_buffers():
        assert torch.equal(value, before[key]), key
