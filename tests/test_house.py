"""The house is as the README draws it, and nothing stands in it that should not."""

import re
import subprocess
from pathlib import Path

import pytest

from attune.cli import main

ROOT = Path(__file__).parent.parent


def tracked() -> list[str]:
    """Files that git knows or would take up."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [n for n in names if n and (ROOT / n).exists()]


def test_the_tree_of_the_readme_is_the_tree():
    block = (ROOT / "README.md").read_text().split("## The house")[1].split("```")[1]
    drawn = {name for line in block.strip().splitlines() for name in _drawn(line)}
    top = {n.split("/")[0] + ("/" if "/" in n else "") for n in tracked()}
    assert drawn == top - {".gitignore"}


def _drawn(line: str) -> list[str]:
    """Names on a line of the tree: one folder with its purpose, or several files."""
    first = line.split()[0]
    return [first] if first.endswith("/") else line.split()


def test_every_module_of_the_trainer_is_in_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = {p.name for p in (ROOT / "trainer").glob("*.py")} - {"__init__.py"}
    assert sorted(m for m in modules if f"`{m}`" not in page) == []


def test_files_stay_readable():
    ours = [n for n in tracked() if n.endswith(".py") and not n.startswith("tests/")]
    long = {n: len((ROOT / n).read_text().splitlines()) for n in ours}
    assert {n: k for n, k in long.items() if k > 400} == {}


def test_every_data_folder_names_its_licence():
    for folder in sorted((ROOT / "data").iterdir()):
        readme = (folder / "README.md").read_text()
        assert "icence" in readme, folder.name


def test_licences_of_the_readme_are_those_of_the_data():
    texts = " ".join(p.read_text() for p in (ROOT / "data").glob("*/README.md"))
    assert "NON-COMMERCIAL" not in texts


def test_every_command_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`", readme)):
        assert f"\n{target}:" in makefile, target
    for verb in set(re.findall(r"\.venv/bin/attune ([a-z]+)", readme)):
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0, verb
