"""Measures an exported base with the stock classes: synthetic voices it never met, and real human speech.

Prints a table and writes FOLDER/gate.json. Nothing here decides anything: what comes out is what the README says.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from models.recipe.corpus import Corpus
from models.recipe.decode import answer, wer
from models.recipe.export import sha256
from models.recipe.layout import Layout
from models.recipe.model import audio_vectors, encode
from models.recipe.speech import RATE, WINDOW_FRAMES, log_mel, resample
from models.recipe.tasks import PROBE, PROMPTS, TRANSCRIBE, Tasks
from models.recipe.text import LANGUAGES, normalise

DATA = Path(__file__).parents[2] / "data"
BATCH = 32


class Base:
    """An exported folder, read by the stock classes, answering instructions on log-mel clips or texts."""

    def __init__(self, folder: Path) -> None:
        self.model = Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.layout = Layout(AutoProcessor.from_pretrained(folder).tokenizer)

    @torch.no_grad()
    def hear(self, mels: list[np.ndarray], instruction: str, audio_first: bool = True) -> list[str]:
        """(frames, 80) log-mels -> answers, in the order given."""
        out, order = [""] * len(mels), sorted(range(len(mels)), key=lambda i: len(mels[i]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            longest = max(len(mels[i]) for i in chosen)
            mel = np.stack([_pad(mels[i], min(longest + 2, WINDOW_FRAMES)) for i in chosen])
            frames = torch.tensor([len(mels[i]) for i in chosen])
            vectors = encode(self.model, torch.from_numpy(mel), frames)[1]
            counts = [int(n) for n in audio_vectors(frames)]
            audio = torch.cat([v[:n] for v, n in zip(vectors, counts, strict=True)])
            rows = [([self.layout.audio] * n, True, instruction, audio_first) for n in counts]
            for i, text in zip(chosen, answer(self.model, self.layout, rows, audio), strict=True):
                out[i] = text
        return out

    def read(self, texts: list[str], instruction: str) -> list[str]:
        rows = [(self.layout.ids(t), False, instruction, True) for t in texts]
        return [a for i in range(0, len(rows), BATCH) for a in answer(self.model, self.layout, rows[i : i + BATCH])]


def _pad(mel: np.ndarray, frames: int) -> np.ndarray:
    """To `frames` with the value of digital silence -> (80, frames), as the feature extractor pads."""
    return np.pad(mel, ((0, frames - len(mel)), (0, 0)), constant_values=mel.max() - 2).T


def _recordings(folder: Path, split: str) -> tuple[list[dict], list[np.ndarray]]:
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    mels = []
    for row in rows:
        wave, rate = soundfile.read(folder / row["audio"], dtype="float32")
        mels.append(log_mel(resample(wave, rate) if rate != RATE else wave))
    return rows, mels


def _equal(truth: list, answers: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(truth, answers, strict=True)]))


def _slot_words(rows: list[dict], said: list[str]) -> float:
    """Share of the words of all slot values that stand in the transcription of their row."""
    hit = total = 0
    for row, text in zip(rows, said, strict=True):
        heard = set(text.split())
        wanted = [w for slot in row["label"]["slots"] for w in normalise(slot["value"]).split()]
        hit, total = hit + sum(w in heard for w in wanted), total + len(wanted)
    return hit / total


def synthetic(base: Base, work: Path) -> dict:
    """Unseen voices and sentences: WER, and the task that was trained in text only: on speech, on
    what the base itself transcribes (cascade), and on the true text."""
    out, tasks = {}, Tasks()
    for split in ("clean", "recorded"):
        corpus = Corpus(work, split)
        for language in LANGUAGES:
            rows = [k for k in range(len(corpus)) if corpus.language[k] == language]
            texts, mels = [corpus.text[k] for k in rows], [corpus.clip(k, -1).mel for k in rows]
            heard = base.hear(mels, TRANSCRIBE)
            out[f"{split} {language} WER"] = wer(texts, heard)
            if split == "clean":
                out[f"{split} {language} WER, instruction first"] = wer(texts, base.hear(mels, TRANSCRIBE, False))
                truth = [tasks.answer(PROBE, language, t) for t in texts]
                out[f"probe {language} on speech"] = _equal(truth, base.hear(mels, PROMPTS[PROBE]))
                out[f"probe {language}, cascade"] = _equal(truth, base.read(heard, PROMPTS[PROBE]))
                out[f"probe {language} on text"] = _equal(truth, base.read(texts, PROMPTS[PROBE]))
    return out


def real(base: Base, data: Path = DATA) -> dict:
    """Human speech, never trained on. Chance of a digit is 0.1; a model that answers nothing has WER 1.0."""
    out = {}
    rows, mels = _recordings(data / "fsdd", "test")
    said = base.hear(mels, TRANSCRIBE)
    out["FSDD digits, whole answer is the word"] = _equal([r["text"] for r in rows], said)
    rows, mels = _recordings(data / "librispeech_mini", "test")
    out["LibriSpeech WER"] = wer([r["text"] for r in rows], base.hear(mels, TRANSCRIBE))
    rows, mels = _recordings(data / "picovoice_barista", "dev")
    said = base.hear(mels, TRANSCRIBE)
    out["coffee orders, slot words heard"] = _slot_words(rows, said)
    # the base has read coffee sentences: what it would score by saying likely orders without listening
    shifted = [_slot_words(rows, said[n:] + said[:n]) for n in range(1, len(said))]
    out["coffee orders, another order's transcription"] = float(np.mean(shifted))
    out["examples"] = [[r["label"]["slots"], s] for r, s in list(zip(rows, said, strict=True))[:3]]
    return out


def gate(folder: Path, work: Path) -> dict:
    base = Base(folder)
    weights = folder / "model.safetensors"
    result = {"sha256": sha256(folder), "bytes": weights.stat().st_size}
    result |= {"synthetic": synthetic(base, work), "real": real(base)}
    for part in ("synthetic", "real"):
        for name, value in result[part].items():
            if isinstance(value, float):
                result[part][name] = round(value, 4)
                print(f"{name:45} {value:.3f}")
    (folder / "gate.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("models/tiny"))
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gate(arguments.folder, arguments.work)
