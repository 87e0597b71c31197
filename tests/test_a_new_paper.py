"""A sixth paper is one file and one name in one list, as docs/a-new-paper.md says: added to a copy of the trainer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PAPER = '''"""Sentences first, recordings last (made up for a test)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from trainer.fields import Spec
from trainer.stage import Stage
from trainer.strategies.budget import Budget, need


class RecordingsLast(Spec):
    """Sentences alone, then recordings alone."""

    paper: ClassVar[str] = "Recordings Last (arXiv 0000.00000)"
    name: Literal["recordings_last"] = "recordings_last"
    """The recipe's name."""
    last_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the steps with recordings (inferred)."""

    def stages(self, rows: Mapping[str, int], budget: Budget) -> list[Stage]:
        """Two stages."""
        steps = budget.steps_for(budget.epochs * need(rows, "text", "recordings_last"))
        last = min(max(1, round(self.last_share * steps)), steps - 1)
        reading, hearing = budget.trainable(hears=False), budget.trainable(hears=True)
        return [
            Stage(name="read", steps=steps - last, mix={"text": 1}, trainable=reading, optimizer=budget.optimizer),
            Stage(name="hear", steps=last, mix={"speech": 1}, trainable=hearing, optimizer=budget.optimizer),
        ]
'''
COMMANDS = """
import sys
import trainer
from attune.cli import main
from trainer.__main__ import main as train

assert trainer.__file__.startswith(sys.argv[1]), trainer.__file__
for words in (["validate", "job.yaml"], ["explain", "job.yaml"], ["plan", "job.yaml"], ["schema", "--markdown"]):
    assert main(words) == 0, words
assert main(["explain", "mistyped.yaml"]) == 2
for _ in range(2):  # the second finds it done
    assert train(["job.yaml", "--out", "out"]) == 0
"""


def test_one_file_and_one_name(tmp_path):
    shutil.copytree(ROOT / "trainer", tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    strategies = tmp_path / "trainer" / "strategies"
    (strategies / "recordings_last.py").write_text(PAPER)
    listed = (strategies / "__init__.py").read_text()
    for old, new in (
        ("from trainer.strategies.salad import", "from trainer.strategies.recordings_last import RecordingsLast\n"),
        ("| Salad", "| RecordingsLast "),
    ):
        assert listed.count(old) == 1
        listed = listed.replace(old, new + old)
    (strategies / "__init__.py").write_text(listed)

    numbers = str(ROOT / "data" / "tiny" / "label")
    job = {
        "name": "sixth", "base": str(ROOT / "models" / "tiny"), "language": "ar", "data": {"corpus": numbers},
        "recipe": {"name": "recordings_last", "last_share": 0.4}, "steps": 3, "global_batch": 2,
        "tuning": {"encoder": "frozen"},
        "evaluate": {"on": f"{numbers}:test", "limit": 2, "text_twin": False, "decode": {"max_new_tokens": 4}},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    mistyped = {**job, "recipe": {"name": "recordings_last", "last_shere": 0.4}}
    (tmp_path / "mistyped.yaml").write_text(yaml.safe_dump(mistyped))
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "read: 2 steps; text 100.0%" in ran.stdout  # attune explain
    assert "read: 2 steps | hear: 1 steps" in ran.stdout  # attune plan
    assert "`recordings_last` (Recordings Last (arXiv 0000.00000))" in ran.stdout  # the reference
    assert "## RecordingsLast" in ran.stdout
    assert "last_shere: unknown key; did you mean 'last_share'?" in ran.stderr
    result = json.loads((tmp_path / "out" / "final.json").read_text())
    assert (result["outcome"], result["steps"]) == ("succeeded", 3)
