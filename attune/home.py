"""The folder of the embedded service, `~/.attune` unless told otherwise, and its files for its owner's eyes alone."""

import json
import os
from pathlib import Path
from typing import Any

CLIENT = "client.json"
"""File with address and admin key, for the command line and `attune.Client`."""


class LocalError(RuntimeError):
    """The embedded service cannot do what was asked; the message says what to do."""


def home(given: str | None = None) -> Path:
    """The folder: as given, else ATTUNE_HOME, else ~/.attune."""
    return Path(given or os.environ.get("ATTUNE_HOME") or "~/.attune").expanduser().resolve()


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none. LocalError where it is damaged."""
    try:
        said = json.loads(file.read_text())
        if not isinstance(said, dict):
            raise ValueError("it holds no object")
        return said
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LocalError(f"{file} is damaged ({error}); remove it and run `attune up` again") from None


def write_private(file: Path, text: str) -> None:
    """Replace a file with one that its owner alone may read."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    new.replace(file)
