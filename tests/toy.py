"""A random-weight base small enough for a test, and a data set of tones made on the spot."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from trainer.resolve import read_and_resolve
from trainer.spec import parse_job

torch.set_num_threads(1)  # equality B is claimed for equal threads, and toys are slower on more
TINY = Path(__file__).parent.parent / "models" / "tiny"
LABELS = ["low", "middle", "high"]
HERTZ = [220, 440, 880]


def base(folder: Path, seed: int = 0) -> Path:
    """A Qwen2-Audio of 0.2 M parameters with the tiny base's tokenizer and processor, random weights,
    fp32."""
    config = json.loads((TINY / "config.json").read_text())
    config["audio_config"].update(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48)
    config["text_config"].update(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["full_attention"] * 2, initializer_range=0.2,
    )  # fmt: skip
    config.pop("dtype", None)
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    return folder


def wave(hertz: float, seconds: float, seed: int = 0) -> np.ndarray:
    """A noisy tone at 16 kHz."""
    count = round(seconds * 16000)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(count) / 16000) + 0.02 * noise).astype(np.float32)


def data(folder: Path, train: int = 18, test: int = 9) -> Path:
    """`speech/` and `text/` data sets of the task `tone`; clips of .3 to .6 s by 3 speakers."""
    (folder / "speech" / "audio").mkdir(parents=True)
    (folder / "text").mkdir()
    task = f"name: tone\ninstruction: {{en: 'Which tone?'}}\nanswer: label\nlabels: [{', '.join(LABELS)}]\n"
    for name in ("speech", "text"):
        (folder / name / "task.yaml").write_text(task)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            k, path = i % 3, f"audio/{split}{i}.wav"
            clip = wave(HERTZ[k], 0.3 + 0.05 * (i % 7), seed=1000 * (split == "test") + i)
            soundfile.write(folder / "speech" / path, clip, 16000)
            row = {"id": f"{split}-{i}", "task": "tone", "language": "en", "split": split, "label": LABELS[k]}
            row |= {"text": f"tone {i} is {LABELS[k]}", "audio": path, "duration_s": len(clip) / 16000}
            rows.append({**row, "speaker": f"s{i % 3}"})
        (folder / "speech" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    texts = []
    for i in range(24):
        row = {"id": f"text-{i}", "task": "tone", "language": "en", "split": "train", "label": LABELS[i % 3]}
        texts.append({**row, "text": f"a tone called {LABELS[i % 3]} {i}"})
    (folder / "text" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in texts))
    return folder


def resolved(base_folder: Path, data_folder: Path, **changes):
    """(Resolved, Corpus) of a short job: a curriculum of 6 + 3 steps of 8 examples, checkpoint every 2
    steps."""
    job = {
        "name": "toy",
        "base": str(base_folder),
        "language": "en",
        "data": {"text": "text", "speech": "speech"},
        "recipe": {"name": "limited_speech", "scheme": "curriculum", "speech_presentations": 1},
        "tuning": {"rank": 4, "alpha": 8, "encoder": "frozen"},
        "optimizer": {"peak_lr": 0.003},
        "steps": 9,
        "global_batch": 8,
        "checkpoint_every": 2,
        "evaluate": {"decode": {"max_new_tokens": 4}},
        **changes,
    }
    return read_and_resolve(parse_job(job), [data_folder])


def loop(resolved, corpus, model, *, vectors=None, **options):
    """The Loop that `trainer.run` would make for the job, without a store unless given. `vectors`: of `plan_stage`."""
    from trainer.context import context, has_context
    from trainer.loop import Loop
    from trainer.plan import plan_stage
    from trainer.views import Recordings, Silence, reference_examples, training_examples

    spec = resolved.spec
    plans = [plan_stage(resolved, n, corpus, vectors) for n in range(len(resolved.stages))]
    contexts = {
        stage.name: context(resolved, n, plans[n], corpus)
        for n, stage in enumerate(resolved.stages)
        if has_context(stage)
    }
    made_of = (model.tokens, Recordings(16000))
    examples = training_examples(resolved, corpus, contexts, *made_of)
    outlines = training_examples(resolved, corpus, contexts, model.tokens, Silence(model.tokens.shape))
    given = {
        "global_batch": spec.global_batch, "seed": spec.seed, "budget": 1000,
        "checkpoint_every": spec.checkpoint_every, "outlines": outlines,
        "reference": partial(reference_examples, resolved, corpus, *made_of), **options,
    }  # fmt: skip
    return Loop(model, resolved.stages, plans, examples, **given)


def train(resolved, corpus, world, **options):
    """(step events, trained state) of a whole run on the base `world[0]`, from the newest checkpoint of `store` on."""
    from trainer.checkpoint import newest
    from trainer.families import load

    model, events = load(world[0], tuning=resolved.spec.tuning, seed=resolved.spec.seed), []
    made = loop(resolved, corpus, model, sink=events.append, **options)
    if options.get("store") and (found := newest(options["store"], events.append)):
        made.resume(found)
    made.run()
    return [e for e in events if e["kind"] == "step"], model.files()


def losses(events):
    """Of step events."""
    return [e["loss"] for e in events]
