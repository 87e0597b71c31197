"""Synthetic Arabic clips of the 40 spoken commands: the abundant side of the demo's data mixture.

    python -m models.recipe.synthesise_commands

Reads the word of every command from data/arabic_speech_commands, writes data/arabic_commands_synthetic.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile

from models.recipe.speech import RATE, VARIANTS, Espeak, resample

SEED, CLIPS_PER_COMMAND = 0, 24
VOICES = VARIANTS[:36]  # the plainer ones; the base's training hears the same variants say other words


def synthesise(source: Path, out: Path) -> list[dict]:
    """One row per clip, in the manifest form of the recordings; audio is mono 16 kHz Ogg Opus."""
    rows = [json.loads(line) for line in (source / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    words = {row["label"]: row["text"] for row in rows}
    (out / "audio").mkdir(parents=True, exist_ok=True)
    espeak, manifest = Espeak(), []
    for number, (label, word) in enumerate(sorted(words.items())):
        rng = np.random.default_rng([SEED, number])
        for voice in sorted(rng.choice(VOICES, CLIPS_PER_COMMAND, replace=False)):
            rate, pitch, pitch_range = (int(rng.uniform(*span)) for span in ((110, 190), (15, 85), (20, 80)))
            spoken = espeak.say(word, f"ar+{voice}", rate, pitch, pitch_range)
            wave = resample(spoken.wave, spoken.rate)
            before, after = (rng.integers(RATE // 20, RATE // 4, 2)).tolist()
            wave = np.pad(wave / np.abs(wave).max() * rng.uniform(0.3, 0.9), (before, after)).astype(np.float32)
            name = f"audio/{label}_{voice}.ogg"
            soundfile.write(out / name, wave, RATE, format="OGG", subtype="OPUS")
            manifest.append({
                "id": f"arcs-{label}-{voice}", "task": "command", "language": "ar", "split": "train", "text": word,
                "label": label, "audio": name, "duration_s": round(len(wave) / RATE, 3),
                "speaker": f"espeak-ar-{voice}", "meta": {"rate_wpm": rate, "pitch": pitch, "pitch_range": pitch_range},
            })  # fmt: skip
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in manifest)
    (out / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    data = Path(__file__).parents[2] / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=data / "arabic_speech_commands")
    parser.add_argument("--out", type=Path, default=data / "arabic_commands_synthetic")
    options = parser.parse_args()
    made = synthesise(options.source, options.out)
    minutes, voices = sum(r["duration_s"] for r in made) / 60, {r["speaker"] for r in made}
    print(f"{len(made)} clips, {minutes:.1f} min, {len(voices)} voices")
