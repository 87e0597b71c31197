"""Utterances per second of our evaluation against Hugging Face `generate`: `python benchmarks/evaluation.py`.

Tiny base, untuned, fp32, greedy, real recordings that are decoded beforehand; from the samples to the answer text,
so mel frames, encoder, prompt and search are all inside the time. Three ways, which take turns within every round:

    attune          batches of alike length, recordings not padded to the base's window, shared prefix, rows that
                    have ended leave the batch; nothing cached from an earlier round
    hf              processor and `generate` on left-padded batches in the order of the test set
    hf, by length   the same on the very batches that attune forms

The answers of all three are compared. Time is processor time of one thread, so that other work on the machine counts
little; what counts is the ratio, not utterances per second of this machine.
Prints a table and writes benchmarks/results/evaluation.json.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration  # noqa: E402

from trainer import answers, lineage  # noqa: E402
from trainer.evaluate import BATCH_TOKENS, _batches, answer  # noqa: E402
from trainer.families import load  # noqa: E402
from trainer.features import FeatureCache  # noqa: E402
from trainer.manifest import load as load_manifest  # noqa: E402
from trainer.spec import Decode, builtin_tasks, read_task  # noqa: E402
from trainer.tokens import AUDIO, render  # noqa: E402
from trainer.views import Recordings, example  # noqa: E402

BASE = ROOT / "models" / "tiny"
HF_BATCH = 16


def settings() -> dict:
    """name -> (task, test set, longest answer in tokens)."""
    orders = read_task(ROOT / "data" / "picovoice_barista" / "task.yaml")
    menu = orders.model_copy(update={"menu": True, "prompt_order": "instruction_first"})
    return {
        "digits, one word": (builtin_tasks()["digit"], "fsdd:test", 8),
        "transcripts of orders": (builtin_tasks()["transcribe"], "picovoice_barista:test", 32),
        "orders as JSON, menu first": (menu, "picovoice_barista:test", 48),
    }


class Setting:
    """One task on one test set, and the three ways to answer it; each gives the answer texts."""

    def __init__(self, task, ref: str, room: int, limit: int):
        self.task, self.decode = task, Decode(max_new_tokens=room)
        self.rows = load_manifest(ref, [ROOT / "data"])[:limit]
        self.ours, self.recordings = load(BASE), Recordings(16000)
        self.waves = [self.recordings.wave(row) for row in self.rows]
        self.stock: Any = Qwen2AudioForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(BASE)
        self.processor.tokenizer.padding_side = "left"
        lengths = [len(e.prompt) + room for e in self._examples()]
        self.batches = list(_batches(lengths, BATCH_TOKENS))

    def _examples(self):
        return [
            example(row, "speech", self.task, self.ours.tokens, self.recordings, supervised=False) for row in self.rows
        ]

    def attune(self) -> list[str]:
        self.ours.cache = FeatureCache()
        return answer(self.ours, self._examples(), self.decode)

    def hf(self) -> list[str]:
        n = len(self.rows)
        return self._hf([list(range(at, min(n, at + HF_BATCH))) for at in range(0, n, HF_BATCH)])

    def hf_by_length(self) -> list[str]:
        return self._hf(self.batches)

    @torch.inference_mode()
    def _hf(self, batches: list[list[int]]) -> list[str]:
        texts = [""] * len(self.rows)
        stops = sorted(self.ours.tokens.stops)
        for batch in batches:
            prompts = [
                render(answers.instruction(self.task, self.rows[i].language), AUDIO, self.task.prompt_order)
                for i in batch
            ]
            inputs = self.processor(
                text=prompts, audio=[self.waves[i] for i in batch], sampling_rate=16000, return_tensors="pt",
                padding=True,
            )  # fmt: skip
            out = self.stock.generate(
                **inputs, max_new_tokens=self.decode.max_new_tokens, do_sample=False, eos_token_id=stops,
                pad_token_id=stops[0],
            )  # fmt: skip
            said = self.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, said, strict=True):
                texts[i] = text
        return texts


WAYS = {"attune": Setting.attune, "hf": Setting.hf, "hf, by length": Setting.hf_by_length}


def measure(setting: Setting, rounds: int) -> dict:
    """Utterances per second of every way, the ratios within rounds, and how many answers agree."""
    names, speed = list(WAYS), {name: [] for name in WAYS}
    said = {name: way(setting) for name, way in WAYS.items()}  # also the warm-up
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            began = time.process_time()
            WAYS[name](setting)
            speed[name].append(len(setting.rows) / (time.process_time() - began))
    ratios = {name: [a / b for a, b in zip(speed["attune"], speed[name], strict=True)] for name in names[1:]}
    same = {name: sum(a == b for a, b in zip(said["attune"], said[name], strict=True)) for name in names[1:]}
    return {
        "utterances": len(setting.rows),
        "utterances_per_s": {name: spread(values) for name, values in speed.items()},
        "attune_over": {name: spread(values) for name, values in ratios.items()},
        "same_answers": same,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: round(value, 3) for key, value in found.items()}


def main() -> None:
    """Measure all settings; print and store medians with minimum and maximum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--limit", type=int, default=96, help="utterances per setting")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, (task, ref, room) in settings().items():
        results[name] = found = measure(Setting(task, ref, room, args.limit), args.rounds)
        for other, ratio in found["attune_over"].items():
            print(
                f"{name:28} {ratio['median']:6.2f} x {other:14} ({ratio['min']:.2f} to {ratio['max']:.2f}), "
                f"same answers {found['same_answers'][other]} of {found['utterances']}"
            )
    document = {
        "what": "utterances per second (processor time) of evaluation, ours over Hugging Face generate, within rounds",
        "rounds": args.rounds,
        "hf_batch": HF_BATCH,
        "threads": 1,
        "date": time.strftime("%Y-%m-%d"),
        "machine": lineage.processor(),
        "versions": lineage.versions(),
        "results": results,
    }
    out = ROOT / "benchmarks" / "results" / "evaluation.json"
    out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
