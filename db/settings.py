"""Settings of the service, from the environment alone (`ATTUNE_…`)."""

import os
import re
from functools import cached_property
from importlib.metadata import version
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from db.session import database_url


def _user_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")


def own_code() -> str:
    """Word for this code's version: ATTUNE_CODE, else the package's."""
    return os.environ.get("ATTUNE_CODE") or version("attune")


class SettingsError(ValueError):
    """A variable is missing or wrong; the message names it, and shows no values: some are secret."""


def _database(text: str) -> str:
    url = database_url(text)
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("names no file, and each process would have a database of its own")
    return text


def _broker(text: str) -> str:
    _address(text, "redis", "rediss", "redis+socket")
    return text


def _store(text: str) -> str:
    if "://" in text and not re.match(r"s3://[^/]|file:///", text):
        raise ValueError("is neither s3://bucket/prefix nor file:///folder")
    if "://" not in text and not os.path.isabs(text):
        raise ValueError("is a relative folder, which runners would look for below their own; write it from / on")
    return text


def _http(text: str) -> str:
    _address(text, "http", "https")
    return text.rstrip("/")


def _address(text: str, *schemes: str) -> None:
    """ValueError where it is none of these. It says nothing of the value: where a password is not escaped, any part of
    the address may be a part of it."""
    try:
        found = urlsplit(text)
        place, _ = found.path if found.scheme.endswith("+socket") else found.hostname, found.port
    except ValueError:
        raise ValueError("has a port that is no number, or a password that must be escaped (/ is %2F)") from None
    if found.scheme not in schemes or not place:
        raise ValueError(f"is no address that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")


Http = Annotated[str, AfterValidator(_http)]


class Settings(BaseSettings):
    """Read once per process. A wrong value stops the process with the variable's name; an empty one is none."""

    model_config = SettingsConfigDict(
        env_prefix="ATTUNE_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    database_url: Annotated[str, AfterValidator(_database)]
    """`sqlite:///FILE` or `postgresql+psycopg://user:password@host/name`."""
    broker_url: Annotated[str, AfterValidator(_broker)]
    """Redis (or Valkey) that carries Celery's messages, `redis://…` or `redis+socket://…`. Holds no state."""
    store: Annotated[str, AfterValidator(_store)]
    """Artifact store: a folder, absolute, or `s3://bucket/prefix`."""
    s3_public_url: Http | None = None
    """Where users reach the S3 service, for links to artifacts; unset: where the service itself does."""
    ray_address: Http = "http://127.0.0.1:8265"
    """Ray's Jobs REST, `http://host:8265`."""
    ray_token: str | None = Field(default=None, repr=False)
    """Ray's token, where the cluster asks for one."""
    api_url: Http = "http://127.0.0.1:8321"
    """How runners reach the API, `http://host:8321`."""
    data: str = ""
    """Folders that data references are relative to, separated like PATH; runners see the same paths."""
    cache: str = Field(default_factory=lambda: os.path.join(_user_cache(), "attune"))
    """Folder of copies that may be thrown away: uploaded data sets, bases from S3."""
    trusted: bool = False
    """Specs may name any place of this machine's disk: right where the service runs as the only user who asks."""
    code: str = Field(default_factory=own_code)
    """Word for the code's version; a pool's runners all run the same."""
    max_runners: int = Field(default=1, ge=0)
    """Most runners at a time, over all pools."""

    @cached_property
    def roots(self) -> list[str]:
        """Where references are looked up: `data` as a list, and the uploaded data sets (see db.datasets.bring)."""
        return [*(part for part in self.data.split(os.pathsep) if part), self.datasets]

    @property
    def datasets(self) -> str:
        """Folder of uploaded data sets, each under its id."""
        return os.path.join(self.cache, "datasets")


def from_environment() -> Settings:
    """The settings of this process; SettingsError: a line for every wrong one: variable, fault, what belongs there."""
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = []
        for found in error.errors():
            name = str(found["loc"][0])
            fault = "is not set" if found["type"] == "missing" else found["msg"].removeprefix("Value error, ")
            belongs = " ".join((Settings.model_fields[name].description or "").split())
            wrong.append(f"ATTUNE_{name.upper()}: {fault}. What belongs there: {belongs}")
        raise SettingsError("\n".join(wrong)) from None
