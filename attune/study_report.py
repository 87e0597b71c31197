"""A study's report from the service as files: `report.json`, `report.txt` and, where the trainer is installed, the
chart."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(made: Mapping[str, Any], out: Path) -> list[Path]:
    """Write what `client.studies.report` gave into the folder `out`, of several tasks each into a folder of its name;
    returns the files. OSError."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "report.json", out / "report.txt"]
    files[0].write_text(json.dumps(made["report"], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    files[1].write_text(made["text"], encoding="utf-8")
    if tasks := made.get("tasks"):
        return [*files, *(file for task, one in tasks.items() for file in write(one, out / task))]
    if importlib.util.find_spec("matplotlib") is None:
        print("no learning_curve.png: pip install 'attune[trainer]' to have it drawn", file=sys.stderr)
        return files
    picture = out / "learning_curve.png"
    # a process of its own: what draws is heavy, and the front door is not
    subprocess.run([sys.executable, "-m", "trainer.learning_curve", str(files[0]), str(picture)], check=True)
    return [*files, picture]
