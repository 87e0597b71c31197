"""The front door: command line, Python client (`attune.Client`), embedded service. Light: no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attune.client import Client as Client


def __getattr__(name: str) -> Any:
    """`Client`, loaded when it is asked for: the command line mostly does without HTTP."""
    if name == "Client":
        from attune.client import Client

        return Client
    raise AttributeError(f"module 'attune' has no attribute {name!r}")
