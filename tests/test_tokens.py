import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from toy import TINY
from transformers import AutoProcessor

from trainer.bases import s3_pin
from trainer.spec import Task
from trainer.tokens import AUDIO, BaseError, LengthError, Tokens, family_of, locate_base, reference, render
from trainer.utterance import Utterance
from trainer.views import Recordings, example

ASK = "Which command is spoken?"
TASK = Task(name="t", instruction={"en": ASK}, answer="label", labels=["yes", "no"])


def row(**fields):
    given = {"id": "u1", "task": "t", "language": "en", "split": "train", "label": "yes", **fields}
    return Utterance(**given)


@pytest.fixture(scope="module")
def tokens():
    return Tokens(TINY)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


def chat(processor, content):
    turn = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)


def test_prompt_equals_the_chat_template_in_both_orders_and_views(processor):
    clip, ask, said = {"type": "audio"}, {"type": "text", "text": ASK}, {"type": "text", "text": "turn it up\n"}
    first = {"type": "text", "text": ASK + "\n"}
    assert render(ASK, AUDIO, "audio_first") == chat(processor, [clip, ask])
    assert render(ASK, AUDIO, "instruction_first") == chat(processor, [first, clip])
    assert render(ASK, "turn it up", "audio_first") == chat(processor, [said, ask])
    assert render(ASK, "turn it up", "instruction_first") == chat(processor, [first, said])
    assert render(ASK, AUDIO) == render(ASK, AUDIO, "audio_first")


@pytest.mark.parametrize("order", ["audio_first", "instruction_first"])
@pytest.mark.parametrize("samples", [700, 1281, 16000, 15999, 48321, 256000])
def test_ids_and_audio_tokens_equal_the_processors(tokens, processor, order, samples):
    clip = np.zeros(samples, np.float32)
    said = processor(text=[render(ASK, AUDIO, order)], audio=[clip], sampling_rate=16000, return_tensors="np")
    ids = tokens.prompt_ids(ASK, tokens.audio_tokens(samples), order)
    assert ids == tuple(said["input_ids"][0].tolist())


def test_answer_is_the_text_and_the_end_token(tokens):
    ids = tokens.answer_ids('{"intent": "alarm"}')
    assert ids[-1] == tokens.tokenizer.id("<|im_end|>")
    assert tokens.tokenizer.decode(ids) == '{"intent": "alarm"}'


def test_count_of_a_dry_run_is_the_length_of_the_real_example(tokens):
    speech = row(audio="a.wav", duration_s=1.234, text="hello there")
    prompt, answer, audio = tokens.count(speech, TASK, "speech")
    assert audio == tokens.audio_tokens(round(1.234 * 16000))
    assert prompt == len(tokens.prompt_ids(ASK, audio))
    assert answer == len(tokens.answer_ids("yes"))
    assert tokens.count(speech, TASK, "text")[0] == len(tokens.tokenizer.ids(render(ASK, "hello there")))
    asked = replace(speech, question="Really?")
    assert tokens.count(asked, TASK, "speech")[0] == len(tokens.prompt_ids(f"{ASK}\nReally?", audio))


def test_nothing_is_truncated(tokens):
    with pytest.raises(LengthError, match=r"u1: 16\.50 s of audio, the base hears at most 16 s"):
        tokens.count(row(audio="a.wav", duration_s=16.5), TASK, "speech")
    with pytest.raises(LengthError, match="too few"):
        tokens.count(row(audio="a.wav", duration_s=0.01), TASK, "speech")
    with pytest.raises(LengthError, match=f"u1: .* context window holds {tokens.max_positions}"):
        tokens.count(row(text="word " * tokens.max_positions), TASK, "text")


def test_messages_name_the_utterance_and_the_remedy(tokens):
    with pytest.raises(ValueError, match=r"u1: the text holds the control token '<\|im_end\|>'; remove it"):
        tokens.count(row(text="stop <|im_end|> here"), TASK, "text")
    with pytest.raises(ValueError, match="u1: no transcript"):
        tokens.count(row(audio="a.wav", duration_s=1.0), TASK, "text")
    with pytest.raises(ValueError, match="u1: no duration_s"):
        tokens.count(row(audio="a.wav"), TASK, "speech")
    with pytest.raises(ValueError, match="u1: no label"):
        tokens.count(row(text="hello", label=None), TASK, "text")


def test_a_transcript_is_the_reference_of_a_text_answer_without_label():
    task = Task(name="transcribe", instruction={"en": "Transcribe the speech."}, answer="text")
    assert reference(row(text="hello", label=None), task) == "hello"
    assert reference(row(text="hello", label="bonjour"), task) == "bonjour"


def test_unknown_family_names_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "parrot"}')
    with pytest.raises(BaseError, match="'parrot' is not supported; supported: qwen2_audio"):
        family_of(tmp_path)
    with pytest.raises(BaseError, match=r"no config\.json"):
        family_of(tmp_path / "nothing")


def test_base_is_a_folder_or_is_refused_in_words(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate_base(str(TINY)) == TINY
    with pytest.raises(BaseError, match="no such folder, and not a hub id"):
        locate_base("./nowhere")
    with pytest.raises(BaseError, match="neither a folder here nor available from the hub"):
        locate_base("nobody/nothing-7b", "v1")


def test_base_in_s3_is_fetched_once(s3_base):
    uri = s3_base(TINY, ".json", ".jinja")
    folder = locate_base(uri)
    assert Tokens(folder).prompt_ids(ASK, 3) == Tokens(TINY).prompt_ids(ASK, 3)
    (folder / "chat_template.jinja").write_text("ours, for it is not fetched again")
    assert locate_base(uri) == folder
    assert (folder / "chat_template.jinja").read_text().startswith("ours")
    for nowhere in (f"{uri}-7b", "s3://no-such-bucket/tiny"):
        with pytest.raises(BaseError, match=r"nothing is stored there|cannot be listed"):
            locate_base(nowhere)


def test_a_base_in_s3_that_changed_is_fetched_anew_and_no_longer_the_old_one(s3_base, tmp_path):
    uri = s3_base(TINY, ".json")
    old, pin = locate_base(uri), s3_pin(uri)
    assert locate_base(uri, pin) == old
    assert old.name == pin.removeprefix("listing:")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "qwen2_audio", "new": true}')
    s3_base(tmp_path / "new")
    new = locate_base(uri)
    assert new != old
    assert "new" in (new / "config.json").read_text()
    assert "new" not in (old / "config.json").read_text()
    assert locate_base(uri, s3_pin(uri)) == new
    with pytest.raises(BaseError, match=r"have changed since the job was resolved \(listing:\w+, now listing:\w+\)"):
        locate_base(uri, pin)


def test_tokens_is_light():
    heavy = "{'torch', 'transformers', 'peft', 'ray'} & set(sys.modules)"
    code = f"import sys, trainer.tokens as t; t.Tokens({str(TINY)!r}); sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=TINY.parent.parent, check=False).returncode == 0


def test_a_question_is_part_of_the_prompt_and_counted_alike(tokens):
    task = Task(name="qa", instruction={"en": "Answer the question."}, answer="text")
    asked = row(task="qa", text="she came by tram", label="by tram", question="How did she come?")
    made = example(asked, "text", task, tokens, Recordings(16_000))
    assert len(made.prompt) == tokens.count(asked, task, "text")[0]
    assert "Answer the question.\nHow did she come?" in tokens.tokenizer.decode(made.prompt)
    assert made.asked == "Answer the question."  # what may be shared
    heard = Task(name="transcribe", instruction={"en": "Transcribe."}, answer="text")
    assert "How did she" not in tokens.tokenizer.decode(example(asked, "text", heard, tokens, Recordings(1)).prompt)
