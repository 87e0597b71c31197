"""What every benchmark leaves in `benchmarks/results`: medians with minimum and maximum, when, and on what machine."""

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def written(name: str, runs: Sequence[Mapping[str, float]], digits: int, **about: Any) -> dict[str, dict[str, float]]:
    """Write `<name>.json`: `about` the benchmark, and per figure of its runs {"median", "min", "max"}, which it
    returns."""
    found = {
        key: {f.__name__: round(f([run[key] for run in runs]), digits) for f in (statistics.median, min, max)}
        for key in runs[0]
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    document = {"repeat": len(runs), "date": time.strftime("%Y-%m-%d"), "machine": machine, **about, "results": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return found
