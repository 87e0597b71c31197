"""How samplers' gradients differ at the same weights, and whether tasks pull apart.

arXiv 2601.12494 speaks of the gradient volatility of diverse sampling. Along their own runs samplers have other weights
too, so a run's gradient norms do not say it: here all of them are asked at the checkpoints of one job, by its last
stage's objective on plain examples, and nothing is learnt.

`python -m trainer.gradients OUT --steps 20 40 60`: mean and variance of the gradient norm over some batches of every
sampler, and the cosine between the mean gradients of each two tasks, on all that the job's last stage trains.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from trainer import checkpoint
from trainer.aligner import aligned
from trainer.context import prepare, prepared
from trainer.corpus import Corpus, read_corpus
from trainer.families import load_base, own_device
from trainer.loop import Loop
from trainer.resolve import Resolved, check_pins
from trainer.sentence_encoder import sentence_encoder
from trainer.stage import Balanced, Diverse, Mixture, Plain, Sampler, source_shares
from trainer.store import FolderStore, Store, open_store
from trainer.views import Recordings, training_examples

SAMPLERS: dict[str, Sampler] = {
    "sft": Mixture(),
    "uniform": Balanced(),
    "ads": Diverse(),
    "ads, quotas alone": Diverse(diversity="none"),
    "ads, random embeddings": Diverse(embeddings="random"),
}
"""What is compared."""


def measured(model, resolved: Resolved, corpus: Corpus, batches: int, budget: int = 4096) -> dict[str, Any]:
    """Gradients at the model's weights. By sampler: mean and variance of the norm over `batches` steps of the job's
    `global_batch`; by pair of tasks: cosine of their mean gradients over as many."""
    recordings = Recordings(model.tokens.shape.sampling_rate, trim_silence=resolved.spec.data.trim_silence == "on")
    examples = training_examples(resolved, corpus, {}, model.tokens, recordings)
    rows = {t: {s: n for s, n in own.items() if s in resolved.sources} for t, own in corpus.task_rows().items()}
    rows = {task: own for task, own in rows.items() if own}

    def steps(name: str, sampler: Sampler, only: str | None = None):
        shown = rows if only is None else {only: rows[only]}
        sources = [s for s in resolved.sources if any(s in own for own in shown.values())]
        shares = source_shares(Balanced(tau=1.0) if isinstance(sampler, Mixture) else sampler, shown, sources)
        changes = {"name": name, "sampler": sampler, "tasks": only and [only], "steps": batches, "view": Plain()}
        stage = resolved.stages[-1].model_copy(update={**changes, "mix": dict(zip(sources, shares, strict=True))})
        asked = resolved.model_copy(update={"stages": [stage]})
        with tempfile.TemporaryDirectory(prefix="attune-gradients-") as folder:
            kept = FolderStore(folder)
            prepare(asked, corpus, kept, kept.put, sentence_encoder, partial(aligned, model, recordings))
            (plan,), _ = prepared(asked, kept)
        spec = resolved.spec
        loop = Loop(
            model, [stage], [plan], examples, global_batch=spec.global_batch, seed=spec.seed, budget=budget,
            checkpoint_every=batches,
        )  # fmt: skip
        return loop.gradients(stage, plan)

    norms = {name: [norm for norm, _ in steps(f"gradients-{n}", s)] for n, (name, s) in enumerate(SAMPLERS.items())}
    means = {}
    for n, task in enumerate(rows):
        total = 0.0
        for _, gradient in steps(f"gradients-task-{n}", Balanced(), task):
            total = total + gradient.double()
        means[task] = torch.as_tensor(total)
    cosines = {
        f"{a}, {b}": float(torch.nn.functional.cosine_similarity(means[a], means[b], dim=0))
        for a, b in itertools.combinations(means, 2)
    }
    stats = {k: {"mean": float(np.mean(v)), "variance": float(np.var(v)), "batches": len(v)} for k, v in norms.items()}
    return {"samplers": stats, "cosines": cosines}


def at_checkpoints(store: Store, steps: Sequence[int], batches: int, roots: Sequence[str]) -> dict[int, dict[str, Any]]:
    """`measured` at the checkpoints after `steps` of the job in `store`. ValueError where it cannot be measured."""
    if batches < 1:
        raise ValueError(f"--batches {batches}: must be 1 or more")
    if not store.exists("spec.json"):
        raise ValueError(f"{store.uri}: no job lies there; give the folder of one (--out of attune run)")
    resolved = Resolved.model_validate_json(store.get("spec.json"))
    corpus = read_corpus(resolved.spec, roots)
    check_pins(resolved, corpus)
    model = load_base(resolved, own_device(0, torch.cuda.device_count()))
    model.hear(resolved.spec.encoder_window)
    tuning = resolved.spec.tuning
    if tuning.encoder == "auto":
        tuning = tuning.model_copy(update={"encoder": json.loads(store.get("inputs/encoder.json"))["encoder"]})
    model.attach(tuning, seed=resolved.spec.seed, execution=resolved.spec.execution)
    found = {}
    for step in steps:
        kept = checkpoint.at_step(store, step, lambda event: None)
        if kept is None:
            every = resolved.spec.checkpoint_every
            raise ValueError(f"{store.uri}: no checkpoint after step {step}; there is one every {every} steps")
        model.load_files(kept[1].adapter)
        found[step] = measured(model, resolved, corpus, batches)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints JSON and returns the exit code (2: cannot be measured as asked)."""
    parser = argparse.ArgumentParser(prog="python -m trainer.gradients", description="Gradients at the same weights.")
    parser.add_argument("out", help="folder of a job that was trained")
    parser.add_argument("--steps", type=int, nargs="+", required=True, help="steps whose checkpoints are asked")
    parser.add_argument("--batches", type=int, default=32, help="batches of each sampler and of each task")
    parser.add_argument("--data-root", action="append", default=[], help="folder of data sets (repeatable)")
    options = parser.parse_args(arguments)
    try:
        found = at_checkpoints(open_store(options.out), options.steps, options.batches, [*options.data_root, "."])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
