"""docker-compose.yml without Docker: its services as processes of this machine, by its own commands and settings, on
Debian's servers and a Ray cluster of two nodes.

Different is what containers would give: addresses, and a home of each one's own. There are two replicas of the API.
"""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx2
import yaml
from processes import Processes, until
from ray_start import free_port, started_node, started_ray
from servers import Gateway, started_postgres, started_redis

from attune.client import Client

ROOT = Path(__file__).parent.parent
REPLICAS = 2


class Compose:
    """The running service; `data` is its folder of data sets. Runners compute with one thread."""

    def __init__(self, folder: Path, s3: Gateway):
        self.folder, self.s3, self.data = folder, s3, folder / "data"
        self.data.mkdir()
        self.services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.secrets = {name: secrets.token_hex(20) for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "RAY_TOKEN")}
        self.secrets |= {"S3_ACCESS_KEY": s3.access_key, "S3_SECRET_KEY": s3.secret_key}
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(REPLICAS)]
        self.public = s3.endpoint.replace("127.0.0.1", "localhost")  # another name, so another signature
        self._places = {
            "http://s3:8333": s3.endpoint,
            "http://127.0.0.1:8333": self.public,
            "http://api:8321": self.urls[0],
        }
        self.processes, self._ends = Processes(folder), contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            ends.callback(self._ends.close)
            self._start(self._ends.enter_context)
            ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _start(self, begin: Any) -> None:
        postgres = begin(started_postgres(self.secrets["POSTGRES_PASSWORD"]))
        redis = begin(started_redis(self.secrets["REDIS_PASSWORD"], self._words("redis")))
        self._places |= {"@postgres/": f"@127.0.0.1:{postgres}/", "@redis:6379": f"@127.0.0.1:{redis}"}
        ray = {**self.environment("ray-head"), "ATTUNE_THREADS": "1"}
        self.head = begin(started_ray(num_cpus=0, token=self.secrets["RAY_TOKEN"], env=ray))
        begin(started_node(self.head, num_cpus=2, env={**ray, **self.environment("ray-worker")}))
        self._places["http://ray-head:8265"] = self.head.address
        for part in ("bucket", "migrate"):
            self.do(part, *self._words(part))
        self.key = self.do("api", "python", "-m", "db", "key", "first").strip()
        self._ends.callback(self.processes.end)
        for url in self.urls:
            self._begin("api", *self._words("api"), "--port", url.rpartition(":")[2])
        for part in ("worker", "beat"):
            self._begin(part, *self._words(part))
        self.clients = [begin(Client(url, self.key)) for url in self.urls]
        until(lambda: all(self._ready(url) for url in self.urls), 240, self.logs)

    def environment(self, part: str) -> dict[str, str]:
        """What the file says, with this machine's addresses, and a home of its own."""
        (home := self.folder / part).mkdir(exist_ok=True)
        return {k: self._here(v) for k, v in self.services[part]["environment"].items()} | {"HOME": str(home)}

    def do(self, part: str, *command: str) -> str:
        """What a command of this service says, which must succeed."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ATTUNE_", "AWS_", "XDG_"))}
        ran = subprocess.run(
            [sys.executable, *command[1:]], env={**inherited, **self.environment(part)}, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def logs(self) -> str:
        """What all processes and runners have said."""
        drivers = self.head.folder.glob("session_latest/logs/job-driver-*.log")
        said = [f"--- {path.name}\n{path.read_text()[-5000:]}" for path in sorted(drivers)]
        return "\n".join([self.processes.logs(), *said])[-30_000:]

    def _words(self, part: str) -> list[str]:
        """The service's command; where the file has none, its image's."""
        image = (ROOT / "docker" / "service.Dockerfile").read_text()
        command = self.services[part].get("command") or json.loads(image.rpartition("CMD ")[2])
        return [self._here(word).replace("0.0.0.0", "127.0.0.1") for word in command]

    def _here(self, text: str) -> str:
        text = re.sub(r"\$\{(\w+):([?-])([^}]*)}", lambda m: self.secrets[m[1]] if m[2] == "?" else m[3], text)
        for place, here in self._places.items():
            text = text.replace(place, here)
        return str(self.data) if text == "/data" else text

    def _begin(self, part: str, *command: str) -> None:
        assert command[:2] == ("python", "-m")
        self.processes.start(*command[2:], env=self.environment(part), cwd=self.folder / part)

    def _ready(self, url: str) -> bool:
        assert all(process.poll() is None for process in self.processes.all), self.logs()
        try:
            return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False
