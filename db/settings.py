"""Settings of the service, from the environment alone (`ATTUNE_…`)."""

import os
from functools import cached_property
from importlib.metadata import version

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


def _user_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")


def own_code() -> str:
    """Word for this code's version: ATTUNE_CODE, else the package's."""
    return os.environ.get("ATTUNE_CODE") or version("attune")


class SettingsError(ValueError):
    """A variable is missing or wrong; the message names it, and shows no values: some are secret."""


class Settings(BaseSettings):
    """Read once per process. A wrong value stops the process with the variable's name."""

    model_config = SettingsConfigDict(env_prefix="ATTUNE_", frozen=True, use_attribute_docstrings=True)

    database_url: str
    """`sqlite:///FILE` or `postgresql+psycopg://user:password@host/name`."""
    broker_url: str
    """Redis (or Valkey) that carries Celery's messages, `redis://…` or `redis+socket://…`. Holds no state."""
    store: str
    """Artifact store: a folder or `s3://bucket/prefix`."""
    s3_public_url: str | None = None
    """Where users reach the S3 service, for links to artifacts; unset: where the service itself does."""
    ray_address: str = "http://127.0.0.1:8265"
    """Ray's Jobs REST."""
    ray_token: str | None = Field(default=None, repr=False)
    """Ray's token, where the cluster asks for one."""
    api_url: str = "http://127.0.0.1:8321"
    """How runners reach the API."""
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
    """The settings of this process; SettingsError."""
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = [f"ATTUNE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(wrong)) from None
