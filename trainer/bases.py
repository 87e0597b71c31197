"""Where a base model's files are: a folder, an s3:// folder or the hub, by one path."""

import hashlib
import json
import os
from pathlib import Path


class BaseError(ValueError):
    """The base model cannot be found, or is of a family that is not supported."""


def read_json(path: Path) -> dict:
    """A JSON file of a base folder; BaseError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseError(f"{path.parent}: no {path.name}; is this a folder written by save_pretrained?") from None
    except ValueError as error:
        raise BaseError(f"{path}: not JSON ({error})") from None


def locate_base(base: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Local folder of a base given as folder, `s3://bucket/prefix` or hub id.

    `weights=False` fetches only the small files (enough for `Tokens`). The hub's own environment applies
    (HF_HUB_OFFLINE, HF_HOME, HF_TOKEN); s3 folders are kept under ATTUNE_CACHE (default: the user's cache).
    """
    if base.startswith("s3://"):
        return _from_store(base, weights)
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise BaseError(f"base {base!r}: no such folder, and not a hub id (owner/name) or s3:// address")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise BaseError(
            f"base {base!r}{f' at {revision}' if revision else ''}: neither a folder here nor available from the "
            f"hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'})"
        ) from error


def _from_store(uri: str, weights: bool) -> Path:
    from trainer.store import open_store

    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "attune"
    cache = Path(os.environ.get("ATTUNE_CACHE", default))
    folder = cache / "bases" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    store = open_store(uri)
    keys = [k for k in store.list("") if weights or not k.endswith(".safetensors")]
    if not keys:
        raise BaseError(f"base {uri!r}: nothing is stored there")
    for key in keys:
        if not (folder / key).exists():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            part = folder / f"{key}.part{os.getpid()}"
            store.fetch(key, part)
            part.replace(folder / key)
    return folder
