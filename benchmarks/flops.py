"""FLOPs of a training step: Attune's against stock transformers + PEFT, counted, on a CPU.

    python benchmarks/flops.py          (make bench-flops)

One step of 32 examples as in SLURP (2.9 s of speech, answers of 20 tokens), whose prompts have 100, 250 or 400 text
tokens in common. Peers take them in padded batches of 8 with 30-s windows and full logits:

- naive: gradient checkpointing, LoRA on all linear layers, which reaches into the audio tower;
- naive, LM only: the same with LoRA on the language model alone, as Attune's; checkpointing still makes the frozen
  encoder compute twice and go backward, because it hooks the first convolution;
- tuned: without checkpointing, LoRA on the language model alone;
- ours: trainer.loop; the encoder computes every recording (first epoch), or finds all in the cache (later epochs).

The base is Qwen2-Audio-7B with all widths, the vocabulary and the LoRA rank divided by 16, so that encoder, language
model and head stand to each other as in the real model. Counted are matrix products, convolutions and attention, which
torch does not count on a CPU by itself: by torch's own formula, here, on both sides. Attention grows with the width and
everything else with its square, so a sixteenth of the attention counted is its share at the real widths: `total` has
that sixteenth, `linear` has none.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks import ours, peers, shapes
from benchmarks.measure import machine, store, table
from trainer.families import attention
from trainer.views import Example

DIVIDE, RANK = 16, 1
"""Of the widths; LoRA's rank, 16 in the real model."""
STEP, PADDED = 32, shapes.BLOCK
"""Examples of a step; of one padded batch of the peers, all of which cost the same."""
PROMPTS = (100, 250, 400)
"""Text tokens of a prompt."""
PEERS = ("naive", "naive, LM only", "tuned")

aten = torch.ops.aten
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}
"""Formulas for what torch leaves out, by the shapes of query, key and value."""
ATTENTION = {*CPU_ATTENTION, aten.bmm, aten.baddbmm}
"""Batched products are attention, too: linear layers are plain ones."""


def count(step: Callable[[], Any]) -> dict[str, float]:
    """GFLOP of one call: `linear`, `attention` as counted, `total` with attention at its real share."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    by = counter.get_flop_counts()["Global"]
    attended = sum(n for op, n in by.items() if op in ATTENTION)
    linear = sum(by.values()) - attended
    return {"linear": linear / 1e9, "attention": attended / 1e9, "total": (linear + attended / DIVIDE) / 1e9}


def padded_step(
    config: Any, mine: Any, given: Sequence[Example], adapters: Any, checkpointing: bool
) -> dict[str, float]:
    """GFLOP of forward and backward of one padded batch through the stock model."""
    stock = peers.lora(shapes.random_stock(config, "sdpa"), adapters, checkpointing=checkpointing)
    inputs = peers.Collator(mine.mel.extractor, mine.tokens.end)(given[:PADDED])
    return count(lambda: peers.summed_loss(stock, inputs).backward())


def of_prompt(prompt: int, layers: int, folder: Path, only: Sequence[str] = PEERS) -> dict[str, dict[str, float]]:
    """GFLOP per example by name of the step, ours and the peers named."""
    config = shapes.qwen2_audio(divide=DIVIDE, layers=layers)
    mine = shapes.family(shapes.random_stock(config, attention.NAME), shapes.write_folder(config, folder))
    mine.attach(ours.LORA.model_copy(update={"rank": RANK}), seed=0)
    given, same = shapes.examples(mine.tokens, STEP, prompt), mine.module.peft_config["default"]
    adapters = {"naive": peers.everywhere(RANK), "naive, LM only": same, "tuned": same}
    found = {}
    for name in only:
        cost = padded_step(config, mine, given, adapters[name], name != "tuned")
        found[name] = {key: value / PADDED for key, value in cost.items()}
    for name in ("ours", "ours, cached"):
        cost = count(lambda: ours.train(mine, given, STEP))
        found[name] = {key: value / STEP for key, value in cost.items()}
    return found


def measure(layers: int) -> list[dict[str, Any]]:
    """A row per prompt length and step, with the ratio to ours."""
    rows = []
    for prompt in PROMPTS:
        with tempfile.TemporaryDirectory() as folder:
            found = of_prompt(prompt, layers, Path(folder))
        for name, cost in found.items():
            ratios = {f"{key} ratio": cost[key] / found["ours"][key] for key in ("linear", "total")}
            rows.append({"prompt": prompt, "step": name, **cost, **ratios})
            print(table([list(rows[0]), list(rows[-1].values())]).splitlines()[-1], flush=True)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=32, help="of encoder and language model (32 in the real model)")
    layers = parser.parse_args().layers
    rows = measure(layers)
    print(table([list(rows[0]), *(list(r.values()) for r in rows)]))
    about = {
        "base": f"Qwen2-Audio-7B with widths, vocabulary and LoRA rank / {DIVIDE}, {layers} of 32 layers",
        "step": f"{STEP} examples; peers: padded batches of {PADDED}, 30-s windows, full logits",
        "unit": f"GFLOP per example; total: linear + attention / {DIVIDE}, its share at the real widths",
    }
    rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    print(store("flops", {**about, **machine("torch", "transformers", "peft"), "rows": rounded}))


if __name__ == "__main__":
    main()
