"""Where a base model's files are: a folder, an s3:// folder or the hub, by one path."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from trainer.fields import problem

WHOLE_BYTES = 64 << 20
"""Files of a base up to this size are hashed whole; of larger ones the size and SAMPLES evenly spaced blocks."""
SAMPLES, BLOCK = 256, 1 << 16


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


# ---- what exactly a base is


def pin_base(base: str, revision: str | None) -> str | None:
    """What exactly a base is: `files:<sha256>` of a local folder, `listing:<sha256>` of an s3:// folder, the commit
    of a hub model."""
    if base.startswith("s3://"):
        return _listed(base, revision)
    folder = Path(base)
    if not folder.is_dir():
        return _hub_commit(base, revision)
    if not (folder / "config.json").is_file():
        raise problem("base", "the folder has no config.json, so it is no base model", base)
    return _folder_pin(folder, tuple(_stamp(p) for p in _base_files(folder)))


def _hub_commit(base: str, revision: str | None) -> str | None:
    """The commit that a hub id means now; what was asked for where the hub cannot be reached."""
    try:
        return locate_base(base, revision, weights=False).name
    except BaseError:
        return revision


def _listed(base: str, revision: str | None) -> str | None:
    """The listing that an s3:// folder has now; what was asked for where the service cannot be reached."""
    try:
        found = s3_pin(base)
    except UnreachableError:
        return revision
    except BaseError as error:
        raise problem("base", str(error)) from None
    if revision not in (None, found):
        raise problem("revision", f"{base} holds {found} now; leave revision out, or put the old files back", revision)
    return found


def _base_files(folder: Path) -> list[Path]:
    names = ("config.json", "tokenizer.json", "processor_config.json", "preprocessor_config.json")
    files = [folder / n for n in names if (folder / n).is_file()]
    return [*files, *sorted(folder.glob("*.safetensors"))]


def _stamp(path: Path) -> tuple[str, int, int]:
    at = path.stat()
    return path.name, at.st_size, at.st_mtime_ns


@cache
def _folder_pin(folder: Path, stamps: tuple) -> str:
    digest = hashlib.sha256()
    for path in _base_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
                continue
            for n in range(SAMPLES):
                file.seek(n * (size - BLOCK) // (SAMPLES - 1))
                digest.update(file.read(BLOCK))
    return f"files:{digest.hexdigest()}"
