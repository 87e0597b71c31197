"""All rows of the GPU benchmark, one call of less than ten minutes on one GPU.

    python benchmarks/gpu/run.py --out results.jsonl             # Qwen2-Audio-7B's shape, bf16, CUDA
    python benchmarks/gpu/run.py --base qwen2_5_omni --out …    # Qwen2.5-Omni-7B's thinker, where its family is built
    python benchmarks/gpu/run.py --tiny --out /tmp/tiny.jsonl    # the same code on a CPU, small: no figures to publish

Random weights at the public shape, random inputs. Attune's side is trainer.families and trainer.loop as they are. The
peers are stock transformers and PEFT in padded batches of 8, given the correct loss, and their inputs beforehand:
`tuned` has LoRA on the language model, sdpa, fused AdamW, no checkpointing; `naive` has LoRA on all linear layers and
gradient checkpointing. Each row first checks that both sides do the same, then measures them in turns. A line of JSON
is written as soon as a row is done; a row that fails or for which no time is left says so, and the others go on.

Needs torch with CUDA, transformers, peft and Attune's light dependencies (pydantic, rfc8785, soundfile, soxr, boto3).
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

try:
    import torch
    import transformers

    from benchmarks import shapes
    from benchmarks.gpu.rows import ROWS
    from benchmarks.gpu.stand import FULL, TINY, Clock, Stand
    from benchmarks.measure import machine
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing}; needed are torch, transformers, peft, pydantic, pyyaml, rfc8785, scipy, rapidfuzz, soundfile, "
        "soxr and boto3"
    ) from None

RESERVE = 60
"""Seconds that a row must be able to count on; without them it is left out."""


def where(scale: Any) -> dict[str, Any]:
    """The machine, the GPU's name and memory included."""
    about = machine("torch", "transformers", "peft", "triton")
    if scale.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1)}
    return about


def run(base: str, scale: Any, out: Path, minutes: float, only: str | None = None) -> list[dict[str, Any]]:
    """The lines, written to `out` one by one. `only`: rows whose name begins so."""
    clock, lines = Clock(minutes), []

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    say({"base": base, "widths_divided_by": scale.divide, "one_layer": scale.small, **where(scale)})
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(base, scale, Path(folder))
        for name, row in ROWS.items():
            if only and not name.startswith(only):
                continue
            if clock.left() < RESERVE:
                say({"row": name, "left_out": f"{clock.left():.0f} s left"})
                continue
            began = time.monotonic()
            try:
                found = row(stand)
            except Exception as error:  # whatever ends one row is a result, too
                found = {"failed": f"{type(error).__name__}: {error}"[:500], "at": traceback.format_exc()[-1500:]}
            if scale.device == "cuda":
                found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
                torch.cuda.reset_peak_memory_stats()
            say({"row": name, **found, "took_s": round(time.monotonic() - began, 1)})
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", choices=sorted(shapes.BASES), default="qwen2_audio")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are added to this file")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--only", help="rows whose name begins so")
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --tiny runs the same code on a CPU")
    run(args.base, TINY if args.tiny else FULL, args.out, args.minutes, args.only)


if __name__ == "__main__":
    main()
