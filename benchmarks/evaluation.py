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
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from benchmarks.measure import ROOT, in_turns, machine, spread, store, table
from trainer import answers
from trainer.evaluate import BATCH_TOKENS, answer, batches
from trainer.families import load
from trainer.features import FeatureCache
from trainer.manifest import load as load_manifest
from trainer.spec import Decode, builtin_tasks, read_task
from trainer.tokens import AUDIO, render
from trainer.views import Recordings, example

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
        self.batches = list(batches(lengths, BATCH_TOKENS))

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
    def _hf(self, cut: Sequence[Sequence[int]]) -> list[str]:
        texts = [""] * len(self.rows)
        stops = sorted(self.ours.tokens.stops)
        for batch in cut:
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


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Utterances per second of every way, the ratios within rounds, and how many answers agree."""
    said: dict[str, list[str]] = {}

    def saying(name: str):
        return lambda: said.update({name: WAYS[name](setting)})

    found = in_turns({name: saying(name) for name in WAYS}, rounds, clock=time.process_time)
    count, others = len(setting.rows), [name for name in WAYS if name != "attune"]
    figures = [
        {
            **{f"{name}, utterances/s": count / r[name] for name in WAYS},
            **{f"{name} / attune": r[name] / r["attune"] for name in others},
            "load": r["load"],
        }
        for r in found
    ]
    same = {name: sum(a == b for a, b in zip(said["attune"], said[name], strict=True)) for name in others}
    return {"utterances": count, "same_answers": same, "results": spread(figures)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--limit", type=int, default=96, help="utterances per setting")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found, rows = {}, [["", "", "median", "min", "max"]]
    for name, (task, ref, room) in settings().items():
        found[name] = measure(Setting(task, ref, room, args.limit), args.rounds)
        rows += [[name, key, *values.values()] for key, values in found[name]["results"].items()]
        print(f"{name}: same answers {found[name]['same_answers']} of {found[name]['utterances']}", flush=True)
    about = {"rounds": args.rounds, "hf_batch": HF_BATCH, "threads": 1, "time": "processor"}
    document = {**about, **machine("torch", "transformers", "tokenizers"), "settings": found}
    print(table(rows), store("evaluation", document), sep="\n")


if __name__ == "__main__":
    main()
