"""Trains the base: text, listening, both together, annealing. Two one-thread processes by default.

Everything random depends on (seed, step, rank) alone and a checkpoint holds all state, so a stopped run continues.
"""

import json
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from models.recipe.corpus import Corpus, collate
from models.recipe.decode import answer, wer
from models.recipe.layout import Layout
from models.recipe.losses import Losses
from models.recipe.model import audio_vectors, build_model, embedding, encode
from models.recipe.tasks import PROBE, PROMPTS, TRANSCRIBE, Tasks
from models.recipe.text import LANGUAGES, build_tokenizer

SEED, WARM_UP = 0, 60
COST = 5000  # per process and step, in positions of encoder and language model: long clips make small batches
# pseudo: share of rows whose audio is text stretched with blanks. mix: share of spoken rows with some words written.
# copy: share of pseudo rows that repeat random words. clear: share of clips used, the least noisy ones.
# vary: share of clips read with fresh variation. The other names are weights of the terms in losses.py.
_TEXT = {"pseudo": 1.0, "mix": 0, "clear": 1.0, "vary": 1, "ask": 1, "text": 1, "token": 0.5, "slot": 0.5,
         "kl": 0.5, "nce": 0.1, "probe": 0.25}  # fmt: skip
_LISTEN = {"pseudo": 0, "mix": 0, "phone": 1, "frame": 1}
_JOINT = {"pseudo": 0.12, "mix": 0.15, "phone": 0.4, "frame": 1, "ask": 1, "text": 0.5, "token": 1,
          "slot": 0.5, "kl": 0.7, "nce": 0.2, "probe": 0.25}  # fmt: skip
STAGES: list[dict] = [
    {"name": "copy", "steps": 500, "rate": 4e-3, "end": 0.5, **_TEXT, "copy": 0.5},
    {"name": "listen", "steps": 1500, "rate": 5e-3, "end": 0.8, **_LISTEN, "clear": 0.35, "vary": 0.3},
    {"name": "listen", "steps": 2500, "rate": 4e-3, "end": 0.5, **_LISTEN, "clear": 0.6, "vary": 0.5},
    {"name": "joint", "steps": 1400, "rate": 2.2e-3, "end": 0.85, **_JOINT, "clear": 0.6, "vary": 0.5},
    {"name": "anneal", "steps": 2800, "rate": 1.9e-3, "end": 0.01, **_JOINT, "clear": 0.7, "vary": 0.5},
]
PLAIN = 0.5  # AdamW's share of the stage's rate: embeddings, convolutions, norms and biases


def tokenizer_of_recipe():
    """The tokenizer, with the instructions of the tasks among its training text."""
    return build_tokenizer([prompt.split("{")[0] for prompt in PROMPTS.values()])


class Trainer:
    def __init__(self, work: Path, rank: int, world: int) -> None:
        self.work, self.rank, self.world = work, rank, world
        self.layout, self.tasks = Layout(tokenizer_of_recipe()), Tasks()
        self.corpus, self.unseen = Corpus(work, "train"), Corpus(work, "clean")
        phones = json.loads((work / "phones.json").read_text())
        torch.manual_seed(SEED)
        self.losses = Losses(build_model(self.layout.tokenizer), self.layout, self.tasks, phones)
        self.params = [p for p in self.losses.parameters() if p.requires_grad]
        words = embedding(self.losses.model)
        matrix = [p.ndim == 2 and p is not words for p in self.params]
        # Muon orthogonalises a matrix's update (Jordan et al. 2024), scaled to AdamW's size (Liu et al. 2025)
        self.muon = torch.optim.Muon(
            [p for p, m in zip(self.params, matrix, strict=True) if m], weight_decay=0.02, momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        plain = [p for p, m in zip(self.params, matrix, strict=True) if not m]
        self.adamw = torch.optim.AdamW(plain, betas=(0.9, 0.98), weight_decay=0, fused=True)
        self.step, self.seen, self.seconds, self.started = 0, 0, 0.0, time.time()
        self.clarity, self._batches = self.corpus.clarity(), {}

    def rows(self, step: int, clear: float) -> np.ndarray:
        """This rank's rows of a step: clips of like length, the same batch divided over the ranks."""
        epoch = 0
        while step >= len(self._batches_of(epoch, clear)):
            step -= len(self._batches_of(epoch, clear))
            epoch += 1
        return self._batches_of(epoch, clear)[step][self.rank :: self.world]

    def _batches_of(self, epoch: int, clear: float) -> list[np.ndarray]:
        """One pass over the `clear` share of the clips with the least noise; half of the French and German ones."""
        if (epoch, clear) not in self._batches:
            rng = np.random.default_rng([SEED, epoch])
            frames = self.corpus.frames
            order = np.argsort(frames + rng.uniform(0, 12, len(frames)))
            thinned = np.isin(self.corpus.language, ("fr", "de")) & (np.arange(len(frames)) % 2 == epoch % 2)
            order = order[(self.clarity >= np.quantile(self.clarity, 1 - clear))[order] & ~thinned[order]]
            batches, start = [], 0
            while start < len(order):
                cost = frames[order[start]] * 0.78 + 80  # encoder 1/2, audio slots 1/4, prompt and transcript
                size = max(4, int(COST / cost)) * self.world
                batches.append(order[start : start + size])
                start += size
            batches = batches[:-1]  # the last one may be short
            self._batches[epoch, clear] = [batches[i] for i in rng.permutation(len(batches))]
        return self._batches[epoch, clear]

    def update(self, stage: dict, rate: float) -> dict[str, float]:
        rng = random.Random(f"{SEED} {self.step} {self.rank}")
        rows = self.rows(self.step, stage["clear"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = self.losses(stage, self.corpus, rows, rng)
            loss = sum(stage[name] * term for name, term in terms.items())
        for p in self.params:
            p.grad = None
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        self._reduce()
        for optimizer, share in ((self.muon, 1), (self.adamw, PLAIN)):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
        self.step, self.seen = self.step + 1, self.seen + len(rows) * self.world
        return {name: float(term.detach()) for name, term in terms.items()}

    def _reduce(self) -> None:
        """Mean gradient of the ranks, clipped to norm 1. Parameters of no term stay untouched, on every rank alike."""
        used = [p.grad is not None for p in self.params]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.params])
        dist.all_reduce(flat)
        flat /= self.world
        norm = float(flat.norm())
        if not np.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: gradient norm is {norm}; lower the stage's rate")
        flat *= min(1.0, 1.0 / (norm + 1e-6))
        for p, g, u in zip(self.params, flat.split([p.numel() for p in self.params]), used, strict=True):
            p.grad = g.view_as(p) if u else None

    def train(self, stage: dict, start: int, steps: int) -> None:
        """Steps start .. start + steps of the whole run; those already done are skipped."""
        sums: dict[str, list[float]] = defaultdict(list)
        while self.step < start + steps:
            i = self.step - start
            rate = stage["rate"] * min(1, (i + 1) / WARM_UP) * (1 - (1 - stage["end"]) * i / steps)
            for name, value in self.update(stage, rate).items():
                sums[name].append(value)
            if self.step % 50 == 0 and self.rank == 0:
                means = {name: round(float(np.mean(v)), 3) for name, v in sums.items()}
                self.write({"stage": stage["name"], "step": self.step, **means, "rate": round(rate, 6)})
                sums.clear()
            if self.step == start + steps or self.step % 300 == 0:
                if "ask" in stage and stage["pseudo"] < 1:
                    self.evaluate(stage["name"])
                self.save()

    def write(self, row: dict) -> None:
        minutes = (self.seconds + time.time() - self.started) / 60
        line = json.dumps({**row, "minutes": round(minutes, 2), "seen": self.seen}, ensure_ascii=False)
        print(line, flush=True)
        with open(self.work / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    @torch.no_grad()
    def evaluate(self, name: str, count: int = 24) -> None:
        """Rank 0: WER per language on unseen voices and sentences; last rank: the probe on speech and on text."""
        self.losses.eval()
        model, layout, results = self.losses.model, self.layout, {}
        for language in LANGUAGES:
            rows = [k for k in range(len(self.unseen)) if self.unseen.language[k] == language][:count]
            texts = [self.unseen.text[k] for k in rows]
            mel, frames, _ = collate([self.unseen.clip(k, self.losses.silence) for k in rows])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                vectors, counts = encode(model, mel, frames)[1], audio_vectors(frames)
                audio = torch.cat([v[:n] for v, n in zip(vectors, counts, strict=True)])
                slots = [[layout.audio] * int(n) for n in counts]
                if self.rank == 0:
                    heard = answer(model, layout, [(s, True, TRANSCRIBE, True) for s in slots], audio, limit=30)
                    results[f"wer {language}"] = round(wer(texts, heard), 3)
                    results[f"example {language}"] = [texts[1], heard[1]]
                if self.rank == self.world - 1:
                    truth = [self.tasks.answer(PROBE, language, t) for t in texts]
                    ask = PROMPTS[PROBE]
                    spoken = answer(model, layout, [(s, True, ask, True) for s in slots], audio, limit=8)
                    read = answer(model, layout, [(layout.ids(t), False, ask, True) for t in texts], limit=8)
                    hits = [sum(map(str.__eq__, truth, got)) / len(texts) for got in (spoken, read)]  # type: ignore
                    results[f"probe {language} speech, text"] = [round(h, 2) for h in hits]
        gathered = [{}] * self.world
        dist.all_gather_object(gathered, results)
        if self.rank == 0:
            self.write({"evaluation": name, "step": self.step, **{k: v for part in gathered for k, v in part.items()}})
        self.losses.train()

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "model": self.losses.model.state_dict(), "losses": self.losses.state_dict(),
            "muon": self.muon.state_dict(), "adamw": self.adamw.state_dict(), "step": self.step, "seen": self.seen,
            "seconds": self.seconds + time.time() - self.started,
        }  # fmt: skip
        torch.save(state, self.work / "last.tmp")
        os.replace(self.work / "last.tmp", self.work / "last.pt")

    def resume(self) -> None:
        path = self.work / "last.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu")
            self.losses.load_state_dict(state["losses"])
            self.muon.load_state_dict(state["muon"])
            self.adamw.load_state_dict(state["adamw"])
            self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]


def run(rank: int, world: int, work: Path, scale: float) -> None:
    """One process of the training; `scale` multiplies the steps of every stage."""
    # two one-thread processes beat one of two threads: no barrier inside every operator
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{work.resolve()}/rendezvous", rank=rank, world_size=world)
    trainer = Trainer(work, rank, world)
    trainer.resume()
    trainer.losses.train()
    start = 0
    for stage in STAGES:
        steps = max(1, round(stage["steps"] * scale))
        trainer.train(stage, start, steps)
        start += steps
    dist.destroy_process_group()


def train(work: Path, scale: float = 1.0, processes: int = 2) -> Path:
    """Runs or continues the training -> the checkpoint."""
    (work / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(run, (processes, work, scale), nprocs=processes)  # type: ignore[attr-defined]
    return work / "last.pt"
