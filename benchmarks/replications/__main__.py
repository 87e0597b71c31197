"""The replications: one study per paper on the tiny base, judged by checks that were fixed before it ran.

    python -m benchmarks.replications [PAPER…]           make data, train what is missing, judge, draw
    python -m benchmarks.replications [PAPER…] --judge   only judge and draw what has been trained so far
    python -m benchmarks.replications --docs             only write docs/replications.md from the stored results

A study stops and goes on cell by cell: the same command again. Its folder is build/replications/runs/PAPER; what is
kept in the repository is suites/replications/results/PAPER.json and .svg.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "suites" / "replications"
RUNS = ROOT / "build" / "replications" / "runs"
PAPERS = ("limited_speech", "data_scheduling", "salad", "label_permutation", "contrastive")
DATA = {
    "limited_speech": ["fr"],
    "data_scheduling": ["en_tasks", "en_accent"],
    "salad": ["de"],
    "label_permutation": ["en", "en_unseen"],
}
"""Data sets to be spoken first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replications", description=__doc__)
    parser.add_argument("papers", nargs="*", default=[], metavar="PAPER", help=", ".join(PAPERS))
    parser.add_argument("--judge", action="store_true", help="train nothing")
    parser.add_argument("--docs", action="store_true", help="only write the page from stored results")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.papers) - set(PAPERS)):
        parser.error(f"no such replication: {', '.join(unknown)}; there are {', '.join(PAPERS)}")
    if not options.docs:
        for paper in options.papers or PAPERS:
            replicate(paper, train=not options.judge)
    from benchmarks.replications.page import write

    print(write())
    return 0


def replicate(paper: str, *, train: bool) -> None:
    """Trains what is missing of a study and stores what it says."""
    from benchmarks.replications.collect import collect, store
    from benchmarks.replications.speech import BUILD, build
    from trainer.run_study import run_study
    from trainer.study import StudySpec, load

    study = load(SUITES / f"{paper}.yaml")
    assert isinstance(study, StudySpec), f"{paper}.yaml is no study"
    if train:
        for language in DATA.get(paper, []):
            build(language, BUILD)
        run_study(study, RUNS / paper, [ROOT])
    store(paper, collect(study, RUNS / paper, SUITES / f"{paper}.findings.yaml"))


if __name__ == "__main__":
    sys.exit(main())
