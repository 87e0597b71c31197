"""References of a spec that are files of this machine, made absolute for a service that sees the same files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATA = (
    "data.corpus", "data.text", "data.speech", "data.synthetic", "data.extra_text", "source.data", "evaluate.on",
    "evaluate.dev", "evaluate.guards", "evaluate.demos.from",
)  # fmt: skip
SHORT = {name.rpartition(".")[2] for name in DATA}
"""How the grid of a study may call them."""
START = "init_from"
"""An earlier job by its folder; one that the service knows by its id is no file here."""
RETRIEVERS = ("evaluate.demos.retriever", "recipe.demonstrations.retriever")
"""Sentence encoders, which are folders as bases are; these two words are none."""
WORDS = ("random", "tfidf")


def absolute(spec: Mapping[str, Any], roots: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """The spec with every data reference and earlier job that exist under a root, and a base or sentence encoder that
    is a folder here, as absolute paths; and what has changed, by field. All else is left for the service to find."""
    changed: dict[str, str] = {}

    def at(field: str, name: str, value: Any) -> Any:
        """A field's value, or a list of values in a grid."""
        if isinstance(value, list):
            return [at(f"{field}[{n}]", name, each) for n, each in enumerate(value)]
        folder = name in ("base", "retriever")
        found = _folder(value) if folder else _data(value, roots) if name in (*SHORT, START) else None
        if found is None or found == value:
            return value
        changed[field] = found
        return found

    made = dict(spec)
    made |= {name: at(name, name, made[name]) for name in ("base", START) if name in made}
    for name in (*DATA, *RETRIEVERS):
        made = _with(made, name.split("."), name, at)
    if isinstance(made.get("grid"), Mapping):
        made["grid"] = _cells("grid", made["grid"], at)
    if isinstance(made.get("also"), list):
        made["also"] = [
            _cells(f"also[{n}]", cell, at) if isinstance(cell, Mapping) else cell for n, cell in enumerate(made["also"])
        ]
    return made, changed


def _with(table: Mapping[str, Any], path: Sequence[str], name: str, at) -> dict[str, Any]:
    """The table with the reference called `name`, which lies at `path` in it, as `at` says it."""
    head, *rest = path
    if head not in table or (rest and not isinstance(table[head], Mapping)):
        return dict(table)
    return {**table, head: _with(table[head], rest, name, at) if rest else at(name, head, table[head])}


def _cells(place: str, table: Mapping[str, Any], at) -> dict[str, Any]:
    names = {key: key.rpartition(".")[2] for key in table if key in (*DATA, *SHORT, *RETRIEVERS, "base", START)}
    return {key: at(f"{place}.{key}", names[key], value) if key in names else value for key, value in table.items()}


def _data(reference: Any, roots: Sequence[Path]) -> str | None:
    """`folder`, `folder:split` or a file, looked up as the trainer does: whole first, for a path may hold a colon."""
    if not isinstance(reference, str):
        return None
    head, colon, split = reference.rpartition(":")
    for name, rest in ((reference, ""), (head, colon + split)):
        for root in roots if name else ():
            if (root / name).exists():
                return str((root / name).absolute()) + rest
    return None


def _folder(name: Any) -> str | None:
    if not isinstance(name, str) or "://" in name or name in WORDS:
        return None
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else None
