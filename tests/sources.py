"""Source files for the tests of `attune import`, written on the spot."""

from pathlib import Path

import numpy as np
import soundfile
import yaml

from attune.importing import ImportOptions, ImportReport, import_dataset
from trainer.manifest import Utterance, load
from trainer.spec import Task

EN = ImportOptions(language="en")


def clip(path: Path, seed: int = 0, seconds: float = 0.3) -> Path:
    """A recording of noise; another seed is another recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
    soundfile.write(path, wave, 16_000)
    return path


def slot(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


class Bring:
    """Write a source file below `folder`/in, import it, give (report, rows, task)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(
        self, name: str, content: str | bytes | None, options: ImportOptions = EN, out: str = "out"
    ) -> tuple[ImportReport, list[Utterance], Task]:
        path = self.folder / "in" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(content, encoding="utf-8")
        report = import_dataset(path, self.folder / out, options)
        task = yaml.safe_load((self.folder / out / "task.yaml").read_text(encoding="utf-8"))
        return report, load(str(self.folder / out)), Task(**task)
