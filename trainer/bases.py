"""Where a base model's files are: a folder, an s3:// folder or the hub, by one path."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class BaseError(ValueError):
    """The base model cannot be found, or is of a family that is not supported."""


class UnreachableError(BaseError):
    """Where the base should be could not be asked."""


def cache_folder() -> Path:
    """Copies that may be thrown away: ATTUNE_CACHE, else below the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "attune"
    return Path(os.environ.get("ATTUNE_CACHE", default))


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

    `revision`: commit or name of a hub model; of an s3 folder its `s3_pin`, BaseError where it holds other files now.
    `weights=False` fetches only the small files (enough for `Tokens`). The hub's own environment applies
    (HF_HUB_OFFLINE, HF_HOME, HF_TOKEN); s3 folders are kept under ATTUNE_CACHE (default: the user's cache), each
    listing in a folder of its own.
    """
    if base.startswith("s3://"):
        return _from_store(base, revision, weights)
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


def s3_pin(uri: str) -> str:
    """`listing:<sha256>` of an s3:// folder: over key, size and ETag of every object, so without reading any."""
    return _listing(uri)[2]


def _listing(uri: str) -> tuple[Any, list[tuple[str, int, str]], str]:
    """(store, its objects as (key, bytes, ETag), their pin)."""
    from botocore.exceptions import BotoCoreError, ClientError

    from trainer.store import StoreError, open_store

    try:
        store: Any = open_store(uri)
        objects = store.entries()
    except BotoCoreError as error:
        raise UnreachableError(f"base {uri!r}: the service cannot be asked ({error})") from error
    except (ClientError, StoreError) as error:
        raise BaseError(f"base {uri!r}: cannot be listed ({error})") from error
    if not objects:
        raise BaseError(f"base {uri!r}: nothing is stored there")
    return store, objects, f"listing:{hashlib.sha256(json.dumps(objects).encode()).hexdigest()}"


def _from_store(uri: str, revision: str | None, weights: bool) -> Path:
    from trainer.store import StoreError

    store, objects, pin = _listing(uri)
    if revision not in (None, pin):
        raise BaseError(
            f"base {uri!r}: its files have changed since the job was resolved ({revision[:20]}, now {pin[:20]}); "
            "resolve the job again, or put the old files back"
        )
    folder = cache_folder() / "bases" / pin.removeprefix("listing:")
    for key, _, etag in objects:
        if (weights or not key.endswith(".safetensors")) and not (folder / key).exists():
            try:
                store.fetch(key, folder / key, etag)
            except StoreError as error:  # also where it was replaced between the listing and now
                raise BaseError(f"base {uri!r}: {error}") from error
    return folder
