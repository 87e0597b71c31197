"""What every measurement here has in common: the machine, peers in turns, medians with spread, a table and a file.

Absolute times mean little on a machine that others use too; ratios of peers that ran in turns mean something. So every
round runs all peers one after the other, the ratio is taken within the round, and the load stands beside it. What runs
in one thread is measured in processor time.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine(*packages: str) -> dict[str, Any]:
    """Where and when this runs: processor, cores, load, versions of Python and of the `packages` named."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}",
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def in_turns(
    peers: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm: int = 1,
    check: Callable[[], object] = lambda: None,
    ready: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, float]]:
    """Seconds per peer and round, {name: seconds, …, "load": …}; the order of the peers turns round by round. `warm`
    rounds before them are not counted. `check` is called after every round, and raises where the peers did not do the
    same; `ready` before the clock starts and before it stops (a GPU's synchronisation). `clock`: `time.process_time`
    counts the seconds that the processor worked for this process."""
    found = []
    for n in range(-warm, rounds):
        row: dict[str, float] = {}
        for name in list(peers) if n % 2 == 0 else list(peers)[::-1]:
            ready()
            began = clock()
            peers[name]()
            ready()
            row[name] = clock() - began
        check()
        if n >= 0:
            found.append({**{name: row[name] for name in peers}, "load": os.getloadavg()[0]})
    return found


def spread(rounds: Sequence[Mapping[str, float]], digits: int = 3) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of every column."""
    return {
        key: {
            name: round(of(r[key] for r in rounds), digits)
            for name, of in (("median", statistics.median), ("min", min), ("max", max))
        }
        for key in rounds[0]
    }


def store(name: str, document: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes the document to benchmarks/results/<name>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def written(name: str, runs: Sequence[Mapping[str, float]], digits: int, **about: Any) -> dict[str, dict[str, float]]:
    """Stores `about` the measurement, where it ran, and the spread of its runs, which it returns."""
    found = spread(runs, digits)
    store(name, {"repeat": len(runs), **machine("torch", "transformers", "peft", "ray"), **about, "results": found})
    return found


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of cells (the first is the heading) as aligned text: numbers right, words left."""
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    right = [all(isinstance(row[n], int | float) for row in rows[1:]) for n in range(len(cells[0]))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    )
