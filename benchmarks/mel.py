"""The front end on 3-s clips, one thread: trainer.features.Mel against WhisperFeatureExtractor padded to its window.

    python benchmarks/mel.py

First the gate: the same bits in all frames that are kept. Then, in turns: ours, clip by clip; the stock extractor clip
by clip and in batches of 8, as a data collator calls it. Settings are those of Qwen2-Audio-7B (128 bins, 30 s).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from benchmarks.measure import in_turns, machine, spread, store, table
from trainer.features import Mel
from trainer.formats.qwen2_audio import shape

SECONDS, BATCH = 3.0, 8


def front_ends(folder: Path) -> tuple[WhisperFeatureExtractor, Mel]:
    """The stock extractor with Qwen2-Audio's settings, and ours from the same file."""
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    mel = Mel(folder, shape(folder))
    return mel.extractor, mel


def padded(stock: WhisperFeatureExtractor, waves: list[np.ndarray]) -> np.ndarray:
    """(clips, bins, 3000) of the stock extractor."""
    rate = stock.sampling_rate
    return stock(waves, sampling_rate=rate, padding="max_length", return_tensors="np")["input_features"]


def gate(stock: WhisperFeatureExtractor, mel: Mel, waves: list[np.ndarray]) -> None:
    """Raises unless the first L + 2 frames have the same bits."""
    for wave, full in zip(waves, padded(stock, waves), strict=True):
        ours = mel(wave)
        if not np.array_equal(ours, full[:, : ours.shape[1]]):
            raise SystemExit("the frames differ from the stock extractor's; nothing was measured")


def measure(rounds: int, clips: int) -> dict:
    """The document that is stored."""
    random = np.random.default_rng(0)
    waves = [(0.1 * random.standard_normal(round(SECONDS * 16000))).astype(np.float32) for _ in range(clips)]
    with tempfile.TemporaryDirectory() as folder:
        stock, mel = front_ends(Path(folder))
    gate(stock, mel, waves)
    peers = {
        "ours": lambda: [mel(w) for w in waves],
        "stock, one by one": lambda: [padded(stock, [w]) for w in waves],
        f"stock, batches of {BATCH}": lambda: [padded(stock, waves[i : i + BATCH]) for i in range(0, clips, BATCH)],
    }
    found = in_turns(peers, rounds, clock=time.process_time)
    figures = [
        {
            **{f"{name}, ms per clip": 1e3 * r[name] / clips for name in peers},
            **{f"ratio to {name}": r[name] / r["ours"] for name in peers if name != "ours"},
            "load": r["load"],
        }
        for r in found
    ]
    about = {
        "clip_s": SECONDS,
        "clips": clips,
        "rounds": rounds,
        "threads": 1,
        "time": "processor",
        "gate": "all kept frames bit-equal",
    }
    return {**about, **machine("torch", "transformers", "numpy"), "results": spread(figures)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clips", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = measure(args.rounds, args.clips)
    rows = [["", "median", "min", "max"], *([k, *v.values()] for k, v in document["results"].items())]
    print(table(rows), store("mel", document), sep="\n")


if __name__ == "__main__":
    main()
