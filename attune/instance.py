"""The folder of an embedded service: what it runs with, where everything lies, who runs.

    client.json     address and admin key, for the command line
    instance.json   what `attune up` was asked for, and the ports it chose
    ray.token       what this instance's Ray asks for
    attune.db store/ log/ run/

The folder and whatever holds a secret may be read by their owner alone.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from attune.home import CLIENT, LocalError, read_json, write_private
from attune.processes import Service

NAMES = ("broker", "ray", "api", "worker", "beat")
"""The processes, in the order in which they start."""


@dataclass(frozen=True)
class Options:
    """What an instance runs with."""

    port: int = 8321
    data_roots: tuple[str, ...] = ()
    ray: bool = True

    @property
    def parts(self) -> list[str]:
        """Names of the processes that it consists of."""
        return [name for name in NAMES if name != "ray" or self.ray]


class Instance:
    """An embedded service, running or not."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.services = {name: Service(folder, name) for name in NAMES}
        self.client_file, self._state_file = folder / CLIENT, folder / "instance.json"
        self.database_url = f"sqlite:///{folder / 'attune.db'}"
        # Ray's sockets have long names and a socket's path may have 107 bytes, so sockets lie elsewhere
        name = f"attune-{os.getuid()}-{hashlib.sha256(bytes(folder)).hexdigest()[:8]}"
        temporary = tempfile.gettempdir()
        self.sockets = Path(temporary if len(temporary) < 22 else "/tmp", name)

    @property
    def exists(self) -> bool:
        """Whether `up` has ever been here."""
        return self._state_file.exists()

    @property
    def running(self) -> list[str]:
        """Names of the processes that live."""
        return [name for name, service in self.services.items() if service.process()]

    @property
    def options(self) -> Options:
        """As `up` was last asked."""
        asked = read_json(self._state_file).get("options", {})
        return Options(**{**asked, "data_roots": tuple(asked.get("data_roots", ()))})

    @property
    def ray_ports(self) -> dict[str, int]:
        """Ports of its Ray by option of `ray start`."""
        return read_json(self._state_file).get("ray_ports", {})

    def remember(self, *, options: Options | None = None, ray_ports: dict[str, int] | None = None) -> None:
        """Write down what is given, beside what stands."""
        kept = read_json(self._state_file)
        new = {"options": options and asdict(options), "ray_ports": ray_ports}
        write_private(self._state_file, json.dumps({**kept, **{k: v for k, v in new.items() if v is not None}}))

    @property
    def url(self) -> str:
        """Address of API and dashboard."""
        return f"http://127.0.0.1:{self.options.port}"

    @property
    def cache(self) -> str:
        """Where copies of data sets and bases are kept."""
        return os.environ.get("ATTUNE_CACHE") or str(self.folder / "cache")

    @property
    def store(self) -> Path:
        """The artifact store."""
        return self.folder / "store"

    @property
    def broker(self) -> Path:
        """The broker's socket."""
        return self.sockets / "broker"

    @property
    def ray_folder(self) -> Path:
        """Ray's own: it opens that folder to everybody, so it lies in one that nobody else may enter."""
        return self.sockets / "r"

    @property
    def ray_address(self) -> str:
        """Ray's Jobs REST."""
        return f"http://127.0.0.1:{self.ray_ports.get('dashboard-port', 0)}"

    @property
    def ray_token_file(self) -> Path:
        """The file with the token of its Ray, made when first asked for."""
        file = self.folder / "ray.token"
        if not file.exists():
            write_private(file, secrets.token_hex(32))
        return file

    def settings(self) -> dict[str, str]:
        """The environment of API, worker and beat, as it is in production. Without a Ray of its own the instance uses
        the one that the caller's environment names, or starts no runners."""
        own = {
            "ATTUNE_DATABASE_URL": self.database_url,
            "ATTUNE_BROKER_URL": f"redis+socket://{self.broker}",
            "ATTUNE_STORE": str(self.store),
            "ATTUNE_API_URL": self.url,
            "ATTUNE_DATA": os.pathsep.join(self.options.data_roots),
            "ATTUNE_CACHE": self.cache,
            "ATTUNE_TRUSTED": "1",
            "ATTUNE_MAX_RUNNERS": os.environ.get("ATTUNE_MAX_RUNNERS", "1"),
        }
        if self.options.ray:
            token = self.ray_token_file.read_text()
            return {**own, "ATTUNE_RAY_ADDRESS": self.ray_address, "ATTUNE_RAY_TOKEN": token}
        elsewhere = {k: os.environ[k] for k in ("ATTUNE_RAY_ADDRESS", "ATTUNE_RAY_TOKEN") if k in os.environ}
        return {**own, **(elsewhere or {"ATTUNE_MAX_RUNNERS": "0"})}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One `up` or `down` at a time; another waits."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def make_sockets(self) -> None:
        """The folder for sockets, ours alone. LocalError where another user has taken the name."""
        with contextlib.suppress(FileExistsError):
            self.sockets.mkdir(mode=0o700)
        found = self.sockets.lstat()
        if found.st_uid != os.getuid() or self.sockets.is_symlink() or found.st_mode & 0o077:
            raise LocalError(f"{self.sockets} is not a private folder of yours; remove it, or set TMPDIR")
