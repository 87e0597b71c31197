"""Loss curves of the same steps: Attune, a plain correct loop, and stock Trainer with and without accumulation.

    python benchmarks/loss_curves.py

50 steps of 8 coffee orders (text and speech, answers of uneven length) on models/tiny, LoRA from the same start, AdamW
at the same constant rate. The plain loop is the stock forward over padded rows with full logits, the loss summed over
the supervised tokens and divided by their number: what every step should be. Attune must agree with it to 1e-5.

Stock Trainer with N accumulation steps multiplies loss and gradient of Qwen2-Audio by N: the model leaves out the
number of tokens that the Trainer hands it, and the Trainer relies on it (transformers issue 47688). Clipping then bites
N times too hard, so its curve is another one.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import Qwen2AudioForConditionalGeneration

from benchmarks import ours, peers
from benchmarks.measure import ROOT, machine, store, table
from trainer.families import load
from trainer.views import Example

TINY = ROOT / "models" / "tiny"
BATCH, PARTS = 8, 4
"""Examples of a step; accumulation steps of the peers that accumulate."""
EQUAL = 1e-5
"""Relative difference of losses that is rounding."""


def orders(model: Any, steps: int, batch: int) -> list[Example]:
    """The examples of a direct mix of the repository's coffee orders, in the order of its plan."""
    data = "data/picovoice_barista"
    stage = {"name": "mixed", "steps": steps, "mix": {"text": 0.5, "speech": 0.5}}
    job = {
        "name": "loss-curves", "base": str(TINY), "language": "en", "seed": 1, "global_batch": batch,
        "data": {"text": f"{data}:text_train", "speech": f"{data}:train", "trim_silence": "on"},
        "recipe": {"name": "custom", "stages": [stage]}, "tuning": {"encoder": "frozen"},
        "evaluate": {"on": f"{data}:test"},
    }  # fmt: skip
    return ours.planned(job, model.tokens)


def beginning() -> Any:
    """The tiny base with LoRA, freshly initialised."""
    return load(TINY, tuning=ours.LORA, seed=0)


def peer(model: Any) -> tuple[Any, peers.Collator]:
    """The stock base with the same adapters, and its collator. `model`: ours, before training."""
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    start = {key: p.detach().clone() for key, p in model.trained.items()}
    made = peers.lora(stock, model.module.peft_config["default"], start=start)
    return made, peers.Collator(model.mel.extractor, model.tokens.end)


def curves(steps: int, batch: int = BATCH, parts: int = PARTS) -> dict[str, list[dict[str, Any]]]:
    """{who: [{loss, grad_norm} of every step]}."""
    model = beginning()
    examples = orders(model, steps, batch)
    found = {
        "plain loop": peers.plain_loop(*peer(model), examples, batch, parts),
        "Trainer": peers.trainer(*peer(model), examples, batch),
        "Trainer in parts": peers.trainer(*peer(model), examples, batch, parts),
    }
    return {"Attune": ours.train(model, examples, batch, budget=600), **found}


def worst(found: dict[str, list[dict[str, Any]]]) -> float:
    """Largest relative difference of Attune's losses to the plain loop's."""
    return max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(found["Attune"], found["plain loop"], strict=True))


def inflation(found: dict[str, list[dict[str, Any]]], key: str) -> float:
    """How many times too large the accumulating Trainer's `loss` or `grad_norm` of the first step is, where all have
    the same weights."""
    return found["Trainer in parts"][0][key] / found["plain loop"][0][key]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = curves(steps)
    heading = ["step", *(f"{who}: {key}" for who in found for key in ("loss", "norm"))]
    rows = [[n + 1, *(found[who][n][key] for who in found for key in ("loss", "grad_norm"))] for n in range(steps)]
    print(table([heading, *rows]))
    factors = {key: round(inflation(found, key), 4) for key in ("loss", "grad_norm")}
    print(f"Attune against the plain loop: {worst(found):.1e} relative at most")
    print(
        f"Trainer with {PARTS} accumulation steps, first step: loss × {factors['loss']}, norm × {factors['grad_norm']}"
    )
    about = {
        "steps": steps,
        "batch": BATCH,
        "parts": PARTS,
        "largest_relative_difference": worst(found),
        "inflation": factors,
    }
    kept = {who: {k: [round(e[k], 6) for e in events] for k in ("loss", "grad_norm")} for who, events in found.items()}
    print(store("loss_curves", {**about, **machine("torch", "transformers", "peft"), "curves": kept}))
    if worst(found) > EQUAL:
        raise SystemExit(f"Attune and the plain loop differ by more than {EQUAL:g}")


if __name__ == "__main__":
    main()
