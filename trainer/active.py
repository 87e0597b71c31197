"""What a tuned model hears worst (SALAD's Stage II; arXiv 2510.13632, section 4): clusters of a broad collection of
texts, the job's misalignment in each, and the order in which texts are to be spoken.

`python -m trainer active …` writes clusters.json and order.json into a folder; `attune build active` calls it, and
speaks the texts. Departure: a text's predicted tokens are those of its task's answer, as in training.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import selection
from trainer.corpus import tasks_of
from trainer.families import load_base, own_device
from trainer.fields import problem
from trainer.leaks import plain
from trainer.manifest import Utterance, load
from trainer.objectives.misalignment import divergences
from trainer.resolve import Resolved
from trainer.result import Result
from trainer.sentence_encoder import sentence_encoder
from trainer.stage import Demonstrations, Plain
from trainer.store import open_store
from trainer.views import SPEECH, VIEWS, Recordings, training_example

ENOUGH = 32
"""Probe texts that a cluster's misalignment should be the mean of; fewer are noted."""
MICRO_BATCH_TOKENS = 4096


def main(arguments: Sequence[str]) -> int:
    """The command line; 2: cannot be measured as asked."""
    parser = argparse.ArgumentParser(prog="python -m trainer active")
    parser.add_argument("--job", required=True, help="folder or s3:// place of a finished job")
    parser.add_argument("--texts", required=True, help="data set to select from; its train rows")
    parser.add_argument("--probe", required=True, help="data set with recordings and texts")
    parser.add_argument("--clusters", type=int, default=128)
    parser.add_argument("--gamma", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedding", default="tfidf", help="tfidf, or a sentence encoder's hub id or folder")
    parser.add_argument("--pooling", choices=("cls", "mean"), default="cls")
    parser.add_argument(
        "--not-in", action="append", default=[], metavar="DATA",
        help="data set whose texts are not to be selected: what the job is tested on (repeatable)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        found, order = select(options, [*options.data_root, "."])
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    (options.out / "clusters.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (options.out / "order.json").write_text(json.dumps(order) + "\n")
    return 0


def select(options: argparse.Namespace, roots: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """(what was found, per cluster; id and cluster of every text in the order to speak them)."""
    texts, noted = _texts(options, roots)
    probe = [u for u in load(options.probe, roots) if u.audio and u.text]
    if not probe:
        raise problem("--probe", "no row has recording and text, which misalignment is measured on", options.probe)
    count = min(options.clusters, len(texts))
    points = embedding(options)([u.text or "" for u in (*texts, *probe)])
    of_text, of_probe = selection.clustered(points[: len(texts)], points[len(texts) :], count, options.seed)
    count = int(of_text.max()) + 1
    resolved, model = adapted(options.job)
    apart, tokens = measured(model, probe, resolved, tasks_of(options.probe, roots))
    misaligned, probes = selection.misalignment(of_probe, apart, tokens, count)
    sizes = np.bincount(of_text, minlength=count)
    web = sizes / sizes.sum()
    goal = selection.target(web, misaligned, options.gamma)
    order = selection.order(of_text, goal, options.seed)
    if few := int((probes < ENOUGH).sum()):
        noted.append(f"{few} of {count} clusters have fewer than {ENOUGH} probe texts; {int((probes == 0).sum())} none")
    many = np.bincount(of_probe, tokens, count).astype(int)
    rows = [
        {
            "cluster": c, "texts": int(sizes[c]), "p_web": float(web[c]), "probe_texts": int(probes[c]),
            "probe_tokens": int(many[c]), "misalignment": float(misaligned[c]), "p_target": float(goal[c]),
        }
        for c in range(count)
    ]  # fmt: skip
    found = {
        "job": resolved.spec.name, "teacher": f"{resolved.spec.base} with its adapters off", "texts": options.texts,
        "probe": options.probe, "embedding": options.embedding, "gamma": options.gamma, "seed": options.seed,
        "misalignment": float(apart.sum() / tokens.sum()), "notes": noted, "clusters": rows,
    }  # fmt: skip
    return found, [(texts[n].id, int(of_text[n])) for n in order]


def _texts(options: argparse.Namespace, roots: Sequence[str]) -> tuple[list[Utterance], list[str]]:
    """(the texts that may be selected, what was left out)."""
    rows = [u for u in load(options.texts, roots) if u.split == "train" and u.text and u.text.strip()]
    held = {plain(u) for ref in options.not_in for u in load(ref, roots) if u.text}
    kept = [u for u in rows if plain(u) not in held]
    if not kept:
        raise problem("--texts", "no row of split train has a text that is not tested on", options.texts)
    return kept, [f"{len(rows) - len(kept)} texts are in the test set and left out"] if len(kept) < len(rows) else []


def embedding(options: argparse.Namespace):
    """Texts → points (texts, width)."""
    if options.embedding == "tfidf":
        return selection.embedded
    return sentence_encoder(Demonstrations(retriever=options.embedding, pooling=options.pooling))


def adapted(job: str) -> tuple[Resolved, Any]:
    """(a finished job, its base with what it trained). SpecError where it has not ended, or trained no adapter."""
    store = open_store(job)
    if not store.exists("final.json"):
        raise problem("--job", "no finished job lies here; give the folder of one (--out of attune run)", job)
    resolved = Resolved.model_validate_json(store.get("spec.json"))
    result = Result.model_validate_json(store.get("final.json"))
    spec, tuning = resolved.spec, resolved.spec.tuning
    if not result.checkpoint or tuning.method != "lora":
        raise problem("--job", "the base itself is the teacher, so the job must have trained LoRA", job)
    if tuning.encoder == "auto":
        tuning = tuning.model_copy(update={"encoder": json.loads(store.get("inputs/encoder.json"))["encoder"]})
    model = load_base(resolved, own_device(0, torch.cuda.device_count()))
    model.hear(spec.encoder_window)
    model.attach(tuning, seed=spec.seed, execution=spec.execution)
    prefix = f"{result.checkpoint}/adapter/"
    model.load_files({key.removeprefix(prefix): store.get(key) for key in store.list(prefix)})
    return resolved, model


def measured(model, probe: Sequence[Utterance], resolved: Resolved, tasks: dict) -> tuple[np.ndarray, np.ndarray]:
    """(KL(base on the text ‖ tuned on the recording) summed over the predicted tokens, their number) of each row."""
    known = tasks | {task.name: task for task in resolved.spec.tasks or [] if not isinstance(task, str)}
    if unknown := sorted({u.task for u in probe} - set(known)):
        raise problem("--probe", f"task {unknown[0]!r} is not defined; put a task.yaml beside the manifest")
    heard = Recordings(model.tokens.shape.sampling_rate, trim_silence=resolved.spec.data.trim_silence == "on")
    view = VIEWS.index(SPEECH)
    found = []
    for start in range(0, len(probe), 1000):  # not the recordings of all rows at once
        part = probe[start : start + 1000]
        made = [training_example(u, view, Plain(), known, model.tokens, heard, twin="asked") for u in part]
        found.append(divergences(model, made, MICRO_BATCH_TOKENS))
    apart, tokens = zip(*found, strict=True)
    return np.concatenate(apart), np.concatenate(tokens)
