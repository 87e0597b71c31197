"""`python -m models.recipe.build --out models/tiny`: prepare, train, export, gate. Continues where it was stopped."""

import argparse
import os
from pathlib import Path

# Before numpy and torch are imported: both training processes and the synthesis workers use one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def build(out: Path, work: Path, scale: float) -> None:
    """`scale` multiplies corpus and steps: 0.01 tries the whole chain in a few minutes."""
    from models.recipe.export import export
    from models.recipe.gate import gate
    from models.recipe.prepare import prepare
    from models.recipe.train import tokenizer_of_recipe, train

    if not (work / "phones.json").exists():  # written last
        prepare(work, scale)
    checkpoint = train(work, scale)
    export(tokenizer_of_recipe(), checkpoint, out)
    gate(out, work)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("models/tiny"), help="folder of the finished base")
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="corpus, log and checkpoint (2 GB)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies corpus size and training steps")
    options = parser.parse_args()
    build(options.out, options.work, options.scale)
