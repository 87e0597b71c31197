"""Training on a CPU, processor time of one thread: Attune against stock Trainer + PEFT, same data, same losses.

    python benchmarks/train_cpu.py

models/tiny, coffee orders (text and speech), LoRA on the language model from the same start, AdamW at the same rate, no
accumulation (the Trainer would get it wrong: see loss_curves.py), no checkpointing. A round trains both from the
beginning, in turns; recordings are decoded beforehand for both. Every round is held to the gate: losses equal step by
step within fp32 noise. Attune's frozen encoder keeps what it has heard: `cold` begins with an empty cache, so that only
repeated recordings gain; `warm` finds all, as a second job or a later epoch does.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks import ours, peers
from benchmarks.loss_curves import beginning, orders, peer
from benchmarks.measure import in_turns, machine, spread, store, table
from trainer.features import FeatureCache

NOISE = 1e-4
"""Relative difference of losses that is fp32 noise after some steps of AdamW."""


class Round:
    """Both sides of the same training; every call begins anew and keeps its losses."""

    def __init__(self, steps: int, batch: int):
        self.model, self.batch, self.losses, self.worst = beginning(), batch, {}, 0.0
        self.examples = orders(self.model, steps, batch)
        self.start = self.model.files()
        self.stock, self.collate = peer(self.model)
        self.stock_start = {k: p.detach().clone() for k, p in self.stock.named_parameters() if p.requires_grad}

    def attune(self, name: str, cache: FeatureCache) -> None:
        self.model.load_files(self.start)
        self.model.cache = cache
        self.losses[name] = [e["loss"] for e in ours.train(self.model, self.examples, self.batch)]

    def trainer(self) -> None:
        with torch.no_grad():
            for key, parameter in self.stock.named_parameters():
                if key in self.stock_start:
                    parameter.copy_(self.stock_start[key])
        steps = peers.trainer(self.stock, self.collate, self.examples, self.batch)
        self.losses["Trainer + PEFT"] = [e["loss"] for e in steps]

    def peers(self) -> dict[str, Any]:
        filled = FeatureCache()
        self.attune("Attune, warm", filled)
        return {
            "Attune, cold": lambda: self.attune("Attune, cold", FeatureCache()),
            "Attune, warm": lambda: self.attune("Attune, warm", filled),
            "Trainer + PEFT": self.trainer,
        }

    def gate(self) -> None:
        """SystemExit where losses differ by more than noise."""
        of = self.losses["Trainer + PEFT"]
        worst = max(abs(a / b - 1) for mine in self.losses.values() for a, b in zip(mine, of, strict=True))
        if worst > NOISE:
            raise SystemExit(f"losses differ by {worst:.1e}, more than {NOISE:g}: not the same training")
        self.worst = max(self.worst, worst)


def measure(rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """The document that is stored."""
    both = Round(steps, batch)
    timed = both.peers()
    figures = []
    for found in in_turns(timed, rounds, check=both.gate, clock=time.process_time):
        rate = {f"{name}, examples/s": steps * batch / found[name] for name in timed}
        ratio = {f"Trainer / {name}": found["Trainer + PEFT"] / found[name] for name in timed if "Attune" in name}
        figures.append({**rate, **ratio, "load": found["load"]})
    about = {
        "steps": steps,
        "batch": batch,
        "rounds": rounds,
        "threads": 1,
        "time": "processor",
        "largest_loss_difference": both.worst,
    }
    return {**about, **machine("torch", "transformers", "peft", "accelerate"), "results": spread(figures)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    document = measure(args.rounds, args.steps, args.batch)
    rows = [["", "median", "min", "max"], *([k, *v.values()] for k, v in document["results"].items())]
    print(table(rows), store("train_cpu", document), sep="\n")


if __name__ == "__main__":
    main()
