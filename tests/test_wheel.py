"""The package as an image has it: built, installed and run from elsewhere, without the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest
from api_server import ROOT
from processes import until
from ray_start import free_port

from db.ids import new_id

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the installed wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name in {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, timeout=300)
    return target


@pytest.fixture
def environment(installed, tmp_path) -> dict[str, str]:
    """Of a process that sees the wheel, and a database and store of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ATTUNE_", "PYTHON"))}
    return {
        **inherited, "PYTHONPATH": str(installed), "ATTUNE_DATABASE_URL": f"sqlite:///{tmp_path}/attune.db",
        "ATTUNE_BROKER_URL": "redis://127.0.0.1:1/0", "ATTUNE_STORE": str(tmp_path / "store"),
        "ATTUNE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip


def python(environment: dict[str, str], cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_migrations_pages_and_built_in_tasks_are_in_it(installed, environment, tmp_path):
    where = python(environment, tmp_path, "-c", "import api, db, trainer; print(api.__file__, db.__file__)")
    assert all(Path(file).is_relative_to(installed) for file in where.stdout.split()), where.stdout + where.stderr
    migrated = python(environment, tmp_path, "-m", "db", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    key = python(environment, tmp_path, "-m", "db", "key", "first").stdout.strip()
    assert {f.name for f in (ROOT / "trainer" / "tasks").glob("*.yaml")} == {
        f.name for f in (installed / "trainer" / "tasks").glob("*.yaml")
    }
    port = free_port()
    log = open(tmp_path / "api.log", "w")  # noqa: SIM115
    command = [sys.executable, "-m", "api", "--port", str(port)]
    api = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:

            def ready() -> bool:
                assert api.poll() is None, (tmp_path / "api.log").read_text()
                try:
                    return http.get("/readyz").status_code == 200
                except httpx2.RequestError:
                    return False

            until(ready, 300)
            page = http.get("/dashboard/login")
            assert (page.status_code, "<html" in page.text) == (200, True)
            files = [part.split('"')[0] for part in page.text.split('="')[1:] if "/dashboard/static/" in part[:40]]
            assert files
            assert {http.get(file).status_code for file in files} == {200}
            assert http.get("/openapi.json").status_code == 200
            known = {"Authorization": f"Bearer {key}"}
            assert http.get("/v1/jobs", headers=known).json()["data"] == []
            assert http.get(f"/v1/jobs/{new_id('ftjob-')}", headers=known).status_code == 404
    finally:
        api.terminate()
        api.wait(60)
        log.close()
    assert python(environment, tmp_path, "-m", "worker", "check").returncode == 1  # no rounds are made here
