"""The presets of limited speech say what the paper says, and plan on data of their shape."""

import json
from pathlib import Path

import pytest
import yaml

from trainer.corpus import Reader
from trainer.plan import plan_stage
from trainer.spec import read_yaml
from trainer.study import expand, load, presentations

ROOT = Path(__file__).parent.parent
SLOTS = {"time": None, "place": None}


def orders(at: Path, language: str, *, train: int = 0, test: int = 0, heard: bool = True) -> None:
    """A data set of intents and slots; recordings are named, not made."""
    at.mkdir(parents=True)
    task = {"name": "orders", "instruction": {"en": "What is wanted?"}, "answer": "json", "intents": ["go", "stop"]}
    (at / "task.yaml").write_text(json.dumps({**task, "slots": SLOTS}))
    for split, count in (("train", train), ("test", test)):
        rows = [
            {"id": f"{language}-{split}-{n}", "task": "orders", "language": language, "split": split,
             "text": f"{language} {split} {n}", "audio": f"{split}{n}.wav" if heard else None, "speaker": f"s{n % 2}",
             "duration_s": 1.0 if heard else None,
             "label": {"intent": "go", "slots": [{"type": "time", "value": f"{n}"}]}} for n in range(count)
        ]  # fmt: skip
        if rows:
            (at / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def expanded(name: str, tmp_path: Path):
    given = read_yaml(ROOT / "suites" / "presets" / f"{name}.yaml")
    given["base"] = str(ROOT / "models" / "tiny")
    copy = tmp_path / "preset.yaml"
    copy.write_text(yaml.safe_dump(given, sort_keys=False))
    return expand(load(copy), Reader([tmp_path, ROOT]))


@pytest.mark.parametrize(("name", "folder", "language"), [
    ("limited-speech-paper", "slurp", "en-US"), ("limited-speech", "speech-massive", "fr-FR"),
])  # fmt: skip
def test_one_language(name, folder, language, tmp_path):
    orders(tmp_path / folder, language, train=640, test=4)
    found = expanded(name, tmp_path)
    cells = {(c.settings["scheme"], c.settings.get("speech_fraction")): c for c in found.cells}
    shares = ["2%", "5%", "10%", "25%", "50%", "100%"]
    assert set(cells) == {("text_only", None), *((s, p) for s in ("direct_mix", "curriculum") for p in shares)}
    assert all(len(cell.runs) == 3 for cell in found.cells)
    text, late = cells["text_only", None].runs[0], cells["curriculum", "5%"].runs[0]
    assert (text.spec.global_batch, text.spec.evaluate.decode.beams) == (128, 3)
    assert text.stages[0].trainable.model_dump() == {"lm": True, "projector": False, "encoder": False}
    first, last = late.stages
    assert last.optimizer.peak_lr / first.optimizer.peak_lr == pytest.approx(0.6)
    assert (first.optimizer.warmup_ratio, last.optimizer.warmup_ratio) == pytest.approx((0.04, 0.02))
    assert last.steps / late.steps == pytest.approx(1 / 3, abs=0.05)
    assert (last.trainable.projector, last.trainable.encoder) == (True, "paper" in name)
    for cell in found.cells[1:]:
        assert presentations(cell.runs[0]) == pytest.approx(1)
        assert len(plan_stage(cell.runs[0], 0)) == cell.runs[0].stages[0].steps * 128
    if "paper" in name:
        assert (first.optimizer.peak_lr, last.optimizer.peak_lr) == pytest.approx((5e-6, 3e-6))
        assert late.spec.tuning.method == "full"
        assert text.steps == 15  # 3 epochs of 640 sentences
    else:
        tuning = late.spec.tuning
        assert (tuning.rank, tuning.alpha, tuning.dropout) == (16, 32, 0.05)
        assert len({run.steps for cell in found.cells for run in cell.runs}) == 1


def test_factors(tmp_path):
    found = expanded("limited-speech-factors", tmp_path)
    assert len(found.cells) == 10
    assert {run.steps for cell in found.cells for run in cell.runs} == {120}
    times = {presentations(cell.runs[0]) for cell in found.cells}
    assert sorted(times) == pytest.approx([0, 1, 8])
    assert sum("is the exposure-matched control of" in note for note in found.notes) == 4


def test_across_languages(tmp_path):
    massive = tmp_path / "speech-massive"
    orders(massive / "fr-FR", "fr-FR", train=400, test=4)
    orders(massive / "de-DE", "de-DE", train=115, test=4)
    for tag in ("es-ES", "pt-PT", "vi-VN"):
        orders(massive / tag, tag, test=4)
    orders(tmp_path / "massive" / "de-DE", "de-DE", train=300, heard=False)
    found = expanded("limited-speech-cross-lingual", tmp_path)
    assert len(found.cells) == 5 * 2 * 2 + 2
    rows = [{name: pin.rows for name, pin in cell.runs[0].sources.items()} for cell in found.cells]
    assert rows[0] == {"text": 115, "source_text": 400}
    assert {"text": 115, "speech": 115, "extra_text": 185, "source_text": 400, "source_speech": 40} in rows
    assert rows[-1] == {"source_text": 400, "source_speech": 400}
    assert rows[-2] == {"source_text": 400}
    assert found.cells[0].runs[0].test.rows == 20
